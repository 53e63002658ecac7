"""Transposed convolution, and its backwards.

It is the adjoint of a convolution, so it has no kernels of its own: its forward is
that convolution's backward_input, its backward_input that convolution's forward, and
its backward_weight that convolution's with image and error exchanged.
"""

from __future__ import annotations

import numpy as np

from .. import _conv
from .._arrays import contiguous, floats, images, new_like, same_dtype, vector
from .._geometry import TransposedGeometry
from ._checks import Array, Cut, Size, check_both, check_shape, image_shape
from .convolution import conv2d_backward_bias

__all__ = [
    "conv_transpose2d",
    "conv_transpose2d_backward_bias",
    "conv_transpose2d_backward_input",
    "conv_transpose2d_backward_weight",
]


def _reached(y: Array, g: TransposedGeometry) -> Array:
    """The part of y that the filters reach."""
    return y[:, :, : g.conv.h, : g.conv.w]


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Cut = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
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
    channels = g.y_shape[1]
    if bias is not None:
        bias = vector(bias, "bias", channels, f"y has {channels} channels")
    same_dtype(x, "x", weight=weight, bias=bias)
    y = new_like(x, g.y_shape)
    y[:, :, g.conv.h :] = y[:, :, :, g.conv.w :] = 0
    # y[C x P] = weight^T[K x CRS] . x, scattered: the error's way through conv2d
    _conv.conv2d_backward_input(g.conv, x, contiguous(weight), _reached(y, g))
    if bias is not None:
        y += bias.reshape(1, -1, 1, 1)
    return y[0] if single else y


def conv_transpose2d_backward_input(
    grad_y: Array,
    weight: Array,
    x_shape: tuple[int, ...],
    *,
    stride: Size = 1,
    padding: Cut = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
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
    x_shape = image_shape(x_shape, single)
    g = TransposedGeometry.of(
        x_shape, weight.shape, stride, padding, output_padding, groups, dilation
    )
    check_shape(grad_y, "grad_y", g.y_shape)
    same_dtype(grad_y, "grad_y", weight=weight)
    grad_x = new_like(grad_y, g.conv.y_shape)
    _conv.conv2d(g.conv, _reached(grad_y, g), contiguous(weight), None, grad_x)
    return grad_x[0] if single else grad_x


def conv_transpose2d_backward_weight(
    grad_y: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    *,
    stride: Size = 1,
    padding: Cut = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
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
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    check_both(x, single_x, grad_y, single)
    g = TransposedGeometry.of(
        x.shape, weight_shape, stride, padding, output_padding, groups, dilation
    )
    check_shape(grad_y, "grad_y", g.y_shape)
    same_dtype(grad_y, "grad_y", x=x)
    grad_weight = np.empty(g.conv.weight_shape, x.dtype)
    # the convolution's image is our error, its error our image
    _conv.conv2d_backward_weight(g.conv, x, _reached(grad_y, g), grad_weight)
    return grad_weight


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
    return conv2d_backward_bias(grad_y)
