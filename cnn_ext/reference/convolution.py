"""Convolution, and its three backwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn_ext._geometry import ConvGeometry
from cnn_ext.reference._arrays import Array, batched, check, deliver, images

__all__ = [
    "channel_groups",
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "taps",
]


def _padded(x: Array, g: ConvGeometry) -> Array:
    """Return `x` with its zero padding around it."""
    sides = (0, 0), (0, 0), (g.top, g.bottom), (g.left, g.right)
    return np.pad(x, sides)


def taps(g: ConvGeometry) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield each tap (r, s) with the rows and columns of the padded image under it."""
    for r in range(g.r):
        for s in range(g.s):
            row, column = r * g.dilation_h, s * g.dilation_w
            yield (
                r,
                s,
                slice(row, row + (g.out_h - 1) * g.stride_h + 1, g.stride_h),
                slice(column, column + (g.out_w - 1) * g.stride_w + 1, g.stride_w),
            )


def channel_groups(g: ConvGeometry) -> Iterator[tuple[slice, slice]]:
    """Yield the output and the input channels of each group."""
    k, c = g.k // g.groups, g.c // g.groups
    for group in range(g.groups):
        yield slice(group * k, (group + 1) * k), slice(group * c, (group + 1) * c)


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the cross-correlation of `x` with `weight`, plus `bias`.

    ``y[n,k,i,j] = bias[k] + sum over c,r,s of weight[k,c,r,s]
    * x[n, c, i*stride + r*dilation - top, j*stride + s*dilation - left]``
    where c runs over the channels of k's group, and pixels outside of the image are
    zero. With ``activation="relu"`` a sum that is not above zero becomes zero; with
    "relu6" one above 6 becomes 6 too.

    See Also
    --------
    conv2d_backward_input, conv2d_backward_weight, conv2d_backward_bias
    """
    x, single = images(x, "x")
    weight = np.asarray(weight, dtype=np.float64)
    g = ConvGeometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    padded = _padded(x, g)
    y = np.zeros(g.y_shape)
    for r, s, rows, columns in taps(g):
        for k, c in channel_groups(g):
            y[:, k] += np.einsum(
                "kc,ncij->nkij", weight[k, :, r, s], padded[:, c, rows, columns]
            )
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        check(bias, (g.k,), "bias")
        y += bias[:, None, None]
    if activation is not None:
        y[y <= 0] = 0
    if activation == "relu6":
        y[y > 6] = 6
    return deliver(y, single, out)


def conv2d_backward_input(
    grad_y: ArrayLike,
    weight: ArrayLike,
    x_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the gradient of `conv2d` with respect to `x`, of shape `x_shape`.

    Each error goes back through the weights that its output was made with:
    ``grad_x[n, c, i*stride + r*dilation - top, j*stride + s*dilation - left]
    += weight[k,c,r,s] * grad_y[n,k,i,j]`` for all n, k, c, i, j, r, s.
    What falls into the padding is dropped.
    """
    grad_y, single = images(grad_y, "grad_y")
    weight = np.asarray(weight, dtype=np.float64)
    x_shape = batched(x_shape, single)
    g = ConvGeometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    check(grad_y, g.y_shape, "grad_y")
    padded = _padded(np.zeros(g.x_shape), g)
    for r, s, rows, columns in taps(g):
        for k, c in channel_groups(g):
            padded[:, c, rows, columns] += np.einsum(
                "kc,nkij->ncij", weight[k, :, r, s], grad_y[:, k]
            )
    grad_x = padded[:, :, g.top : g.top + g.h, g.left : g.left + g.w]
    return deliver(grad_x.copy(), single, out)


def conv2d_backward_weight(
    grad_y: ArrayLike,
    x: ArrayLike,
    weight_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the gradient of `conv2d` with respect to `weight`.

    ``grad_weight[k,c,r,s] = sum over n,i,j of grad_y[n,k,i,j]
    * x[n, c, i*stride + r*dilation - top, j*stride + s*dilation - left]``.
    """
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    if single != single_x:
        raise ValueError("grad_y and x must have the same number of axes")
    g = ConvGeometry.of(x.shape, weight_shape, stride, padding, dilation, groups)
    check(grad_y, g.y_shape, "grad_y")
    padded = _padded(x, g)
    grad_weight = np.zeros(g.weight_shape)
    for r, s, rows, columns in taps(g):
        for k, c in channel_groups(g):
            grad_weight[k, :, r, s] = np.einsum(
                "nkij,ncij->kc", grad_y[:, k], padded[:, c, rows, columns]
            )
    return deliver(grad_weight, False, out)


def conv2d_backward_bias(
    grad_y: ArrayLike, *, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return the gradient of `conv2d` with respect to `bias`.

    ``grad_bias[k] = sum over n,i,j of grad_y[n,k,i,j]``.
    """
    grad_y, _ = images(grad_y, "grad_y")
    return deliver(grad_y.sum(axis=(0, 2, 3)), False, out)
