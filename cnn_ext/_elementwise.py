"""Passes element by element on whole arrays: the same memory order out as in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _pointwise
from ._arrays import empty, is_channels_last, same_order

__all__ = ["Pass", "activate", "add", "delta", "dense", "in_order_of", "like"]

Array = np.ndarray[Any, Any]


class Pass(NamedTuple):
    """An activation as `cnn_ext._pointwise` knows it.

    Attributes
    ----------
    kind : int
        Of `_pointwise.KINDS`.
    forward : (float, float)
        Its numbers, as `_pointwise.activate` takes them.
    backward : (float, float, float)
        Those of its delta, as `_pointwise.delta` takes them.
    keeps_y : bool
        Whether the delta is worked out from y; else from x. y costs no memory, for
        the layer behind keeps it too, as its input.
    """

    kind: int
    forward: tuple[float, float] = (0.0, 0.0)
    backward: tuple[float, float, float] = (0.0, 0.0, 0.0)
    keeps_y: bool = True


def like(x: Array) -> Array:
    """Return a new array of the shape, dtype and memory order of a dense one."""
    if x.ndim == 4 and is_channels_last(x):
        return empty(x.shape, x.dtype, True)
    return np.empty(x.shape, x.dtype)


def in_order_of(y: Array, x: Array) -> Array:
    """Return `x` itself if it lies in memory as `y` does, else a copy that does."""
    if x.dtype == y.dtype and same_order(x, y) and x.flags.aligned:
        return x
    copy = np.empty_like(y)
    _fill(copy, x)
    return copy


def _fill(to: Array, x: Array) -> None:
    """Copy, in compiled code where it can: it turns images block by block."""
    if (
        x.ndim == 4
        and x.dtype == to.dtype
        and x.flags.aligned
        and not any(step % x.itemsize for step in x.strides)
    ):
        _pointwise.copy(x, to)
    else:
        to[...] = x


def dense(x: Array) -> Array:
    """Return `x` itself if it has no gaps, in either order, else a copy."""
    flags = x.flags
    if flags.aligned and (
        flags.c_contiguous
        or (x.ndim == 4 and x.transpose(0, 2, 3, 1).flags.c_contiguous)
    ):
        return x
    copy = like(x)
    _fill(copy, x)
    return copy


def activate(which: Pass, x: Array) -> tuple[Array, Array]:
    """Return the activation of `x`, and what its delta needs: that, or x."""
    x = dense(x)
    y = like(x)
    _pointwise.activate(which.kind, x, y, *which.forward)
    return y, y if which.keeps_y else x


def delta(which: Pass, grad_y: Array, kept: Array) -> Array:
    """Return the error in front of an activation."""
    kept = dense(kept)
    grad_x = like(kept)
    _pointwise.delta(
        which.kind, in_order_of(kept, grad_y), kept, grad_x, *which.backward
    )
    return grad_x


def add(a: Array, b: Array) -> Array:
    """Return ``a + b``, arrays of one shape."""
    a = dense(a)
    y = like(a)
    _pointwise.add(a, in_order_of(a, b), y)
    return y
