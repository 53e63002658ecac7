"""Linear maps: convolutions with one tap of images of one row.

Pixels are the rows of x; in the gradient of x the columns of the weights, which so need
no packing. A single row has passes of its own.
"""

from __future__ import annotations

import numpy as np

from .. import _conv, _row
from .._arrays import contiguous, matrix, same_dtype, vector
from .._geometry import ConvGeometry
from ._checks import Array

__all__ = [
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
]


def as_row(x: Array) -> Array:
    """A matrix as one image: a pixel a row."""
    return x.T[None, :, None, :]


def as_planes(x: Array) -> Array:
    """A matrix as one image: a channel a row, a pixel a column."""
    return x[None, :, None, :]


def as_filters(x: Array) -> Array:
    """A matrix as filters of one tap: a filter a row."""
    return x[:, :, None, None]


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
    if n == 1:
        _row.forward(contiguous(x), contiguous(weight), bias, y)
    elif n:
        g = ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))
        w = as_filters(contiguous(weight))
        _conv.conv2d(g, as_row(x), w, bias, as_row(y))
    return y


def linear_backward_input(grad_y: Array, weight: Array) -> Array:
    """Gradient of `linear` in its input: ``grad_y @ weight``, (N, C)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    weight = matrix(weight, "weight", "(K, C)")
    if grad_y.shape[1] != weight.shape[0]:
        raise ValueError(
            f"weight has {weight.shape[0]} outputs, grad_y has {grad_y.shape[1]}"
        )
    if grad_y.dtype is not weight.dtype:
        same_dtype(grad_y, "grad_y", weight=weight)
    n, (k, c) = grad_y.shape[0], weight.shape
    grad_x = np.empty((n, c), grad_y.dtype)
    if n == 1:
        _row.backward_input(contiguous(grad_y), contiguous(weight), grad_x)
    elif n:
        g = ConvGeometry.of((1, k, 1, c), (n, k, 1, 1))
        filters = as_filters(contiguous(grad_y))
        _conv.conv2d(g, as_planes(weight), filters, None, as_planes(grad_x))
    return grad_x


def linear_backward_weight(grad_y: Array, x: Array) -> Array:
    """Gradient of `linear` in its weight: ``grad_y.T @ x``, (K, C)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    x = matrix(x, "x", "(N, C)")
    if grad_y.shape[0] != x.shape[0]:
        raise ValueError(f"grad_y has {grad_y.shape[0]} rows, x has {x.shape[0]}")
    if grad_y.dtype is not x.dtype:
        same_dtype(grad_y, "grad_y", x=x)
    (n, c), k = x.shape, grad_y.shape[1]
    grad_weight = np.zeros((k, c), x.dtype)
    if n == 1:
        _row.backward_weight(contiguous(grad_y), contiguous(x), grad_weight)
    elif n:
        g = ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))
        rows = as_row(grad_y), as_row(x)
        _conv.conv2d_backward_weight(g, *rows, as_filters(grad_weight))
    return grad_weight


def linear_backward_bias(grad_y: Array) -> Array:
    """Gradient of `linear` in its bias: the sum over the batch, (K,)."""
    grad_y = matrix(grad_y, "grad_y", "(N, K)")
    grad_bias = np.zeros(grad_y.shape[1], grad_y.dtype)
    if grad_y.shape[0]:
        _conv.conv2d_backward_bias(as_row(grad_y), grad_bias)
    return grad_bias
