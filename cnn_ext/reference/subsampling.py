"""LeCun's subsampling, and its backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn_ext._geometry import PoolGeometry
from cnn_ext.reference._arrays import check, deliver, images
from cnn_ext.reference.average_pooling import windows

__all__ = ["subsample2d", "subsample2d_backward"]


def subsample2d(
    x: ArrayLike,
    gain: ArrayLike,
    bias: ArrayLike,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
) -> NDArray[Any]:
    """Return ``gain[c] * (sum of the window) + bias[c]`` of each window.

    LeCun et al., Gradient-based learning applied to document recognition (1998),
    section II.B, without the squashing function that follows.

    See Also
    --------
    subsample2d_backward
    """
    x, single = images(x, "x")
    gain, bias = np.asarray(gain, np.float64), np.asarray(bias, np.float64)
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding)
    check(gain, (g.c,), "gain")
    check(bias, (g.c,), "bias")
    y = np.empty(g.y_shape)
    for i, j, rows, columns in windows(g):
        y[:, :, i, j] = gain * x[:, :, rows, columns].sum(axis=(2, 3)) + bias
    return deliver(y, single, None)


def subsample2d_backward(
    grad_y: ArrayLike,
    x: ArrayLike,
    gain: ArrayLike,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the gradients of `subsample2d` with respect to `x`, `gain` and `bias`.

    Every pixel of a window gets ``gain[c] * grad_y``; ``grad_gain[c]`` is the sum of
    ``grad_y * (sum of the window)``, and ``grad_bias[c]`` the sum of ``grad_y``, over
    all windows of all images.
    """
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    if single != single_x:
        raise ValueError("grad_y and x must have the same number of axes")
    gain = np.asarray(gain, dtype=np.float64)
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding)
    check(gain, (g.c,), "gain")
    check(grad_y, g.y_shape, "grad_y")
    grad_x, grad_gain = np.zeros(g.x_shape), np.zeros(g.c)
    for i, j, rows, columns in windows(g):
        error = grad_y[:, :, i, j]
        grad_x[:, :, rows, columns] += (gain * error)[:, :, None, None]
        grad_gain += (error * x[:, :, rows, columns].sum(axis=(2, 3))).sum(axis=0)
    return deliver(grad_x, single, None), grad_gain, grad_y.sum(axis=(0, 2, 3))
