"""Linear maps: convolutions of images of one row, N pixels wide.

The compiled passes take a matrix (N, C) for the image (1, C, 1, N) that it is.
"""

from __future__ import annotations

import numpy as np

from .. import _conv
from .._arrays import contiguous, matrix, same_dtype, vector
from .._geometry import ConvGeometry
from ._checks import Array

__all__ = [
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
]


def _geometry(n: int, c: int, k: int) -> ConvGeometry:
    return ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))


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
    n, c = x.shape
    k, inputs = weight.shape
    if c != inputs:
        raise ValueError(f"weight has {inputs} inputs, x has {c}")
    if bias is not None:
        bias = vector(bias, "bias", k, f"weight has {k}")
    if x.dtype is not weight.dtype or not (bias is None or x.dtype is bias.dtype):
        same_dtype(x, "x", weight=weight, bias=bias)
    y = np.empty((n, k), x.dtype)
    if n:
        _conv.conv2d(_geometry(n, c, k), x, contiguous(weight), bias, y)
    return y


def linear_backward_input(grad_y: Array, weight: Array) -> Array:
    """Gradient of `linear` in its input: ``grad_y @ weight``, (N, C)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    weight = matrix(weight, "weight", "(K, C)")
    n, k = grad_y.shape
    outputs, c = weight.shape
    if k != outputs:
        raise ValueError(f"weight has {outputs} outputs, grad_y has {k}")
    if grad_y.dtype is not weight.dtype:
        same_dtype(grad_y, "grad_y", weight=weight)
    grad_x = np.empty((n, c), grad_y.dtype)
    if n:
        g = _geometry(n, c, k)
        _conv.conv2d_backward_input(g, grad_y, contiguous(weight), grad_x)
    return grad_x


def linear_backward_weight(grad_y: Array, x: Array) -> Array:
    """Gradient of `linear` in its weight: ``grad_y.T @ x``, (K, C)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    x = matrix(x, "x", "(N, C)")
    rows, k = grad_y.shape
    n, c = x.shape
    if rows != n:
        raise ValueError(f"grad_y has {rows} rows, x has {n}")
    if grad_y.dtype is not x.dtype:
        same_dtype(grad_y, "grad_y", x=x)
    grad_weight = np.zeros((k, c), x.dtype)
    if n:
        _conv.conv2d_backward_weight(_geometry(n, c, k), grad_y, x, grad_weight)
    return grad_weight


def linear_backward_bias(grad_y: Array) -> Array:
    """Gradient of `linear` in its bias: the sum over the batch, (K,)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    grad_bias = np.zeros(grad_y.shape[1], grad_y.dtype)
    if grad_y.shape[0]:
        _conv.conv2d_backward_bias(grad_y, grad_bias)
    return grad_bias
