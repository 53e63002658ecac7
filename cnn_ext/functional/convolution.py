"""Convolution: forward, its three backwards, and what was chosen for them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .. import _conv
from .._arrays import (
    check_out,
    checked_out,
    contiguous,
    floats,
    images,
    new_like,
    same_dtype,
    vector,
)
from .._geometry import ConvGeometry, shown
from ._checks import (
    Array,
    Padding,
    Size,
    activation_code,
    check_both,
    check_shape,
    check_sizes,
    image_shape,
)

__all__ = [
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "explain_conv2d",
]


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Literal["relu", "relu6"] | None = None,
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
    activation : {None, "relu", "relu6"}
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
    if x.dtype is not weight.dtype or not (bias is None or x.dtype is bias.dtype):
        same_dtype(x, "x", weight=weight, bias=bias)
    end = activation_code(activation) if activation is not None else 0
    if out is None:
        y = new_like(x, g.y_shape)
    else:
        y = checked_out(out, g.y_shape, x, single, x=x, weight=weight, bias=bias)
    _conv.conv2d(g, x, contiguous(weight), bias, y, end)
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
    x_shape = image_shape(x_shape, single)
    g = ConvGeometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    check_shape(grad_y, "grad_y", g.y_shape)
    if grad_y.dtype is not weight.dtype:
        same_dtype(grad_y, "grad_y", weight=weight)
    if out is None:
        grad_x = new_like(grad_y, g.x_shape)
    else:
        grad_x = checked_out(
            out, g.x_shape, grad_y, single, grad_y=grad_y, weight=weight
        )
    _conv.conv2d_backward_input(g, grad_y, contiguous(weight), grad_x)
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
    check_both(x, single_x, grad_y, single)
    g = ConvGeometry.of(x.shape, weight_shape, stride, padding, dilation, groups)
    check_shape(grad_y, "grad_y", g.y_shape)
    if grad_y.dtype is not x.dtype:
        same_dtype(grad_y, "grad_y", x=x)
    if out is None:
        grad_weight = np.empty(g.weight_shape, x.dtype)
    else:
        check_out(out, g.weight_shape, x.dtype, grad_y=grad_y, x=x)
        grad_weight = out
    target = contiguous(grad_weight)
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
    check_sizes(grad_y, "grad_y")
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
    "columns": "one matrix product with the weights as they lie",
    "depthwise": "one channel a group: vectors are channels",
    "depthwise-planes": "one channel a group: vectors are columns of a row",
    "dots": "few filters: vectors are channels, the lanes of each sum are added",
    "grouped": "2, 4 or 8 channels a group, as many out: vectors are channels",
    "winograd": "2x2, 3x3, 5x5, or 2, 3, 5 or 7 taps along an axis, with stride 1, or "
    "3x3 to 6x6 with stride 2, and enough channels, filters and pixels: minimal "
    "filtering on patches of pixels",
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
        f"{which:<16}{name:<17}{_WHY[name]}"
        for which, name in zip(passes, names, strict=True)
    )
