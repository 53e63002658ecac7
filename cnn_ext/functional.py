"""Operators on numpy arrays: check, geometry, kernel, array.

Logical order is always (N, C, H, W), or (C, H, W) for one image; memory may be
C-contiguous, channels-last (``nhwc.transpose(0, 3, 1, 2)``) or any other strides.
The result has the memory order of the first argument. All functions take float32
or float64, one dtype a call. ``out=`` takes the result if it has the right shape
and dtype and overlaps no input.

Each forward stands beside its backward; a backward's name says the gradient of what.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from . import _conv, _pool
from ._arrays import (
    check_out,
    dense,
    empty,
    floats,
    images,
    is_channels_last,
    matrix,
    result,
    same_dtype,
    vector,
)
from ._geometry import ConvGeometry, PoolGeometry, checked_size, shown

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "explain_conv2d",
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "max_pool2d",
    "max_pool2d_backward",
    "subsample2d",
    "subsample2d_backward",
]

Array = np.ndarray[Any, Any]
Size = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str


# --- convolution ---------------------------------------------------------------


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Literal["relu"] | None = None,
    out: Array | None = None,
) -> Array:
    """2-D convolution (cross-correlation, the kernel is not flipped).

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    weight : ndarray, (K, C // groups, R, S)
        Filters.
    bias : ndarray, (K,), optional
        Added to each of the K maps.
    stride, dilation : int or (int, int)
        Pixels from window to window, and from tap to tap, (vertical, horizontal).
    padding : int, (h, w), ((top, bottom), (left, right)), or str
        Zeros around the image; ``"valid"``, ``"same"`` (TensorFlow's and ONNX's
        SAME_UPPER, for any stride) or ``"same_lower"``.
    groups : int
        Channels and filters fall into this many independent groups.
    activation : {None, "relu"}
        Applied as the result is stored, at no cost; NaN stays NaN.
    out : ndarray, optional
        Where to put the result.

    Returns
    -------
    ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        ``H_out = (H + top + bottom - dilation*(R-1) - 1) // stride + 1``.

    Raises
    ------
    TypeError
        A dtype or a type is not as above.
    ValueError
        A size is not as above, or `out` overlaps an input.

    See Also
    --------
    conv2d_backward_input, conv2d_backward_weight, conv2d_backward_bias
    """
    x, single = images(x, "x")
    weight = floats(weight, "weight", (4,), "(K, C/groups, R, S)")
    g = ConvGeometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    if bias is not None:
        bias = vector(bias, "bias", g.k, f"weight has {g.k} filters")
    if x.dtype is not weight.dtype or bias is not None:
        same_dtype(x, "x", weight=weight, bias=bias)
    if activation not in (None, "relu"):
        raise ValueError(f"activation must be None or 'relu', got {shown(activation)}")
    y = result(out, g.y_shape, x, single, x=x, weight=weight, bias=bias)
    if not weight.flags.c_contiguous:
        weight = np.ascontiguousarray(weight)
    _conv.conv2d(g, x, weight, bias, y, activation is not None)
    return y[0] if single else y


def conv2d_backward_input(
    grad_y: Array,
    weight: Array,
    x_shape: tuple[int, ...],
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Gradient of `conv2d` in its input: the error that travels back.

    It is the adjoint: ``<conv2d(x), g> == <x, conv2d_backward_input(g)>``.

    Parameters
    ----------
    grad_y : ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        Gradient of the loss in the result of `conv2d`.
    weight : ndarray, (K, C // groups, R, S)
        The filters of the forward pass.
    x_shape : tuple of int
        Shape of the forward pass's `x`.
    stride, padding, dilation, groups, out
        As in `conv2d`.

    Returns
    -------
    ndarray of shape `x_shape`, in the memory order of `grad_y`.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also if `grad_y` has not the shape of the forward's result.
    """
    grad_y, single = images(grad_y, "grad_y")
    weight = floats(weight, "weight", (4,), "(K, C/groups, R, S)")
    x_shape = _image_shape(x_shape, single)
    g = ConvGeometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    _check_shape(grad_y, "grad_y", g.y_shape)
    same_dtype(grad_y, "grad_y", weight=weight)
    grad_x = result(out, g.x_shape, grad_y, single, grad_y=grad_y, weight=weight)
    _conv.conv2d_backward_input(g, grad_y, np.ascontiguousarray(weight), grad_x)
    return grad_x[0] if single else grad_x


def conv2d_backward_weight(
    grad_y: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Gradient of `conv2d` in its filters.

    Parameters
    ----------
    grad_y : ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        Gradient of the loss in the result of `conv2d`.
    x : ndarray, (N, C, H, W) or (C, H, W)
        The images of the forward pass.
    weight_shape : tuple of int, (K, C // groups, R, S)
        Shape of the forward pass's `weight`.
    stride, padding, dilation, groups, out
        As in `conv2d`.

    Returns
    -------
    ndarray of shape `weight_shape`, C-contiguous.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also if `grad_y` has not the shape of the forward's result.
    """
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    _check_both(x, single_x, grad_y, single)
    g = ConvGeometry.of(x.shape, weight_shape, stride, padding, dilation, groups)
    _check_shape(grad_y, "grad_y", g.y_shape)
    same_dtype(grad_y, "grad_y", x=x)
    if out is None:
        grad_weight = np.empty(g.weight_shape, x.dtype)
    else:
        check_out(out, g.weight_shape, x.dtype, grad_y=grad_y, x=x)
        grad_weight = out
    target = np.ascontiguousarray(grad_weight)
    _conv.conv2d_backward_weight(g, grad_y, x, target)
    if target is not grad_weight:
        grad_weight[...] = target
    return grad_weight


def conv2d_backward_bias(grad_y: Array, *, out: Array | None = None) -> Array:
    """Gradient of `conv2d` in its bias: the sum over images and pixels.

    Parameters
    ----------
    grad_y : ndarray, (N, K, H_out, W_out) or (K, H_out, W_out)
        Gradient of the loss in the result of `conv2d`.
    out : ndarray, (K,), optional
        Where to put the result.

    Returns
    -------
    ndarray, (K,)

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.
    """
    grad_y, _ = images(grad_y, "grad_y")
    _check_sizes(grad_y, "grad_y")
    if out is not None:
        check_out(out, grad_y.shape[1:2], grad_y.dtype, grad_y=grad_y)
    grad_bias = np.empty(grad_y.shape[1], grad_y.dtype)
    _conv.conv2d_backward_bias(grad_y, grad_bias)
    if out is None:
        return grad_bias
    out[...] = grad_bias
    return out


_WHY = {
    "direct": "the direct sum: rows are pixels, vectors are filters",
    "planes": "few channels or filters: rows are filters, vectors are pixels of planes",
    "depthwise": "one channel a group: vectors are channels",
    "winograd": "3x3 or 5x5 with stride 1 and 16 or more channels and filters: "
    "minimal filtering on patches of 6x6 pixels",
}


def explain_conv2d(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    dtype: Any = np.float32,
    channels_last: bool = False,
) -> str:
    """Say which algorithm each pass of a convolution takes, and why.

    The choice follows from the geometry, the dtype, the memory order, the kernel set
    and `cnn_ext.set_precision`; never from the number of threads or from timings.

    Parameters
    ----------
    x_shape : tuple of int, (N, C, H, W)
    weight_shape : tuple of int, (K, C // groups, R, S)
    stride, padding, dilation, groups
        As in `conv2d`.
    dtype : {numpy.float32, numpy.float64}
    channels_last : bool
        Memory order of the arrays.

    Returns
    -------
    str
        One line a pass. With a stride, backward_input's is for its first phase.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.
    """
    g = ConvGeometry.of(x_shape, weight_shape, stride, padding, dilation, groups)
    if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype must be float32 or float64, got {shown(dtype)}")
    names = _conv.algorithms(g, np.dtype(dtype).itemsize, bool(channels_last))
    passes = ("forward", "backward_input", "backward_weight")
    return "\n".join(
        f"{which:<16}{name:<10}{_WHY[name]}"
        for which, name in zip(passes, names, strict=True)
    )


# --- linear: a convolution of images of one row, N pixels wide -----------------


def _as_row(x: Array) -> Array:
    return x.T[None, :, None, :]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight.T + bias``, the same bits for any number of threads.

    Parameters
    ----------
    x : ndarray, (N, C)
    weight : ndarray, (K, C)
    bias : ndarray, (K,), optional

    Returns
    -------
    ndarray, (N, K)

    Raises
    ------
    TypeError, ValueError
        If a dtype or a size is not as above.

    See Also
    --------
    linear_backward_input, linear_backward_weight, linear_backward_bias
    """
    x = matrix(x, "x", "(N, C)")
    weight = matrix(weight, "weight", "(K, C)")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} inputs, x has {x.shape[1]}")
    if bias is not None:
        bias = vector(bias, "bias", weight.shape[0], f"weight has {weight.shape[0]}")
    same_dtype(x, "x", weight=weight, bias=bias)
    y = np.empty((x.shape[0], weight.shape[0]), x.dtype)
    if x.shape[0]:
        row = _as_row(x)
        w = np.ascontiguousarray(weight)[:, :, None, None]
        g = ConvGeometry.of(row.shape, w.shape)
        _conv.conv2d(g, row, w, bias, _as_row(y))
    return y


def linear_backward_input(grad_y: Array, weight: Array) -> Array:
    """Gradient of `linear` in its input: ``grad_y @ weight``, (N, C)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    weight = matrix(weight, "weight", "(K, C)")
    if grad_y.shape[1] != weight.shape[0]:
        raise ValueError(
            f"weight has {weight.shape[0]} outputs, grad_y has {grad_y.shape[1]}"
        )
    same_dtype(grad_y, "grad_y", weight=weight)
    grad_x = np.empty((grad_y.shape[0], weight.shape[1]), grad_y.dtype)
    if grad_y.shape[0]:
        w = np.ascontiguousarray(weight)[:, :, None, None]
        row = _as_row(grad_x)
        g = ConvGeometry.of(row.shape, w.shape)
        _conv.conv2d_backward_input(g, _as_row(grad_y), w, row)
    return grad_x


def linear_backward_weight(grad_y: Array, x: Array) -> Array:
    """Gradient of `linear` in its weight: ``grad_y.T @ x``, (K, C)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    x = matrix(x, "x", "(N, C)")
    if grad_y.shape[0] != x.shape[0]:
        raise ValueError(f"grad_y has {grad_y.shape[0]} rows, x has {x.shape[0]}")
    same_dtype(grad_y, "grad_y", x=x)
    grad_weight = np.zeros((grad_y.shape[1], x.shape[1]), x.dtype)
    if x.shape[0]:
        row = _as_row(x)
        w = grad_weight[:, :, None, None]
        g = ConvGeometry.of(row.shape, w.shape)
        _conv.conv2d_backward_weight(g, _as_row(grad_y), row, w)
    return grad_weight


def linear_backward_bias(grad_y: Array) -> Array:
    """Gradient of `linear` in its bias: the sum over the batch, (K,)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    grad_bias = np.zeros(grad_y.shape[1], grad_y.dtype)
    if grad_y.shape[0]:
        _conv.conv2d_backward_bias(_as_row(grad_y), grad_bias)
    return grad_bias


# --- max pooling ---------------------------------------------------------------


@overload
def max_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_argmax: Literal[False] = False,
    return_indices: Literal[False] = False,
    out: Array | None = None,
) -> Array: ...
@overload
def max_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_argmax: bool = False,
    return_indices: bool = False,
    out: Array | None = None,
) -> tuple[Array, Array]: ...
def max_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_argmax: bool = False,
    return_indices: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Maximum of each window: a transfer function that passes the winner on.

    Windows are scanned row by row; the first maximum wins, padding never does, and
    NaN wins over numbers (the last NaN of the window owns the gradient). A window
    of -inf alone credits its first pixel.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    kernel_size : int or (int, int)
        Window, (vertical, horizontal).
    stride : int or (int, int), optional
        Pixels from window to window; the kernel size if None.
    padding : int, (h, w), ((top, bottom), (left, right)), or str
        As in `conv2d`; at most half of the kernel.
    dilation : int or (int, int)
        Pixels from one pixel of a window to the next.
    ceil_mode : bool
        Whether a last window may hang over the end of the padded image.
    return_argmax : bool
        Also return the winner's position in its window, row-major: uint8, uint16
        for windows of more than 256 pixels.
    return_indices : bool
        Also return the winner's flat position in the H*W plane: int64.
    out : ndarray, optional
        Where to put the maxima.

    Returns
    -------
    y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
    argmax or indices : ndarray of y's shape, if asked for

    Raises
    ------
    TypeError, ValueError
        A dtype, type or size is not as above, or both positions are asked for.

    See Also
    --------
    max_pool2d_backward
    """
    x, single = images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    if return_argmax and return_indices:
        raise ValueError("return_argmax and return_indices exclude each other")
    if return_argmax and g.r * g.s > 65536:
        raise ValueError(
            f"return_argmax takes windows of at most 65536 pixels, got {g.r}x{g.s}; "
            "use return_indices"
        )
    x = _pool_input(x)
    y = result(out, g.y_shape, x, single, x=x)
    target = _pool_target(y, x)
    last = is_channels_last(target)
    if not (return_argmax or return_indices):
        _pool.max_pool2d(g, x, target, None)
        _finish(y, target)
        return y[0] if single else y
    dtype = np.int32 if return_indices else argmax_dtype(g)
    position = empty(g.y_shape, dtype, last)
    _pool.max_pool2d(g, x, target, position)
    _finish(y, target)
    if return_indices:
        indices = empty(g.y_shape, np.int64, last)
        _pool.max_pool2d_indices(g, position, indices)
        position = indices
    return (y[0], position[0]) if single else (y, position)


def argmax_dtype(g: PoolGeometry) -> type:
    """dtype of positions in a window."""
    return np.uint8 if g.r * g.s <= 256 else np.uint16


def max_pool2d_backward(
    grad_y: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    out: Array | None = None,
) -> Array:
    """Gradient of `max_pool2d`: the winner gets the window's whole error.

    The winner's weight is one, every other pixel's zero; where windows overlap, a
    pixel that wins several of them gets the sum of their errors.

    Parameters
    ----------
    grad_y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
        Gradient of the loss in the result of `max_pool2d`.
    argmax : ndarray of grad_y's shape
        What `max_pool2d` returned for ``return_argmax`` (uint8 or uint16) or for
        ``return_indices`` (int64), told apart by its dtype.
    x_shape : tuple of int
        Shape of the forward pass's `x`.
    kernel_size, stride, padding, dilation, out
        As in `max_pool2d`.

    Returns
    -------
    ndarray of shape `x_shape`, in the memory order of `grad_y`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; also for positions outside of the window or the plane.
    """
    grad_y, single = images(grad_y, "grad_y")
    x_shape = _image_shape(x_shape, single)
    g = _pool_geometry_for(grad_y, x_shape, kernel_size, stride, padding, dilation)
    position = _positions(argmax, grad_y, single, g)
    grad_x = result(out, g.x_shape, grad_y, single, grad_y=grad_y, argmax=argmax)
    grad_y = _pool_error(grad_y, grad_x)
    if not _same_order(position, grad_y):
        last = is_channels_last(grad_y)
        grad_y = _copy(grad_y, last)
        position = _copy(position, last)
    _pool.max_pool2d_backward(g, grad_y, position, grad_x)
    return grad_x[0] if single else grad_x


def _same_order(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape lie alike in memory, element for element."""
    return all(
        size == 1 or p // a.itemsize == q // b.itemsize
        for size, p, q in zip(a.shape, a.strides, b.strides, strict=True)
    )


def _copy(x: Array, channels_last: bool) -> Array:
    copy = empty(x.shape, x.dtype, channels_last)
    copy[...] = x
    return copy


def _positions(argmax: Any, grad_y: Array, single: bool, g: PoolGeometry) -> Array:
    """Check the winners' positions; no value may point outside."""
    if not isinstance(argmax, np.ndarray):
        raise TypeError(f"argmax must be a numpy array, got {type(argmax).__name__}")
    if argmax.dtype not in (np.uint8, np.uint16, np.int64):
        raise TypeError(
            "argmax must be uint8 or uint16 (return_argmax) or int64 "
            f"(return_indices), got {argmax.dtype}"
        )
    wanted = g.y_shape[1:] if single else g.y_shape
    if argmax.shape != wanted:
        raise ValueError(
            f"argmax must have grad_y's shape {wanted}, got {argmax.shape}"
        )
    if argmax.dtype == np.int64:
        limit, place = g.h * g.w, f"the plane of {g.h}x{g.w} pixels"
    else:
        limit, place = g.r * g.s, f"the window of {g.r}x{g.s} pixels"
    if argmax.size:
        low, high = int(argmax.min()), int(argmax.max())
        if low < 0 or high >= limit:
            bad = low if low < 0 else high
            raise ValueError(f"argmax has position {bad}, outside of {place}")
    return argmax[None] if single else argmax


# --- average pooling -----------------------------------------------------------


def avg_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Mean of each window.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    kernel_size, stride, padding, ceil_mode
        As in `max_pool2d`.
    count_include_pad : bool
        Whether the divisor counts padding (never the overhang of `ceil_mode`).
    divisor_override : int, optional
        Divides every sum, instead of the number of pixels.
    out : ndarray, optional
        Where to put the result.

    Returns
    -------
    ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)

    Raises
    ------
    TypeError, ValueError
        A dtype, type or size is not as above.

    See Also
    --------
    avg_pool2d_backward
    """
    x, single = images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, 1, ceil_mode)
    divisor = _divisor(divisor_override)
    x = _pool_input(x)
    y = result(out, g.y_shape, x, single, x=x)
    target = _pool_target(y, x)
    _pool.avg_pool2d(g, x, target, bool(count_include_pad), divisor)
    _finish(y, target)
    return y[0] if single else y


def avg_pool2d_backward(
    grad_y: Array,
    x_shape: tuple[int, ...],
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `avg_pool2d`: every pixel of a window gets its share of the error.

    Parameters
    ----------
    grad_y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
        Gradient of the loss in the result of `avg_pool2d`.
    x_shape : tuple of int
        Shape of the forward pass's `x`.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, out
        As in `avg_pool2d`.

    Returns
    -------
    ndarray of shape `x_shape`, in the memory order of `grad_y`.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`; also if `grad_y` has not the shape of the forward's result.
    """
    grad_y, single = images(grad_y, "grad_y")
    x_shape = _image_shape(x_shape, single)
    g = PoolGeometry.of(x_shape, kernel_size, stride, padding, 1, ceil_mode)
    _check_shape(grad_y, "grad_y", g.y_shape)
    divisor = _divisor(divisor_override)
    grad_x = result(out, g.x_shape, grad_y, single, grad_y=grad_y)
    grad_y = _pool_error(grad_y, grad_x)
    _pool.avg_pool2d_backward(g, grad_y, grad_x, bool(count_include_pad), divisor)
    return grad_x[0] if single else grad_x


# --- LeCun's subsampling -------------------------------------------------------


def subsample2d(
    x: Array,
    gain: Array,
    bias: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> Array:
    """LeCun's subsampling: ``gain_c * sum(window) + bias_c``, both trainable.

    The transfer function of LeNet's S layers, a sigmoid, follows as its own layer.
    Source: LeCun et al., Gradient-based learning applied to document recognition,
    Proc. IEEE 86(11), 1998, section II.B.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    gain, bias : ndarray, (C,)
        One gain and one bias a map.
    kernel_size, stride, padding
        As in `max_pool2d`.

    Returns
    -------
    ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)

    Raises
    ------
    TypeError, ValueError
        A dtype, type or size is not as above.

    See Also
    --------
    subsample2d_backward
    """
    x, single = images(x, "x")
    gain, bias = _gain(gain, "gain", x), _gain(bias, "bias", x)
    y = avg_pool2d(x, kernel_size, stride=stride, padding=padding, divisor_override=1)
    y *= gain[:, None, None]
    y += bias[:, None, None]
    return y[0] if single else y


def subsample2d_backward(
    grad_y: Array,
    x: Array,
    gain: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> tuple[Array, Array, Array]:
    """Gradients of `subsample2d` in its input, its gain and its bias.

    Parameters
    ----------
    grad_y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
        Gradient of the loss in the result of `subsample2d`.
    x : ndarray, (N, C, H, W) or (C, H, W)
        The images of the forward pass.
    gain : ndarray, (C,)
        The gains of the forward pass.
    kernel_size, stride, padding
        As in `subsample2d`.

    Returns
    -------
    grad_x : ndarray of x's shape
        Every pixel of a window gets the window's error times the gain.
    grad_gain : ndarray, (C,)
        Sum over images and windows of the error times the window's sum.
    grad_bias : ndarray, (C,)
        Sum over images and windows of the error.

    Raises
    ------
    TypeError, ValueError
        As `subsample2d`.
    """
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    _check_both(x, single_x, grad_y, single)
    gain = _gain(gain, "gain", x)
    same_dtype(grad_y, "grad_y", x=x)
    where: dict[str, Any] = {"stride": stride, "padding": padding}
    sums = avg_pool2d(x, kernel_size, divisor_override=1, **where)
    _check_shape(grad_y, "grad_y", sums.shape)
    sums *= grad_y
    error = grad_y * gain[:, None, None]
    grad_x = avg_pool2d_backward(
        error, x.shape, kernel_size, divisor_override=1, **where
    )
    return (
        grad_x[0] if single else grad_x,
        conv2d_backward_bias(sums),
        conv2d_backward_bias(grad_y),
    )


# --- shared checks -------------------------------------------------------------


def _gain(values: Any, name: str, x: Array) -> Array:
    values = vector(values, name, x.shape[1], f"x has {x.shape[1]} channels")
    same_dtype(x, "x", **{name: values})
    return values


def _divisor(override: Any) -> int:
    return 0 if override is None else checked_size(override, "divisor_override", 1)


def _image_shape(shape: Any, single: bool) -> tuple[int, ...]:
    """`shape` as (N, C, H, W); one image if the gradient is one."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(
            f"x_shape must be a tuple of sizes, got {shown(shape)}"
        ) from None
    if single and len(sizes) == 3:
        return (1, *sizes)
    if single:
        raise ValueError(f"x_shape must be (C, H, W) as grad_y is, got {sizes}")
    return sizes


def _check_shape(x: Array, name: str, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")


def _check_both(x: Array, single_x: bool, grad_y: Array, single: bool) -> None:
    if single != single_x:
        raise ValueError(
            "x and grad_y must both be batches or both single images, got "
            f"{x.ndim - single_x} and {grad_y.ndim - single} axes"
        )


def _check_sizes(x: Array, name: str) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} must not have an empty axis, got shape {x.shape}")


def _pool_geometry_for(
    grad_y: Array,
    x_shape: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> PoolGeometry:
    """The geometry that gives grad_y's shape, with ceil_mode or without."""
    found: list[PoolGeometry] = []
    for ceil_mode in (False, True):
        try:
            g = PoolGeometry.of(
                x_shape, kernel_size, stride, padding, dilation, ceil_mode
            )
        except ValueError:
            if ceil_mode and not found:
                raise
            continue
        if g.y_shape == grad_y.shape:
            return g
        found.append(g)
    _check_shape(grad_y, "grad_y", found[0].y_shape)
    return found[0]


def _pool_input(x: Array) -> Array:
    """The pooling kernels walk along channels or along rows without gaps."""
    return dense(x) if is_channels_last(x) else x


def _pool_target(y: Array, x: Array) -> Array:
    """`y` if the kernels can write to it as it lies, else a buffer in x's order."""
    if is_channels_last(x):
        if is_channels_last(y) and y.strides[1] == y.itemsize:
            return y
        return empty(y.shape, y.dtype, True)
    if y.strides[3] == y.itemsize:
        return y
    return np.empty(y.shape, y.dtype)


def _finish(y: Array, target: Array) -> None:
    if target is not y:
        y[...] = target


def _pool_error(grad_y: Array, grad_x: Array) -> Array:
    """`grad_y` in an order that the backward can read into `grad_x`."""
    if is_channels_last(grad_y) and grad_x.strides[1] == grad_x.itemsize:
        return dense(grad_y)
    if grad_y.strides[3] == grad_y.itemsize:
        return grad_y
    return np.ascontiguousarray(grad_y)
