"""Max pooling, and its backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn_ext._geometry import PoolGeometry
from cnn_ext.reference._arrays import batched, check, deliver, images

__all__ = ["max_pool2d", "max_pool2d_backward"]


def _pixels(g: PoolGeometry, i: int, j: int) -> Iterator[tuple[int, int, int]]:
    """Yield (tap, row, column) of the real pixels of window (i, j), row-major."""
    for r in range(g.r):
        for s in range(g.s):
            row = i * g.stride_h + r * g.dilation_h - g.top
            column = j * g.stride_w + s * g.dilation_w - g.left
            if 0 <= row < g.h and 0 <= column < g.w:
                yield r * g.s + s, row, column


def _argmax_dtype(g: PoolGeometry) -> type[np.unsignedinteger[Any]]:
    if g.r * g.s > 2**16:
        raise ValueError(
            f"kernel_size {g.r}x{g.s} has too many positions for return_argmax; "
            "use return_indices"
        )
    return np.uint8 if g.r * g.s <= 2**8 else np.uint16


def max_pool2d(
    x: ArrayLike,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_argmax: bool = False,
    return_indices: bool = False,
    out: NDArray[Any] | None = None,
) -> Any:
    """Return the largest pixel of each window.

    A window is scanned row by row; padding never takes part. The first maximum
    wins; a NaN wins over all before it, so that the last NaN of the window is the
    winner; where all pixels are -inf it is the first of them.

    With ceil_mode a last window may hang over the bottom and right edges, unless it
    would start at or beyond H + top.

    Returns
    -------
    y : ndarray of float64
    argmax : ndarray of uint8, or of uint16 for windows of more than 256 positions
        If asked for by `return_argmax`: the winners' positions in their windows.
    indices : ndarray of int64
        If asked for by `return_indices`: their positions in the H*W plane.

    See Also
    --------
    max_pool2d_backward
    """
    if return_argmax and return_indices:
        raise ValueError("return_argmax and return_indices exclude each other")
    x, single = images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y = np.empty(g.y_shape)
    argmax = np.zeros(g.y_shape, _argmax_dtype(g) if return_argmax else np.int64)
    indices = np.zeros(g.y_shape, np.int64)
    for i in range(g.out_h):
        for j in range(g.out_w):
            winner = None
            for tap, row, column in _pixels(g, i, j):
                pixel = x[:, :, row, column]
                if winner is None:
                    winner = pixel.copy()
                    wins = np.ones(winner.shape, bool)
                else:
                    wins = (pixel > winner) | np.isnan(pixel)
                winner[wins] = pixel[wins]
                argmax[:, :, i, j][wins] = tap
                indices[:, :, i, j][wins] = row * g.w + column
            y[:, :, i, j] = winner
    y = deliver(y, single, out)
    if not return_argmax and not return_indices:
        return y
    positions = argmax if return_argmax else indices
    return y, positions[0] if single else positions


def max_pool2d_backward(
    grad_y: ArrayLike,
    argmax: NDArray[Any],
    x_shape: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the gradient of `max_pool2d` with respect to `x`, of shape `x_shape`.

    The winner of a window gets its whole error, the other pixels get nothing; a
    pixel that won several windows gets the sum of their errors.

    `argmax` is what `return_argmax` (uint8, uint16) or `return_indices` (int64)
    returned; its dtype tells which. `grad_y` may have ceil_mode's last windows or not.
    """
    grad_y, single = images(grad_y, "grad_y")
    x_shape = batched(x_shape, single)
    argmax = np.asarray(argmax)
    argmax = argmax[None] if single else argmax
    check(argmax, grad_y.shape, "argmax")
    if argmax.dtype not in (np.uint8, np.uint16, np.int64):
        raise TypeError(f"argmax must be uint8, uint16 or int64, got {argmax.dtype}")
    g = PoolGeometry.of(x_shape, kernel_size, stride, padding, dilation, True)
    if grad_y.shape != g.y_shape:
        g = PoolGeometry.of(x_shape, kernel_size, stride, padding, dilation)
    check(grad_y, g.y_shape, "grad_y")
    grad_x = np.zeros(g.x_shape)
    image, channel = np.ogrid[: g.n, : g.c]
    for i in range(g.out_h):
        for j in range(g.out_w):
            position = argmax[:, :, i, j].astype(np.int64)
            if argmax.dtype == np.int64:
                row, column = position // g.w, position % g.w
            else:
                row = i * g.stride_h + position // g.s * g.dilation_h - g.top
                column = j * g.stride_w + position % g.s * g.dilation_w - g.left
            inside = (row >= 0) & (row < g.h) & (column >= 0) & (column < g.w)
            if argmax.dtype != np.int64:
                inside &= position < g.r * g.s
            if not inside.all():
                raise ValueError(f"argmax of window ({i}, {j}) is outside of the image")
            grad_x[image, channel, row, column] += grad_y[:, :, i, j]
    return deliver(grad_x, single, out)
