"""Layers that bring maps to another size: adaptive pooling, upsampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnn_ext import functional as F
from cnn_ext._arrays import empty, images, is_channels_last
from cnn_ext._geometry import checked_size, shown
from cnn_ext.layers.base import Layer, Shape, checked_float, plain

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "GlobalAvgPool", "Upsample"]


def _maps(input_shape: Any) -> Shape:
    """Return (C, H, W), or say that x has no maps."""
    if len(input_shape) != 3:
        raise ValueError(
            f"x must have axes (N, C, H, W), got {tuple(input_shape)} beside the batch"
        )
    return tuple(input_shape)


def _batch(x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        _maps(x.shape[1:])
    return images(x, "x")[0]


class GlobalAvgPool(Layer):
    """The mean of each map: (N, C, H, W) -> (N, C).

    References
    ----------
    M. Lin, Q. Chen, S. Yan, "Network in network", ICLR 2014.
    """

    input_ndim = 4

    def forward(self, x, train=False):
        x = _batch(x)
        return F.avg_pool2d(x, x.shape[2:]).reshape(x.shape[:2]), x.shape

    def backward(self, grad_y, saved):
        x_shape = saved
        grad_y = grad_y.reshape(*x_shape[:2], 1, 1)
        return F.avg_pool2d_backward(grad_y, x_shape, x_shape[2:]), {}

    def output_shape(self, input_shape: Any) -> Shape:
        return _maps(input_shape)[:1]


class _Adaptive2d(Layer):
    """Pooling whose windows follow from the size of the output."""

    input_ndim = 4

    def __init__(self, output_size: Any, *, name: str | None = None) -> None:
        super().__init__(name=name)
        sizes = output_size if isinstance(output_size, (tuple, list)) else None
        if sizes is not None and len(sizes) != 2:
            raise ValueError(
                f"output_size must be an int or a pair (h, w), got {shown(output_size)}"
            )
        for i, size in enumerate(sizes or (output_size,)):
            where = "output_size" if sizes is None else f"output_size[{i}]"
            if size is not None:
                checked_size(size, where, 1)
        self.output_size = plain(output_size)

    def _sizes(self, h: int, w: int) -> tuple[int, int]:
        wanted = self.output_size
        out_h, out_w = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        return h if out_h is None else out_h, w if out_w is None else out_w

    def _windows(self, x_shape: Shape):
        """Yield (slices of the output, slices of the input, kernel size).

        Where the output divides the input all windows are alike, and one pooling does.
        """
        h, w = x_shape[2:]
        out_h, out_w = self._sizes(h, w)
        if h % out_h == 0 and w % out_w == 0:
            everything = slice(None), slice(None)
            yield everything, everything, (h // out_h, w // out_w)
            return
        for i in range(out_h):
            rows = slice(i * h // out_h, -(-(i + 1) * h // out_h))
            for j in range(out_w):
                columns = slice(j * w // out_w, -(-(j + 1) * w // out_w))
                kernel = rows.stop - rows.start, columns.stop - columns.start
                at = slice(i, i + 1), slice(j, j + 1)
                yield at, (rows, columns), kernel

    def output_shape(self, input_shape: Any) -> Shape:
        channels, h, w = _maps(input_shape)
        return (channels, *self._sizes(h, w))


class AdaptiveAvgPool2d(_Adaptive2d):
    """The mean of windows that cover the maps, `output_size` of them.

    Window i of O reaches from ``floor(i * H / O)`` to below ``ceil((i + 1) * H / O)``.

    Parameters
    ----------
    output_size : int or (int, int)
        Height and width of the output; None in a pair, or alone, keeps the input's.
    name : str, optional
        See `Layer`.
    """

    def forward(self, x, train=False):
        x = _batch(x)
        shape = x.shape[:2] + self._sizes(*x.shape[2:])
        y = empty(shape, x.dtype, is_channels_last(x))
        for at, window, kernel in self._windows(x.shape):
            y[:, :, *at] = F.avg_pool2d(x[:, :, *window], kernel)
        return y, x.shape

    def backward(self, grad_y, saved):
        x_shape = saved
        grad_x = empty(x_shape, grad_y.dtype, is_channels_last(grad_y))
        grad_x[...] = 0
        for at, window, kernel in self._windows(x_shape):
            place = grad_x[:, :, *window]
            place += F.avg_pool2d_backward(grad_y[:, :, *at], place.shape, kernel)
        return grad_x, {}


class AdaptiveMaxPool2d(_Adaptive2d):
    """The maximum of windows that cover the maps, `output_size` of them.

    Ties and NaN as in `MaxPool2d`, windows as in `AdaptiveAvgPool2d`.

    Parameters
    ----------
    output_size : int or (int, int)
        Height and width of the output; None in a pair, or alone, keeps the input's.
    name : str, optional
        See `Layer`.
    """

    def forward(self, x, train=False):
        x = _batch(x)
        shape = x.shape[:2] + self._sizes(*x.shape[2:])
        y = empty(shape, x.dtype, is_channels_last(x))
        winners = []
        for at, window, kernel in self._windows(x.shape):
            part, argmax = F.max_pool2d(x[:, :, *window], kernel, return_argmax=True)
            y[:, :, *at] = part
            if train:
                winners.append(argmax)
        return y, (winners, x.shape)

    def backward(self, grad_y, saved):
        winners, x_shape = saved
        grad_x = empty(x_shape, grad_y.dtype, is_channels_last(grad_y))
        grad_x[...] = 0
        for argmax, (at, window, kernel) in zip(
            winners, self._windows(x_shape), strict=True
        ):
            place = grad_x[:, :, *window]
            part = grad_y[:, :, *at]
            place += F.max_pool2d_backward(part, argmax, place.shape, kernel)
        return grad_x, {}


class Upsample(Layer):
    """Larger maps (or smaller ones) by nearest or bilinear interpolation.

    Parameters
    ----------
    scale_factor : float or (float, float), optional
        Output size is ``floor(size * scale_factor)``. Give this or `size`.
    size : int or (int, int), optional
        Height and width of the output.
    mode : {"nearest", "bilinear"}
        "nearest": pixel i takes pixel ``floor(i / scale)`` of the input. "bilinear":
        between the four pixels around ``(i + 0.5) / scale - 0.5``.
    align_corners : bool, default False
        For "bilinear": pixel centres of the corners meet, ``i * (H-1) / (H_out-1)``.
    name : str, optional
        See `Layer`.

    Notes
    -----
    As PyTorch's ``interpolate``. Backward is the transposed sum: each pixel's error
    goes to the pixels that it was made of, with the same weights.
    """

    input_ndim = 4

    def __init__(
        self,
        scale_factor: Any = None,
        size: Any = None,
        mode: str = "nearest",
        align_corners: bool = False,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if (scale_factor is None) == (size is None):
            raise ValueError("give either scale_factor or size")
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f"mode must be 'nearest' or 'bilinear', got {mode!r}")
        if align_corners and mode == "nearest":
            raise ValueError("align_corners goes with mode 'bilinear', not 'nearest'")
        given, what = (scale_factor, "scale_factor") if size is None else (size, "size")
        if isinstance(given, (tuple, list)) and len(given) != 2:
            raise ValueError(f"{what} must be one number or two, got {shown(given)}")
        for part in given if isinstance(given, (tuple, list)) else (given,):
            if size is None:
                checked_float(part, what, 0.0, above=True)
            else:
                checked_size(part, what, 1)
        self.scale_factor, self.size = plain(scale_factor), plain(size)
        self.mode, self.align_corners = mode, bool(align_corners)

    def _axes(self, h: int, w: int) -> list[tuple[int, float]]:
        """Return for both axes the output's size and the step in the input."""
        given = self.scale_factor if self.size is None else self.size
        result = []
        pair = given if isinstance(given, tuple) else (given, given)
        for old, part in zip((h, w), pair, strict=True):
            new = math.floor(old * part) if self.size is None else part
            if new < 1:
                raise ValueError(
                    f"scale_factor {shown(given)} leaves nothing of {h}x{w} pixels"
                )
            if self.align_corners:
                step = (old - 1) / (new - 1) if new > 1 else 0.0
            else:
                step = 1 / part if self.size is None else old / new
            result.append((new, step))
        return result

    def _taps(self, old: int, new: int, step: float) -> list[tuple[np.ndarray, Any]]:
        """Return pairs (source pixel of each output pixel, its weight or None)."""
        at = np.arange(new)
        if self.mode == "nearest":
            return [(np.minimum(np.floor(at * step).astype(np.intp), old - 1), None)]
        source = at * step if self.align_corners else (at + 0.5) * step - 0.5
        source = np.maximum(source, 0)
        low = np.minimum(source.astype(np.intp), old - 1)
        part = np.where(low < old - 1, source - low, 0.0)
        return [(low, 1 - part), (np.minimum(low + 1, old - 1), part)]

    def forward(self, x, train=False):
        x = _batch(x)
        y, last = x, is_channels_last(x)
        for axis, (new, step) in zip((2, 3), self._axes(*x.shape[2:]), strict=True):
            y = self._spread(y, axis, self._taps(x.shape[axis], new, step), last)
        return y, x.shape

    def backward(self, grad_y, saved):
        x_shape = saved
        grad, last = grad_y, is_channels_last(grad_y)
        axes = self._axes(*x_shape[2:])
        for axis, (new, step) in zip((3, 2), reversed(axes), strict=True):
            old = x_shape[axis]
            grad = self._gather(grad, axis, old, self._taps(old, new, step), last)
        return grad, {}

    def _spread(self, x, axis, taps, last):
        """Make each pixel along the axis of its source pixels."""
        shape = list(x.shape)
        shape[axis] = len(taps[0][0])
        y = empty(tuple(shape), x.dtype, last)
        y[...] = np.take(x, taps[0][0], axis=axis)
        if taps[0][1] is None:
            return y
        y *= _along(taps[0][1], axis, x.dtype)
        for source, weight in taps[1:]:
            part = np.take(x, source, axis=axis)
            part *= _along(weight, axis, x.dtype)
            y += part
        return y

    def _gather(self, grad, axis, old, taps, last):
        """The transposed sum: each pixel's error back to its source pixels."""
        shape = list(grad.shape)
        shape[axis] = old
        result = empty(tuple(shape), grad.dtype, last)
        result[...] = 0
        # the axis first, as views: then one line of pixels is one item
        into, lines = np.moveaxis(result, axis, 0), np.moveaxis(grad, axis, 0)
        for source, weight in taps:
            for i, target in enumerate(source):
                if weight is None:
                    into[target] += lines[i]
                elif weight[i]:
                    into[target] += lines[i] * grad.dtype.type(weight[i])
        return result

    def output_shape(self, input_shape: Any) -> Shape:
        channels, h, w = _maps(input_shape)
        return (channels, *(new for new, _ in self._axes(h, w)))

    def multiply_adds(self, input_shape: Any) -> int:
        taps = 1 if self.mode == "nearest" else 4
        return taps * math.prod(self.output_shape(input_shape))


def _along(weight: np.ndarray, axis: int, dtype: Any) -> np.ndarray:
    shape = [1] * 4
    shape[axis] = len(weight)
    return weight.astype(dtype).reshape(shape)
