"""All size arithmetic, done once for a forward pass and every backward of it.

A geometry is an immutable tuple of plain integers. It is built and validated
here, cached, and handed as it is to the compiled passes, which trust it.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

__all__ = [
    "ConvGeometry",
    "PoolGeometry",
    "TransposedGeometry",
    "checked_size",
    "pair",
]

# Half of the address space, in elements of the widest dtype: products of sizes
# below this bound cannot overflow Py_ssize_t, not even in bytes.
MAX_ELEMENTS = 2**59
# Positions in a window are counted in 32 bits.
MAX_WINDOW = 2**31 - 1


def shown(value: Any) -> str:
    """One short line that shows `value` in an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked_size(value: Any, name: str, minimum: int = 0) -> int:
    """Return `value` as an int that is at least `minimum`, or say what is wrong."""
    if type(value) is int and minimum <= value < MAX_ELEMENTS:
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {shown(value)} "
            f"of type {type(value).__name__}"
        ) from None
    if size < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {size}")
    if size >= MAX_ELEMENTS:
        raise ValueError(f"{name} is too large: {size}")
    return size


def pair(value: Any, name: str, minimum: int = 1) -> tuple[int, int]:
    """Return `value`, an int or a pair of ints, as (vertical, horizontal)."""
    if type(value) is int and minimum <= value < MAX_ELEMENTS:
        return value, value
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(
                f"{name} must be an int or a pair (h, w), got {shown(value)}"
            )
        return (
            checked_size(value[0], f"{name}[0]", minimum),
            checked_size(value[1], f"{name}[1]", minimum),
        )
    size = checked_size(value, name, minimum)
    return size, size


def _shape(shape: Any, name: str, axes: str) -> tuple[int, ...]:
    """Return a shape of four sizes; only the batch axis, N, may be empty."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(
            f"{name} must be a shape ({', '.join(axes)}), got {shown(shape)}"
        ) from None
    if len(sizes) != len(axes):
        raise ValueError(
            f"{name} must have {len(axes)} axes ({', '.join(axes)}), got {sizes}"
        )
    a, b, c, d = sizes
    if (  # so are most shapes, and a new one is to cost little
        type(a) is type(b) is type(c) is type(d) is int
        and (a > 0 and b > 0 and c > 0 and d > 0)
        and a * b * c * d < MAX_ELEMENTS
    ):
        return sizes
    checked = tuple(
        checked_size(size, f"{name}[{i}]", 0 if axes[i] == "N" else 1)
        for i, size in enumerate(sizes)
    )
    _check_product(checked, name)
    return checked


def _check_product(shape: tuple[int, ...], name: str) -> None:
    product = prod(shape) or prod(max(size, 1) for size in shape)
    if product >= MAX_ELEMENTS:
        raise ValueError(f"{name} is too large: {shape} has {product} elements")


def _padding(
    padding: Any,
    size: tuple[int, int],
    extent: tuple[int, int],
    stride: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((top, bottom), (left, right)); `extent` is the dilated kernel."""
    if type(padding) is int and 0 <= padding < MAX_ELEMENTS:
        return (padding, padding), (padding, padding)
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding not in ("same", "same_lower"):
            raise ValueError(
                "padding must be an int, (h, w), ((top, bottom), (left, right)), "
                f"'valid', 'same' or 'same_lower', got {shown(padding)}"
            )
        sides = []
        for i in range(2):
            out = -(-size[i] // stride[i])
            total = max((out - 1) * stride[i] + extent[i] - size[i], 0)
            less, more = total // 2, total - total // 2
            sides.append((less, more) if padding == "same" else (more, less))
        return sides[0], sides[1]
    if isinstance(padding, (tuple, list)) and len(padding) == 2:
        vertical, horizontal = padding
        return (
            pair(vertical, "padding[0]", 0),
            pair(horizontal, "padding[1]", 0),
        )
    if isinstance(padding, (tuple, list)):
        raise ValueError(
            "padding must be an int, (h, w), ((top, bottom), (left, right)), "
            f"'valid', 'same' or 'same_lower', got {shown(padding)}"
        )
    both = checked_size(padding, "padding", 0)
    return (both, both), (both, both)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list) else value


class _ConvSizes(NamedTuple):
    """The integers of a ConvGeometry, as the compiled passes read them."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int
    bottom: int
    left: int
    right: int
    groups: int
    out_h: int
    out_w: int


class ConvGeometry(_ConvSizes):
    """Sizes of a convolution: images (n, c, h, w), filters (k, c / groups, r, s)."""

    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    y_shape: tuple[int, int, int, int]

    @classmethod
    def of(
        cls,
        x_shape: Any,
        weight_shape: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> ConvGeometry:
        """Return the geometry of a convolution, or raise TypeError or ValueError."""
        try:
            return _conv_geometry(
                x_shape, weight_shape, stride, padding, dilation, groups
            )
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
        arguments = (x_shape, weight_shape, stride, padding, dilation, groups)
        return _conv_geometry.__wrapped__(*map(_hashable, arguments))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the direct sum, the unit of every speed we state."""
        taps = self.c // self.groups * self.r * self.s
        return self.n * self.k * self.out_h * self.out_w * taps


@lru_cache(maxsize=1024, typed=True)
def _conv_geometry(x_shape, weight_shape, stride, padding, dilation, groups):
    n, c, h, w = _shape(x_shape, "x_shape", "NCHW")
    k, c_group, r, s = _shape(weight_shape, "weight_shape", "KCRS")
    stride_h, stride_w = pair(stride, "stride")
    dilation_h, dilation_w = pair(dilation, "dilation")
    groups = checked_size(groups, "groups", 1)
    if c % groups or k % groups:
        raise ValueError(
            f"groups={groups} must divide the {c} input and the {k} output channels"
        )
    if c_group != c // groups:
        raise ValueError(
            f"weight has {c_group} input channels, x has {c} with groups={groups}"
        )
    extent = dilation_h * (r - 1) + 1, dilation_w * (s - 1) + 1
    (top, bottom), (left, right) = _padding(
        padding, (h, w), extent, (stride_h, stride_w)
    )
    _check_product((c, h + top + bottom, w + left + right), "the padded image")
    if extent[0] > h + top + bottom or extent[1] > w + left + right:
        raise ValueError(
            f"the kernel covers {extent[0]}x{extent[1]} pixels, more than the padded "
            f"image of {h + top + bottom}x{w + left + right}"
        )
    out_h = (h + top + bottom - extent[0]) // stride_h + 1
    out_w = (w + left + right - extent[1]) // stride_w + 1
    _check_product((n, k, out_h, out_w), "the output")
    g = ConvGeometry._make((
        n, c, h, w, k, r, s, stride_h, stride_w, dilation_h, dilation_w,
        top, bottom, left, right, groups, out_h, out_w,
    ))  # fmt: skip
    g.x_shape, g.weight_shape = (n, c, h, w), (k, c_group, r, s)
    g.y_shape = n, k, out_h, out_w
    return g


class TransposedGeometry(NamedTuple):
    """Sizes of a transposed convolution, the adjoint of a convolution.

    Attributes
    ----------
    y_shape : tuple of int
        (N, K, H_out, W_out).
    conv : ConvGeometry
        The convolution whose x is the part of y that the filters reach, and whose y is
        our x. What `output_padding` adds beyond that part is 0.
    """

    y_shape: tuple[int, int, int, int]
    conv: ConvGeometry

    @classmethod
    def of(
        cls,
        x_shape: Any,
        weight_shape: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
    ) -> TransposedGeometry:
        """Return the geometry, or raise TypeError or ValueError."""
        arguments = x_shape, weight_shape, stride, padding, output_padding, groups
        try:
            return _transposed_geometry(*arguments, dilation)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
        hashable = map(_hashable, (*arguments, dilation))
        return _transposed_geometry.__wrapped__(*hashable)


@lru_cache(maxsize=1024, typed=True)
def _transposed_geometry(
    x_shape, weight_shape, stride, padding, output_padding, groups, dilation
):
    n, c, h, w = _shape(x_shape, "x_shape", "NCHW")
    c_weight, k_group, r, s = _shape(weight_shape, "weight_shape", "CKRS")
    groups = checked_size(groups, "groups", 1)
    if c % groups:
        raise ValueError(f"groups={groups} must divide the {c} input channels")
    if c != c_weight:
        raise ValueError(f"weight has {c_weight} input channels, x has {c}")
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    extra = pair(output_padding, "output_padding", 0)
    if isinstance(padding, str):
        raise ValueError(
            "padding of a transposed convolution must be an int, (h, w) or ((top, "
            f"bottom), (left, right)), got {padding!r}"
        )
    extents = dilations[0] * (r - 1) + 1, dilations[1] * (s - 1) + 1
    cut = _padding(padding, (h, w), extents, strides)
    sizes, reached, inner = [], [], []
    for i, size in enumerate((h, w)):
        if extra[i] >= max(strides[i], dilations[i]):
            raise ValueError(
                "output_padding must be smaller than stride or dilation, got "
                f"{extra[i]} with stride {strides[i]}, dilation {dilations[i]}"
            )
        before, after = cut[i]
        full = (size - 1) * strides[i] + extents[i]
        out = full - before - after + extra[i]
        if out < 1:
            raise ValueError(
                f"padding of {before} and {after} leaves nothing of {full} pixels"
            )
        # output_padding first takes back what the padding cuts off, then adds
        # pixels that no filter reaches
        beyond = max(extra[i] - after, 0)
        sizes.append(out)
        reached.append(out - beyond)
        inner.append((before, max(after - extra[i], 0)))
    if min(reached) < 1:
        raise ValueError(f"padding {shown(padding)} leaves nothing of the output")
    y_shape = n, k_group * groups, sizes[0], sizes[1]
    _check_product(y_shape, "the output")
    conv = ConvGeometry.of(
        (*y_shape[:2], *reached),
        (c, k_group, r, s),
        strides,
        tuple(inner),
        dilations,
        groups,
    )
    return TransposedGeometry(y_shape, conv)


class _PoolSizes(NamedTuple):
    """The integers of a PoolGeometry, as the compiled passes read them."""

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int
    bottom: int
    left: int
    right: int
    out_h: int
    out_w: int


class PoolGeometry(_PoolSizes):
    """Sizes of one 2-D pooling: images (n, c, h, w), windows of r x s pixels."""

    x_shape: tuple[int, int, int, int]
    y_shape: tuple[int, int, int, int]

    @classmethod
    def of(
        cls,
        x_shape: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> PoolGeometry:
        """Return the geometry of a pooling, or raise TypeError or ValueError.

        `stride=None` means the kernel size.
        """
        try:
            return _pool_geometry(
                x_shape, kernel_size, stride, padding, dilation, ceil_mode
            )
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
        arguments = (x_shape, kernel_size, stride, padding, dilation, ceil_mode)
        return _pool_geometry.__wrapped__(*map(_hashable, arguments))


def _pooled(size: int, pad: int, extent: int, stride: int, before: int, ceil: bool):
    """Number of windows along one axis; `pad` is both sides, `before` the first."""
    out = (size + pad - extent + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (out - 1) * stride >= size + before:
        out -= 1  # the last window would start in the padding after the image
    return out


def _reach_a_pixel(size: int, taps: int, gap: int, starts: range) -> bool:
    """Whether the windows that start in the padding meet the image."""
    for start in starts:
        steps = -(start // gap)  # the first step that is not in the padding
        if steps >= taps or start + steps * gap >= size:
            return False
    return True


@lru_cache(maxsize=1024, typed=True)
def _pool_geometry(x_shape, kernel_size, stride, padding, dilation, ceil_mode):
    n, c, h, w = _shape(x_shape, "x_shape", "NCHW")
    r, s = pair(kernel_size, "kernel_size")
    stride_h, stride_w = (r, s) if stride is None else pair(stride, "stride")
    dilation_h, dilation_w = pair(dilation, "dilation")
    if r * s > MAX_WINDOW:
        raise ValueError(f"kernel_size is too large: {r}x{s} pixels")
    extent = dilation_h * (r - 1) + 1, dilation_w * (s - 1) + 1
    (top, bottom), (left, right) = _padding(
        padding, (h, w), extent, (stride_h, stride_w)
    )
    if 2 * max(top, bottom) > extent[0] or 2 * max(left, right) > extent[1]:
        # a window could lie in the padding alone, and would have no winner
        raise ValueError(
            f"padding must be at most half of the kernel, {extent[0]}x{extent[1]} "
            f"pixels with dilation, got (({top}, {bottom}), ({left}, {right}))"
        )
    _check_product((c, h + top + bottom, w + left + right), "the padded image")
    _check_product((c, *extent), "the kernel")
    out_h = _pooled(h, top + bottom, extent[0], stride_h, top, bool(ceil_mode))
    out_w = _pooled(w, left + right, extent[1], stride_w, left, bool(ceil_mode))
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"the kernel covers {extent[0]}x{extent[1]} pixels, more than the padded "
            f"image of {h + top + bottom}x{w + left + right}"
        )
    for size, before, taps, step, gap, windows in (
        (h, top, r, stride_h, dilation_h, out_h),
        (w, left, s, stride_w, dilation_w, out_w),
    ):
        starts = range(-before, min(0, windows * step - before), step)
        if not _reach_a_pixel(size, taps, gap, starts):
            raise ValueError(
                f"padding of {before} and dilation of {gap} leave a window of "
                f"{taps} without any pixel of {size}"
            )
    _check_product((n, c, out_h, out_w), "the output")
    g = PoolGeometry._make((
        n, c, h, w, r, s, stride_h, stride_w, dilation_h, dilation_w,
        top, bottom, left, right, out_h, out_w,
    ))  # fmt: skip
    g.x_shape, g.y_shape = (n, c, h, w), (n, c, out_h, out_w)
    return g
