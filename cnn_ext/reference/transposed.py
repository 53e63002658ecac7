"""Transposed convolution, and its three backwards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn_ext._geometry import TransposedGeometry
from cnn_ext.reference._arrays import Array, batched, check, images
from cnn_ext.reference.convolution import channel_groups, taps

__all__ = [
    "conv_transpose2d",
    "conv_transpose2d_backward_bias",
    "conv_transpose2d_backward_input",
    "conv_transpose2d_backward_weight",
]


def _uncut(g: TransposedGeometry) -> tuple[Array, Array]:
    """Return the result with what the padding cuts off, zeros, and a view without."""
    n, k, h, w = g.y_shape
    top, left = g.conv.top, g.conv.left
    whole = np.zeros((n, k, top + h + g.conv.bottom, left + w + g.conv.right))
    return whole, whole[:, :, top : top + h, left : left + w]


def conv_transpose2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> NDArray[Any]:
    """Lay each pixel's filter, times the pixel, into the result; add `bias`.

    ``x[n,c,i,j] * weight[c,k,r,s]`` adds to
    ``y[n, k, i*stride + r*dilation - top, j*stride + s*dilation - left]``,
    where k runs over the channels of c's group.

    See Also
    --------
    conv_transpose2d_backward_input, conv_transpose2d_backward_weight,
    conv_transpose2d_backward_bias
    """
    x, single = images(x, "x")
    weight = np.asarray(weight, dtype=np.float64)
    g = TransposedGeometry.of(
        x.shape, weight.shape, stride, padding, output_padding, groups, dilation
    )
    whole, y = _uncut(g)
    # the filters of g.conv are our channels of x, its channels those of y
    for r, s, rows, columns in taps(g.conv):
        for c, k in channel_groups(g.conv):
            whole[:, k, rows, columns] += np.einsum(
                "ncij,ck->nkij", x[:, c], weight[c, :, r, s]
            )
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        check(bias, g.y_shape[1:2], "bias")
        y += bias[:, None, None]
    return y[0] if single else y


def conv_transpose2d_backward_input(
    grad_y: ArrayLike,
    weight: ArrayLike,
    x_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> NDArray[Any]:
    """Return the gradient of `conv_transpose2d` with respect to `x`.

    ``grad_x[n,c,i,j] = sum over k,r,s of weight[c,k,r,s]
    * grad_y[n, k, i*stride + r*dilation - top, j*stride + s*dilation - left]``.
    """
    grad_y, single = images(grad_y, "grad_y")
    weight = np.asarray(weight, dtype=np.float64)
    x_shape = batched(x_shape, single)
    g = TransposedGeometry.of(
        x_shape, weight.shape, stride, padding, output_padding, groups, dilation
    )
    check(grad_y, g.y_shape, "grad_y")
    whole, inside = _uncut(g)
    inside[...] = grad_y
    grad_x = np.zeros(x_shape)
    for r, s, rows, columns in taps(g.conv):
        for c, k in channel_groups(g.conv):
            grad_x[:, c] += np.einsum(
                "nkij,ck->ncij", whole[:, k, rows, columns], weight[c, :, r, s]
            )
    return grad_x[0] if single else grad_x


def conv_transpose2d_backward_weight(
    grad_y: ArrayLike,
    x: ArrayLike,
    weight_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> NDArray[Any]:
    """Return the gradient of `conv_transpose2d` with respect to `weight`.

    ``grad_weight[c,k,r,s] = sum over n,i,j of x[n,c,i,j]
    * grad_y[n, k, i*stride + r*dilation - top, j*stride + s*dilation - left]``.
    """
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    if single != single_x:
        raise ValueError("grad_y and x must have the same number of axes")
    g = TransposedGeometry.of(
        x.shape, weight_shape, stride, padding, output_padding, groups, dilation
    )
    check(grad_y, g.y_shape, "grad_y")
    whole, inside = _uncut(g)
    inside[...] = grad_y
    grad_weight = np.zeros(g.conv.weight_shape)
    for r, s, rows, columns in taps(g.conv):
        for c, k in channel_groups(g.conv):
            grad_weight[c, :, r, s] = np.einsum(
                "ncij,nkij->ck", x[:, c], whole[:, k, rows, columns]
            )
    return grad_weight


def conv_transpose2d_backward_bias(grad_y: ArrayLike) -> NDArray[Any]:
    """Return the gradient of `conv_transpose2d` with respect to `bias`.

    ``grad_bias[k] = sum over n,i,j of grad_y[n,k,i,j]``.
    """
    grad_y, _ = images(grad_y, "grad_y")
    grad_bias: Array = grad_y.sum(axis=(0, 2, 3))
    return grad_bias
