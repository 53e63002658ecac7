"""Transposed convolution on numpy arrays, and its backwards.

It is the adjoint of a convolution, so it has no kernels of its own: its forward is
the convolution's `conv2d_backward_input`, its backward_input is `conv2d`, and its
gradient of the filters is the convolution's with image and error exchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import functional as F
from ._arrays import empty, floats, images, is_channels_last, same_dtype, vector
from ._geometry import checked_size, pair, shown

__all__ = [
    "TransposedGeometry",
    "conv_transpose2d",
    "conv_transpose2d_backward_bias",
    "conv_transpose2d_backward_input",
    "conv_transpose2d_backward_weight",
]

Array = np.ndarray[Any, Any]


class TransposedGeometry(NamedTuple):
    """Sizes of a transposed convolution.

    Attributes
    ----------
    y_shape : tuple of int
        (N, K, H_out, W_out).
    reached : (int, int)
        Rows and columns of y that the filters may reach; what `output_padding` adds
        beyond them is 0.
    options : dict
        stride, padding, dilation and groups of the convolution that it transposes.
    """

    y_shape: tuple[int, ...]
    reached: tuple[int, int]
    options: dict[str, Any]

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
        """Return the sizes, or raise TypeError or ValueError."""
        n, c, h, w = x_shape
        c_weight, k_group, r, s = (
            checked_size(size, f"weight_shape[{i}]", 1)
            for i, size in enumerate(weight_shape)
        )
        groups = checked_size(groups, "groups", 1)
        if c % groups:
            raise ValueError(f"groups={groups} must divide the {c} input channels")
        if c != c_weight:
            raise ValueError(f"weight has {c_weight} input channels, x has {c}")
        strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
        extra = pair(output_padding, "output_padding", 0)
        sides = _sides(padding)
        sizes, reached, inner = [], [], []
        for i, (size, taps) in enumerate(((h, r), (w, s))):
            if extra[i] >= max(strides[i], dilations[i]):
                raise ValueError(
                    "output_padding must be smaller than stride or dilation, got "
                    f"{extra[i]} with stride {strides[i]}, dilation {dilations[i]}"
                )
            before, after = sides[i]
            extent = dilations[i] * (taps - 1) + 1
            full = (checked_size(size, "size of x", 1) - 1) * strides[i] + extent
            out = full - before - after + extra[i]
            if out < 1:
                raise ValueError(
                    f"padding of {before} and {after} leaves nothing of {full} pixels"
                )
            # output_padding first takes back what the padding cuts off, then adds
            # pixels that no filter reaches
            after, beyond = max(after - extra[i], 0), max(extra[i] - after, 0)
            sizes.append(out)
            reached.append(out - beyond)
            inner.append((before, after))
        if min(reached) < 1:
            raise ValueError(f"padding {shown(padding)} leaves nothing of the output")
        options = {
            "stride": strides,
            "padding": tuple(inner),
            "dilation": dilations,
            "groups": groups,
        }
        return cls((n, k_group * groups, *sizes), (reached[0], reached[1]), options)

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of the part of y that the filters reach."""
        return self.y_shape[:2] + self.reached

    def inner(self, y: Array) -> Array:
        """Return the part of y that the filters reach."""
        return y[:, :, : self.reached[0], : self.reached[1]]


def _sides(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        raise ValueError(
            "padding of a transposed convolution must be an int, (h, w) or ((top, "
            f"bottom), (left, right)), got {padding!r}"
        )
    vertical, horizontal = padding if _is_two(padding) else (padding, padding)
    return pair(vertical, "padding", 0), pair(horizontal, "padding", 0)


def _is_two(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Array:
    """2-D transposed convolution: each pixel of x lays its filter into the output.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Maps, float32 or float64.
    weight : ndarray, (C, K // groups, R, S)
        Filters.
    bias : ndarray, (K,), optional
        Added to each of the K maps.
    stride, dilation : int or (int, int)
        Pixels from filter to filter, and from tap to tap.
    padding : int, (h, w) or ((top, bottom), (left, right))
        Rows and columns cut off the output.
    output_padding : int or (int, int)
        Rows and columns added below and to the right; smaller than stride or dilation.
    groups : int
        Channels fall into this many independent groups.

    Returns
    -------
    ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        ``H_out = (H-1)*stride - top - bottom + dilation*(R-1) + output_padding + 1``,
        in the memory order of `x`.

    Raises
    ------
    TypeError, ValueError
        A dtype, a type or a size is not as above.

    See Also
    --------
    conv_transpose2d_backward_input, conv_transpose2d_backward_weight,
    conv_transpose2d_backward_bias

    References
    ----------
    M. Zeiler, D. Krishnan, G. Taylor, R. Fergus, "Deconvolutional networks", CVPR 2010.
    """
    x, single = images(x, "x")
    weight = floats(weight, "weight", (4,), "(C, K/groups, R, S)")
    g = TransposedGeometry.of(
        x.shape, weight.shape, stride, padding, output_padding, groups, dilation
    )
    if bias is not None:
        bias = vector(bias, "bias", g.y_shape[1], f"y has {g.y_shape[1]} channels")
    same_dtype(x, "x", weight=weight, bias=bias)
    # y[C x P] = weight^T[K x CRS] . x, scattered: the error's way through conv2d
    y = F.conv2d_backward_input(x, weight, g.inner_shape, **g.options)
    if g.inner_shape != g.y_shape:
        inner, y = y, empty(g.y_shape, x.dtype, is_channels_last(x))
        y[...] = 0
        g.inner(y)[...] = inner
    if bias is not None:
        y += bias.reshape(1, -1, 1, 1)
    return y[0] if single else y


def conv_transpose2d_backward_input(
    grad_y: Array,
    weight: Array,
    x_shape: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Array:
    """Gradient of `conv_transpose2d` in its input: the convolution of the error.

    Parameters
    ----------
    grad_y : ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        Gradient of the loss in the result.
    weight : ndarray, (C, K // groups, R, S)
    x_shape : tuple of int
        Shape of the forward pass's `x`.
    stride, padding, output_padding, groups, dilation
        As in `conv_transpose2d`.

    Returns
    -------
    ndarray of shape `x_shape`, in the memory order of `grad_y`.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`; also if `grad_y` has not the shape of its result.
    """
    grad_y, single = images(grad_y, "grad_y")
    weight = floats(weight, "weight", (4,), "(C, K/groups, R, S)")
    shape = _batch_shape(x_shape, single)
    g = TransposedGeometry.of(
        shape, weight.shape, stride, padding, output_padding, groups, dilation
    )
    _check_shape(grad_y, g)
    same_dtype(grad_y, "grad_y", weight=weight)
    grad_x = F.conv2d(g.inner(grad_y), weight, **g.options)
    return grad_x[0] if single else grad_x


def conv_transpose2d_backward_weight(
    grad_y: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Array:
    """Gradient of `conv_transpose2d` in its filters.

    Parameters
    ----------
    grad_y : ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        Gradient of the loss in the result.
    x : ndarray, (N, C, H, W) or (C, H, W)
        The maps of the forward pass.
    weight_shape : tuple of int, (C, K // groups, R, S)
    stride, padding, output_padding, groups, dilation
        As in `conv_transpose2d`.

    Returns
    -------
    ndarray of shape `weight_shape`, C-contiguous.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`; also if `grad_y` has not the shape of its result.
    """
    grad_y, _ = images(grad_y, "grad_y")
    x, _ = images(x, "x")
    g = TransposedGeometry.of(
        x.shape, weight_shape, stride, padding, output_padding, groups, dilation
    )
    _check_shape(grad_y, g)
    same_dtype(grad_y, "grad_y", x=x)
    # the convolution's image is our error, its error our image
    return F.conv2d_backward_weight(x, g.inner(grad_y), weight_shape, **g.options)


def conv_transpose2d_backward_bias(grad_y: Array) -> Array:
    """Gradient of `conv_transpose2d` in its bias: the sum over images and pixels.

    Parameters
    ----------
    grad_y : ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        Gradient of the loss in the result.

    Returns
    -------
    ndarray, (K,)

    Raises
    ------
    TypeError, ValueError
        If `grad_y` is no float32 or float64 image.
    """
    return F.conv2d_backward_bias(grad_y)


def _batch_shape(shape: Any, single: bool) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) != (3 if single else 4):
        raise ValueError(
            f"x_shape must have {3 if single else 4} axes as grad_y, got {sizes}"
        )
    return (1, *sizes) if single else sizes


def _check_shape(grad_y: Array, g: TransposedGeometry) -> None:
    if grad_y.shape != g.y_shape:
        raise ValueError(f"grad_y has shape {grad_y.shape}, the result has {g.y_shape}")
