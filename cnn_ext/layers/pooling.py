"""Pooling, and LeCun's trainable subsampling, as layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnn_ext import functional as F
from cnn_ext._geometry import PoolGeometry, checked_size, pair
from cnn_ext.initializers import Initializer, Seed, generator, initialize
from cnn_ext.layers.base import Layer, Parameter, Shape, plain

__all__ = ["AvgPool2d", "MaxPool2d", "Subsample2d"]


class _Pool2d(Layer):
    """What the three have in common: the sizes of their windows."""

    input_ndim = 4
    dilation: Any = 1
    ceil_mode = False

    def _set_windows(self, kernel_size: Any, stride: Any, padding: Any) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride, self.padding = plain(stride), plain(padding)
        # The smallest image there is tells whether the arguments are sound.
        vertical, horizontal = pair(self.dilation, "dilation")
        r, s = self.kernel_size
        self.geometry((1, vertical * (r - 1) + 1, horizontal * (s - 1) + 1))

    def geometry(self, input_shape: Any, n: int = 1) -> PoolGeometry:
        """Return the sizes for n images, or raise ValueError."""
        return PoolGeometry.of(
            (n, *input_shape),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
        )

    def output_shape(self, input_shape: Any) -> Shape:
        return self.geometry(input_shape).y_shape[1:]


class MaxPool2d(_Pool2d):
    """The maximum of each window; its backward gives the winner the whole error.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As in `cnn_ext.functional.max_pool2d`.
    name : str, optional
        See `Layer`.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.dilation = plain(dilation)
        self.ceil_mode = bool(ceil_mode)
        self._set_windows(kernel_size, stride, padding)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
        }

    def forward(self, x, train=False):
        options = self._options | {"ceil_mode": self.ceil_mode}
        if not train:
            return F.max_pool2d(x, self.kernel_size, **options), None
        y, argmax = F.max_pool2d(x, self.kernel_size, return_argmax=True, **options)
        return y, (argmax, x.shape)

    def backward(self, grad_y, saved):
        argmax, x_shape = saved
        grad_x = F.max_pool2d_backward(
            grad_y, argmax, x_shape, self.kernel_size, **self._options
        )
        return grad_x, {}


class AvgPool2d(_Pool2d):
    """The mean of each window; its backward shares the error out evenly.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        As in `cnn_ext.functional.avg_pool2d`.
    name : str, optional
        See `Layer`.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.ceil_mode = bool(ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        self.divisor_override = plain(divisor_override)
        self._set_windows(kernel_size, stride, padding)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }

    def forward(self, x, train=False):
        return F.avg_pool2d(x, self.kernel_size, **self._options), x.shape

    def backward(self, grad_y, saved):
        x_shape = saved
        grad_x = F.avg_pool2d_backward(
            grad_y, x_shape, self.kernel_size, **self._options
        )
        return grad_x, {}


class Subsample2d(_Pool2d):
    """LeCun's subsampling: ``gain_c * (sum of the window) + bias_c``, both trained.

    The squashing function that LeNet-5 puts behind it is a layer of its own.

    Parameters
    ----------
    channels : int
        C, the number of maps.
    kernel_size : int or (int, int), default 2
    stride, padding
        As in `cnn_ext.functional.subsample2d`.
    gain_init : str or callable, default "mean"
        "mean" starts as average pooling, every gain 1 / (number of pixels in the
        window); others see `cnn_ext.initializers`.
    bias_init : str or callable, default "zeros"
    seed, dtype, name
        As in `Conv2d`.

    Attributes
    ----------
    gain, bias : Parameter
        Shape (C,).

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to
    document recognition", Proceedings of the IEEE 86(11), 1998.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Any = 2,
        stride: Any = None,
        padding: Any = 0,
        *,
        gain_init: str | Initializer = "mean",
        bias_init: str | Initializer = "zeros",
        seed: Seed = None,
        dtype: Any = np.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.channels = checked_size(channels, "channels", 1)
        self._set_windows(kernel_size, stride, padding)
        pixels = math.prod(self.kernel_size)
        if isinstance(gain_init, str) and gain_init == "mean":
            gain_init = _mean
        shape, fan, rng = (self.channels,), (pixels, 1), generator(seed)
        self.gain = Parameter(initialize(gain_init, shape, fan, rng, dtype))
        self.bias = Parameter(initialize(bias_init, shape, fan, rng, dtype))

    @property
    def _options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding}

    def forward(self, x, train=False):
        y = F.subsample2d(
            x, self.gain.value, self.bias.value, self.kernel_size, **self._options
        )
        return y, x

    def backward(self, grad_y, saved):
        x = saved
        grad_x, grad_gain, grad_bias = F.subsample2d_backward(
            grad_y, x, self.gain.value, self.kernel_size, **self._options
        )
        return grad_x, {"gain": grad_gain, "bias": grad_bias}

    def output_shape(self, input_shape: Any) -> Shape:
        shape = super().output_shape(input_shape)
        if shape[0] != self.channels:
            raise ValueError(f"gain has {self.channels} channels, x has {shape[0]}")
        return shape

    def multiply_adds(self, input_shape: Any) -> int:
        return math.prod(self.output_shape(input_shape))


def _mean(shape, fan_in, fan_out, rng):
    return np.full(shape, 1 / fan_in)
