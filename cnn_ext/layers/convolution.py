"""Convolution as a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnn_ext import functional as F
from cnn_ext._geometry import ConvGeometry, checked_size, pair
from cnn_ext.initializers import Initializer, Seed, generator, initialize
from cnn_ext.layers.base import Layer, Parameter, Shape, plain

__all__ = ["Conv2d"]


class Conv2d(Layer):
    """2-D convolution (cross-correlation): (N, C, H, W) -> (N, K, H_out, W_out).

    Parameters
    ----------
    in_channels, out_channels : int
        C and K; both multiples of `groups`.
    kernel_size : int or (int, int)
        R x S.
    stride, padding, dilation, groups
        As in `cnn_ext.functional.conv2d`; `padding` also ``"same"``, ``"valid"``…
    bias : bool, default True
        Whether a bias is added to each map.
    weight_init, bias_init : str or callable, default "default"
        See `cnn_ext.initializers`; the default is U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    seed : int, numpy.random.Generator or None
        Source of the first values.
    dtype : dtype, default float32
        float32 or float64.
    name : str, optional
        See `Layer`.

    Attributes
    ----------
    weight : Parameter
        Shape (K, C / groups, R, S).
    bias : Parameter or None
        Shape (K,).

    Raises
    ------
    ValueError, TypeError
        If an argument makes no sense; the message names it.
    """

    input_ndim = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        weight_init: str | Initializer = "default",
        bias_init: str | Initializer = "default",
        seed: Seed = None,
        dtype: Any = np.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.in_channels = checked_size(in_channels, "in_channels", 1)
        self.out_channels = checked_size(out_channels, "out_channels", 1)
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.groups = checked_size(groups, "groups", 1)
        self.stride, self.padding = plain(stride), plain(padding)
        self.dilation = plain(dilation)
        # The smallest image there is tells whether the arguments are sound.
        vertical, horizontal = pair(dilation, "dilation")
        r, s = self.kernel_size
        smallest = vertical * (r - 1) + 1, horizontal * (s - 1) + 1
        shape = self.out_channels, self.in_channels // self.groups, r, s
        self._geometry((self.in_channels, *smallest), shape)

        fan = shape[1] * r * s, self.out_channels // self.groups * r * s
        rng = generator(seed)
        self.weight = Parameter(initialize(weight_init, shape, fan, rng, dtype))
        self.bias: Parameter | None = None
        if bias:
            first = initialize(bias_init, (self.out_channels,), fan, rng, dtype)
            self.bias = Parameter(first)

    def config(self) -> dict[str, Any]:
        return super().config() | {"bias": self.bias is not None}

    def _geometry(self, input_shape: Any, weight_shape: Any) -> ConvGeometry:
        return ConvGeometry.of(
            (1, *input_shape),
            weight_shape,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def forward(self, x, train=False):
        bias = None if self.bias is None else self.bias.value
        return F.conv2d(x, self.weight.value, bias, **self._options), x

    def backward(self, grad_y, saved):
        x = saved
        grad_x = F.conv2d_backward_input(
            grad_y, self.weight.value, x.shape, **self._options
        )
        return grad_x, self.backward_parameters(grad_y, x)

    def backward_parameters(self, grad_y, saved):
        x = saved
        grad_weight = F.conv2d_backward_weight(
            grad_y, x, self.weight.shape, **self._options
        )
        if self.bias is None:
            return {"weight": grad_weight}
        return {"weight": grad_weight, "bias": F.conv2d_backward_bias(grad_y)}

    def output_shape(self, input_shape: Any) -> Shape:
        return self._geometry(input_shape, self.weight.shape).y_shape[1:]

    def multiply_adds(self, input_shape: Any) -> int:
        return self._geometry(input_shape, self.weight.shape).multiply_adds
