"""The definition of right: every operator in plain float64 numpy.

The functions have the names, the parameters and the meaning of those of
`cnn_ext.functional`, which documents them in full; but nothing here is fast. Each is
the formula of its docstring, written as loops over kernel taps or over windows. The
tests compare the compiled operators with these.

Whatever dtype comes in, the result is float64 (positions of winners are integers).
Images are (N, C, H, W), or (C, H, W) for a single one, which is returned so. What
makes no sense raises ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._geometry import ConvGeometry, PoolGeometry

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "max_pool2d",
    "max_pool2d_backward",
    "subsample2d",
    "subsample2d_backward",
]

Array = NDArray[np.float64]


# -- arrays in, arrays out ----------------------------------------------------------


def _images(x: ArrayLike, name: str) -> tuple[Array, bool]:
    """Return `x` as float64 (N, C, H, W), and whether it was a single image."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{name} must have axes (N, C, H, W) or (C, H, W), got {array.shape}"
        )
    return (array[None], True) if array.ndim == 3 else (array, False)


def _batched(shape: Any, single: bool) -> tuple[int, ...]:
    """Return `x_shape` with a batch axis; `single` says what grad_y came as."""
    sizes = tuple(shape)
    if len(sizes) != (3 if single else 4):
        raise ValueError(f"x_shape must have as many axes as grad_y, got {sizes}")
    return (1, *sizes) if single else sizes


def _check(array: NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")


def _deliver(result: Array, single: bool, out: NDArray[Any] | None) -> NDArray[Any]:
    """Return `result`, without the batch axis if `single`, in `out` if given."""
    result = result[0] if single else result
    if out is None:
        return result
    _check(out, result.shape, "out")
    out[...] = result
    return out


# -- convolution --------------------------------------------------------------------


def _padded(x: Array, g: ConvGeometry) -> Array:
    """Return `x` with its zero padding around it."""
    sides = (0, 0), (0, 0), (g.top, g.bottom), (g.left, g.right)
    return np.pad(x, sides)


def _taps(g: ConvGeometry) -> Iterator[tuple[int, int, slice, slice]]:
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


def _groups(g: ConvGeometry) -> Iterator[tuple[slice, slice]]:
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
    zero. With ``activation="relu"`` a sum that is not above zero becomes zero.

    See Also
    --------
    conv2d_backward_input, conv2d_backward_weight, conv2d_backward_bias
    """
    x, single = _images(x, "x")
    weight = np.asarray(weight, dtype=np.float64)
    g = ConvGeometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    padded = _padded(x, g)
    y = np.zeros(g.y_shape)
    for r, s, rows, columns in _taps(g):
        for k, c in _groups(g):
            y[:, k] += np.einsum(
                "kc,ncij->nkij", weight[k, :, r, s], padded[:, c, rows, columns]
            )
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        _check(bias, (g.k,), "bias")
        y += bias[:, None, None]
    if activation == "relu":
        y[y <= 0] = 0
    return _deliver(y, single, out)


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
    grad_y, single = _images(grad_y, "grad_y")
    weight = np.asarray(weight, dtype=np.float64)
    x_shape = _batched(x_shape, single)
    g = ConvGeometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    _check(grad_y, g.y_shape, "grad_y")
    padded = _padded(np.zeros(g.x_shape), g)
    for r, s, rows, columns in _taps(g):
        for k, c in _groups(g):
            padded[:, c, rows, columns] += np.einsum(
                "kc,nkij->ncij", weight[k, :, r, s], grad_y[:, k]
            )
    grad_x = padded[:, :, g.top : g.top + g.h, g.left : g.left + g.w]
    return _deliver(grad_x.copy(), single, out)


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
    grad_y, single = _images(grad_y, "grad_y")
    x, single_x = _images(x, "x")
    if single != single_x:
        raise ValueError("grad_y and x must have the same number of axes")
    g = ConvGeometry.of(x.shape, weight_shape, stride, padding, dilation, groups)
    _check(grad_y, g.y_shape, "grad_y")
    padded = _padded(x, g)
    grad_weight = np.zeros(g.weight_shape)
    for r, s, rows, columns in _taps(g):
        for k, c in _groups(g):
            grad_weight[k, :, r, s] = np.einsum(
                "nkij,ncij->kc", grad_y[:, k], padded[:, c, rows, columns]
            )
    return _deliver(grad_weight, False, out)


def conv2d_backward_bias(
    grad_y: ArrayLike, *, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return the gradient of `conv2d` with respect to `bias`.

    ``grad_bias[k] = sum over n,i,j of grad_y[n,k,i,j]``.
    """
    grad_y, _ = _images(grad_y, "grad_y")
    return _deliver(grad_y.sum(axis=(0, 2, 3)), False, out)


# -- linear -------------------------------------------------------------------------


def linear(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None
) -> NDArray[Any]:
    """Return ``y[n,k] = bias[k] + sum over c of weight[k,c] * x[n,c]``.

    See Also
    --------
    linear_backward_input, linear_backward_weight, linear_backward_bias
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    y: Array = np.einsum("nc,kc->nk", x, weight)
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        _check(bias, y.shape[1:], "bias")
        y += bias
    return y


def linear_backward_input(grad_y: ArrayLike, weight: ArrayLike) -> NDArray[Any]:
    """Return ``grad_x[n,c] = sum over k of grad_y[n,k] * weight[k,c]``."""
    grad_y, weight = np.asarray(grad_y, np.float64), np.asarray(weight, np.float64)
    grad_x: Array = np.einsum("nk,kc->nc", grad_y, weight)
    return grad_x


def linear_backward_weight(grad_y: ArrayLike, x: ArrayLike) -> NDArray[Any]:
    """Return ``grad_weight[k,c] = sum over n of grad_y[n,k] * x[n,c]``."""
    grad_y, x = np.asarray(grad_y, np.float64), np.asarray(x, np.float64)
    grad_weight: Array = np.einsum("nk,nc->kc", grad_y, x)
    return grad_weight


def linear_backward_bias(grad_y: ArrayLike) -> NDArray[Any]:
    """Return ``grad_bias[k] = sum over n of grad_y[n,k]``."""
    grad_bias: Array = np.asarray(grad_y, dtype=np.float64).sum(axis=0)
    return grad_bias


# -- max pooling --------------------------------------------------------------------


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
    x, single = _images(x, "x")
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
    y = _deliver(y, single, out)
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
    grad_y, single = _images(grad_y, "grad_y")
    x_shape = _batched(x_shape, single)
    argmax = np.asarray(argmax)
    argmax = argmax[None] if single else argmax
    _check(argmax, grad_y.shape, "argmax")
    if argmax.dtype not in (np.uint8, np.uint16, np.int64):
        raise TypeError(f"argmax must be uint8, uint16 or int64, got {argmax.dtype}")
    g = PoolGeometry.of(x_shape, kernel_size, stride, padding, dilation, True)
    if grad_y.shape != g.y_shape:
        g = PoolGeometry.of(x_shape, kernel_size, stride, padding, dilation)
    _check(grad_y, g.y_shape, "grad_y")
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
    return _deliver(grad_x, single, out)


# -- average pooling and subsampling ------------------------------------------------


def _windows(g: PoolGeometry) -> Iterator[tuple[int, int, slice, slice]]:
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
    for i, j, rows, columns in _windows(g):
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
    x, single = _images(x, "x")
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(g.y_shape)
    for i, j, rows, columns in _windows(g):
        y[:, :, i, j] = x[:, :, rows, columns].sum(axis=(2, 3))
    y /= _divisors(g, count_include_pad, divisor_override)
    return _deliver(y, single, out)


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
    grad_y, single = _images(grad_y, "grad_y")
    x_shape = _batched(x_shape, single)
    g = PoolGeometry.of(x_shape, kernel_size, stride, padding, 1, ceil_mode)
    _check(grad_y, g.y_shape, "grad_y")
    shares = grad_y / _divisors(g, count_include_pad, divisor_override)
    grad_x = np.zeros(g.x_shape)
    for i, j, rows, columns in _windows(g):
        grad_x[:, :, rows, columns] += shares[:, :, i, j, None, None]
    return _deliver(grad_x, single, out)


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
    x, single = _images(x, "x")
    gain, bias = np.asarray(gain, np.float64), np.asarray(bias, np.float64)
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding)
    _check(gain, (g.c,), "gain")
    _check(bias, (g.c,), "bias")
    y = np.empty(g.y_shape)
    for i, j, rows, columns in _windows(g):
        y[:, :, i, j] = gain * x[:, :, rows, columns].sum(axis=(2, 3)) + bias
    return _deliver(y, single, None)


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
    grad_y, single = _images(grad_y, "grad_y")
    x, single_x = _images(x, "x")
    if single != single_x:
        raise ValueError("grad_y and x must have the same number of axes")
    gain = np.asarray(gain, dtype=np.float64)
    g = PoolGeometry.of(x.shape, kernel_size, stride, padding)
    _check(gain, (g.c,), "gain")
    _check(grad_y, g.y_shape, "grad_y")
    grad_x, grad_gain = np.zeros(g.x_shape), np.zeros(g.c)
    for i, j, rows, columns in _windows(g):
        error = grad_y[:, :, i, j]
        grad_x[:, :, rows, columns] += (gain * error)[:, :, None, None]
        grad_gain += (error * x[:, :, rows, columns].sum(axis=(2, 3))).sum(axis=0)
    return _deliver(grad_x, single, None), grad_gain, grad_y.sum(axis=(0, 2, 3))
