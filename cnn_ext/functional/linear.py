"""Linear maps: convolutions of images of one row, N pixels wide."""

from __future__ import annotations

import numpy as np

from .. import _conv
from .._arrays import matrix, same_dtype, vector
from .._geometry import ConvGeometry
from ._checks import Array

__all__ = [
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
]


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
