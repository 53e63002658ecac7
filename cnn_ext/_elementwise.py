"""Activations on whole arrays: the same memory order out as in, then one kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _pointwise
from ._arrays import empty, is_channels_last, same_order

__all__ = ["quadratic_backward", "relu", "relu_backward"]

Array = np.ndarray[Any, Any]


def _like(x: Array) -> Array:
    if x.ndim == 4 and is_channels_last(x):
        return empty(x.shape, x.dtype, True)
    return np.empty(x.shape, x.dtype)


def _in_order_of(y: Array, x: Array) -> Array:
    """`x` itself if it lies in memory as `y` does, else a copy that does."""
    if x.dtype == y.dtype and same_order(x, y):
        return x
    copy = np.empty_like(y)
    copy[...] = x
    return copy


def _dense(x: Array) -> Array:
    """`x` itself if it has no gaps, in either order, else a copy."""
    if x.flags.c_contiguous or (
        x.ndim == 4 and x.transpose(0, 2, 3, 1).flags.c_contiguous
    ):
        return x
    copy = _like(x)
    copy[...] = x
    return copy


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``; NaN stays NaN."""
    x = _dense(x)
    y = _like(x)
    _pointwise.relu(x, y)
    return y


def relu_backward(grad_y: Array, y: Array) -> Array:
    """Return the errors of the units that were on."""
    y = _dense(y)
    grad_x = _like(y)
    _pointwise.relu_backward(_in_order_of(y, grad_y), y, grad_x)
    return grad_x


def quadratic_backward(grad_y: Array, y: Array, a: float, b: float, c: float) -> Array:
    """Return ``grad_y * (a + b*y + c*y^2)``: the delta of a sigmoid-type unit."""
    y = _dense(y)
    grad_x = _like(y)
    _pointwise.quadratic_backward(_in_order_of(y, grad_y), y, grad_x, a, b, c)
    return grad_x
