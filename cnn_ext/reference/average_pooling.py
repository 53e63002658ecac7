"""Average pooling, and its backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn_ext._geometry import PoolGeometry
from cnn_ext.reference._arrays import Array, batched, check, deliver, images

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "windows",
]


def windows(g: PoolGeometry) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield each window (i, j) with the rows and columns of its real pixels."""
    for i in range(g.out_h):
        top = i * g.stride_h - g.top
        for j in range(g.out_w):
            left = j * g.stride_w - g.left
            yield (
                i,
                j,
                slice(max(top, 0), min(top + g.r, g.h)),
                slice(max(left, 0), min(left + g.s, g.w)),
            )


def _divisors(
    g: PoolGeometry, count_include_pad: bool, divisor_override: float | None
) -> Array:
    """Return what the sum of each window is divided by, (H_out, W_out)."""
    divisors = np.empty((g.out_h, g.out_w))
    for i, j, rows, columns in windows(g):
        if divisor_override is not None:
            divisors[i, j] = divisor_override
        elif count_include_pad:
            # the padding counts, what ceil_mode lets hang over it does not
            top, left = i * g.stride_h - g.top, j * g.stride_w - g.left
            height = min(top + g.r, g.h + g.bottom) - top
            width = min(left + g.s, g.w + g.right) - left
            divisors[i, j] = height * width
        else:
            divisors[i, j] = (rows.stop - rows.start) * (columns.stop - columns.start)
    return divisors


def avg_pool2d(
    x: ArrayLike,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the average of each window: the sum of its pixels by a divisor.

    The divisor is `divisor_override` if given; else the pixels of the window, with
    the padding under it if `count_include_pad`, but never with what ceil_mode lets
    hang over the padded image.

    See Also
    --------
    avg_pool2d_backward
    """
    if divisor_override is not None and not divisor_override:
        raise ValueError("divisor_override must not be zero")
    x, single = images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(g.y_shape)
    for i, j, rows, columns in windows(g):
        y[:, :, i, j] = x[:, :, rows, columns].sum(axis=(2, 3))
    y /= _divisors(g, count_include_pad, divisor_override)
    return deliver(y, single, out)


def avg_pool2d_backward(
    grad_y: ArrayLike,
    x_shape: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the gradient of `avg_pool2d` with respect to `x`, of shape `x_shape`.

    Every pixel of a window gets the window's error by the window's divisor; what
    falls to the padding is dropped.
    """
    if divisor_override is not None and not divisor_override:
        raise ValueError("divisor_override must not be zero")
    grad_y, single = images(grad_y, "grad_y")
    x_shape = batched(x_shape, single)
    g = PoolGeometry.of(x_shape, kernel_size, stride, padding, 1, ceil_mode)
    check(grad_y, g.y_shape, "grad_y")
    shares = grad_y / _divisors(g, count_include_pad, divisor_override)
    grad_x = np.zeros(g.x_shape)
    for i, j, rows, columns in windows(g):
        grad_x[:, :, rows, columns] += shares[:, :, i, j, None, None]
    return deliver(grad_x, single, out)
