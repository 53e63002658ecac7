"""Max and average pooling, each forward beside its backward."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from .. import _pool
from .._arrays import (
    checked_out,
    contiguous,
    dense,
    empty,
    images,
    is_channels_last,
    new_like,
    ordered,
    same_order,
)
from .._geometry import PoolGeometry, checked_size
from ._checks import Array, Padding, Size, check_shape, image_shape

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
]


@overload
def max_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_argmax: Literal[False] = False,
    return_indices: Literal[False] = False,
    out: Array | None = None,
) -> Array: ...
@overload
def max_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_argmax: bool = False,
    return_indices: bool = False,
    out: Array | None = None,
) -> tuple[Array, Array]: ...
def max_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_argmax: bool = False,
    return_indices: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Maximum of each window: a transfer function that passes the winner on.

    Windows are scanned row by row; the first maximum wins, padding never does, and
    NaN wins over numbers (the last NaN of the window owns the gradient). A window
    of -inf alone credits its first pixel.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    kernel_size : int or (int, int)
        Window, (vertical, horizontal).
    stride : int or (int, int), optional
        Pixels from window to window; the kernel size if None.
    padding : int, (h, w), ((top, bottom), (left, right)), or str
        As in `conv2d`; at most half of the kernel.
    dilation : int or (int, int)
        Pixels from one pixel of a window to the next.
    ceil_mode : bool
        Whether a last window may hang over the end of the padded image.
    return_argmax : bool
        Also return the winner's position in its window, row-major: uint8, uint16
        for windows of more than 256 pixels.
    return_indices : bool
        Also return the winner's flat position in the H*W plane: int64.
    out : ndarray, optional
        Where to put the maxima.

    Returns
    -------
    y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
    argmax or indices : ndarray of y's shape, if asked for

    Raises
    ------
    TypeError, ValueError
        A dtype, type or size is not as above, or both positions are asked for.

    See Also
    --------
    max_pool2d_backward
    """
    x, single = images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    if return_argmax and return_indices:
        raise ValueError("return_argmax and return_indices exclude each other")
    if return_argmax and g.r * g.s > 65536:
        raise ValueError(
            f"return_argmax takes windows of at most 65536 pixels, got {g.r}x{g.s}; "
            "use return_indices"
        )
    x = _pool_input(x)
    if out is None:
        y = target = new_like(x, g.y_shape)
    else:
        y = checked_out(out, g.y_shape, x, single, x=x)
        target = _pool_target(y, x)
    if not (return_argmax or return_indices):
        _pool.max_pool2d(g, x, target, None, out is None)
        _finish(y, target)
        return y[0] if single else y
    dtype = np.int32 if return_indices else argmax_dtype(g)
    last = is_channels_last(target)
    position = empty(g.y_shape, dtype, last)
    _pool.max_pool2d(g, x, target, position, out is None)
    _finish(y, target)
    if return_indices:
        indices = empty(g.y_shape, np.int64, last)
        _pool.max_pool2d_indices(g, position, indices)
        position = indices
    return (y[0], position[0]) if single else (y, position)


def argmax_dtype(g: PoolGeometry) -> type:
    """dtype of positions in a window."""
    return np.uint8 if g.r * g.s <= 256 else np.uint16


def max_pool2d_backward(
    grad_y: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    out: Array | None = None,
) -> Array:
    """Gradient of `max_pool2d`: the winner gets the window's whole error.

    The winner's weight is one, every other pixel's zero; where windows overlap, a
    pixel that wins several of them gets the sum of their errors.

    Parameters
    ----------
    grad_y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
        Gradient of the loss in the result of `max_pool2d`.
    argmax : ndarray of grad_y's shape
        What `max_pool2d` returned for ``return_argmax`` (uint8 or uint16) or for
        ``return_indices`` (int64), told apart by its dtype.
    x_shape : tuple of int
        Shape of the forward pass's `x`.
    kernel_size, stride, padding, dilation, out
        As in `max_pool2d`.

    Returns
    -------
    ndarray of shape `x_shape`, in the memory order of `grad_y`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; also for positions outside of the window or the plane.
    """
    grad_y, single = images(grad_y, "grad_y")
    x_shape = image_shape(x_shape, single)
    g = _pool_geometry_for(grad_y, x_shape, kernel_size, stride, padding, dilation)
    position = _positions(argmax, grad_y, single, g)
    if out is None:
        grad_x = new_like(grad_y, g.x_shape)
    else:
        grad_x = checked_out(
            out, g.x_shape, grad_y, single, grad_y=grad_y, argmax=argmax
        )
    grad_y = _pool_error(grad_y, grad_x)
    if not same_order(position, grad_y):
        last = is_channels_last(grad_y)
        grad_y = ordered(grad_y, last)
        position = ordered(position, last)
    _pool.max_pool2d_backward(g, grad_y, position, grad_x, out is None)
    return grad_x[0] if single else grad_x


_INT64 = np.dtype(np.int64)
_POSITIONS = frozenset((np.dtype(np.uint8), np.dtype(np.uint16), _INT64))


def _positions(argmax: Any, grad_y: Array, single: bool, g: PoolGeometry) -> Array:
    """Check the winners' positions; no value may point outside."""
    if not isinstance(argmax, np.ndarray):
        raise TypeError(f"argmax must be a numpy array, got {type(argmax).__name__}")
    if argmax.dtype not in _POSITIONS:
        raise TypeError(
            "argmax must be uint8 or uint16 (return_argmax) or int64 "
            f"(return_indices), got {argmax.dtype}"
        )
    wanted = g.y_shape[1:] if single else g.y_shape
    if argmax.shape != wanted:
        raise ValueError(
            f"argmax must have grad_y's shape {wanted}, got {argmax.shape}"
        )
    flat = argmax.dtype == _INT64
    limit = g.h * g.w if flat else g.r * g.s
    if argmax.size:
        low, high = _range(argmax)
        if low < 0 or high >= limit:
            bad = low if low < 0 else high
            place = (
                f"the plane of {g.h}x{g.w} pixels"
                if flat
                else f"the window of {g.r}x{g.s} pixels"
            )
            raise ValueError(f"argmax has position {bad}, outside of {place}")
    return argmax[None] if single else argmax


def _range(x: Array) -> tuple[int, int]:
    """The least and the largest of some integers; 0 for the least if unsigned."""
    signed = x.dtype == _INT64
    if x.size <= 4096:  # to ask for the place takes a fifth of a ufunc's call
        return x.item(x.argmin()) if signed else 0, x.item(x.argmax())
    low = int(np.minimum.reduce(x, axis=None)) if signed else 0
    return low, int(np.maximum.reduce(x, axis=None))


# --- average pooling -----------------------------------------------------------


def avg_pool2d(
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Mean of each window.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    kernel_size, stride, padding, ceil_mode
        As in `max_pool2d`.
    count_include_pad : bool
        Whether the divisor counts padding (never the overhang of `ceil_mode`).
    divisor_override : int, optional
        Divides every sum, instead of the number of pixels.
    out : ndarray, optional
        Where to put the result.

    Returns
    -------
    ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)

    Raises
    ------
    TypeError, ValueError
        A dtype, type or size is not as above.

    See Also
    --------
    avg_pool2d_backward
    """
    x, single = images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, 1, ceil_mode)
    divisor = _divisor(divisor_override)
    x = _pool_input(x)
    if out is None:
        y = target = new_like(x, g.y_shape)
    else:
        y = checked_out(out, g.y_shape, x, single, x=x)
        target = _pool_target(y, x)
    _pool.avg_pool2d(g, x, target, bool(count_include_pad), divisor, out is None)
    _finish(y, target)
    return y[0] if single else y


def avg_pool2d_backward(
    grad_y: Array,
    x_shape: tuple[int, ...],
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `avg_pool2d`: every pixel of a window gets its share of the error.

    Parameters
    ----------
    grad_y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
        Gradient of the loss in the result of `avg_pool2d`.
    x_shape : tuple of int
        Shape of the forward pass's `x`.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, out
        As in `avg_pool2d`.

    Returns
    -------
    ndarray of shape `x_shape`, in the memory order of `grad_y`.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`; also if `grad_y` has not the shape of the forward's result.
    """
    grad_y, single = images(grad_y, "grad_y")
    x_shape = image_shape(x_shape, single)
    g = PoolGeometry.of(x_shape, kernel_size, stride, padding, 1, ceil_mode)
    check_shape(grad_y, "grad_y", g.y_shape)
    divisor = _divisor(divisor_override)
    if out is None:
        grad_x = new_like(grad_y, g.x_shape)
    else:
        grad_x = checked_out(out, g.x_shape, grad_y, single, grad_y=grad_y)
    grad_y = _pool_error(grad_y, grad_x)
    _pool.avg_pool2d_backward(
        g, grad_y, grad_x, bool(count_include_pad), divisor, out is None
    )
    return grad_x[0] if single else grad_x


# --- shared --------------------------------------------------------------------


def _divisor(override: Any) -> int:
    return 0 if override is None else checked_size(override, "divisor_override", 1)


def _pool_geometry_for(
    grad_y: Array,
    x_shape: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> PoolGeometry:
    """The geometry that gives grad_y's shape, with ceil_mode or without."""
    found: list[PoolGeometry] = []
    for ceil_mode in (False, True):
        try:
            g = PoolGeometry.of(
                x_shape, kernel_size, stride, padding, dilation, ceil_mode
            )
        except ValueError:
            if ceil_mode and not found:
                raise
            continue
        if g.y_shape == grad_y.shape:
            return g
        found.append(g)
    check_shape(grad_y, "grad_y", found[0].y_shape)
    return found[0]


def _pool_input(x: Array) -> Array:
    """The pooling kernels walk along channels or along rows without gaps."""
    return dense(x) if is_channels_last(x) else x


def _pool_target(y: Array, x: Array) -> Array:
    """`y` if the kernels can write to it as it lies, else a buffer in x's order."""
    if is_channels_last(x):
        if is_channels_last(y) and y.strides[1] == y.itemsize:
            return y
        return empty(y.shape, y.dtype, True)
    if y.strides[3] == y.itemsize:
        return y
    return np.empty(y.shape, y.dtype)


def _finish(y: Array, target: Array) -> None:
    if target is not y:
        y[...] = target


def _pool_error(grad_y: Array, grad_x: Array) -> Array:
    """`grad_y` in an order that the backward can read into `grad_x`."""
    if is_channels_last(grad_y) and grad_x.strides[1] == grad_x.itemsize:
        return dense(grad_y)
    if grad_y.strides[3] == grad_y.itemsize:
        return grad_y
    return contiguous(grad_y)
