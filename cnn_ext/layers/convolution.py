"""Convolution and its kin as layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnn_ext import functional as F
from cnn_ext._geometry import ConvGeometry, TransposedGeometry, checked_size, pair
from cnn_ext.functional import (
    conv_transpose2d,
    conv_transpose2d_backward_bias,
    conv_transpose2d_backward_input,
    conv_transpose2d_backward_weight,
)
from cnn_ext.initializers import Initializer, Seed, generator, initialize
from cnn_ext.layers.base import Layer, Parameter, Shape, plain

__all__ = ["Conv2d", "ConvTranspose2d", "DepthwiseConv2d", "SeparableConv2d"]


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
        ConvGeometry.of((1, self.in_channels, *smallest), shape, **self._options)

        fan = shape[1] * r * s, self.out_channels // self.groups * r * s
        rng = generator(seed)
        self.weight = Parameter(initialize(weight_init, shape, fan, rng, dtype))
        self.bias: Parameter | None = None
        if bias:
            first = initialize(bias_init, (self.out_channels,), fan, rng, dtype)
            self.bias = Parameter(first)

    def config(self) -> dict[str, Any]:
        return super().config() | {"bias": self.bias is not None}

    def geometry(self, input_shape: Any, n: int = 1) -> ConvGeometry:
        """Return the sizes for n images, or raise ValueError."""
        return ConvGeometry.of((n, *input_shape), self.weight.shape, **self._options)

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
        return self.geometry(input_shape).y_shape[1:]

    def multiply_adds(self, input_shape: Any) -> int:
        return self.geometry(input_shape).multiply_adds


class DepthwiseConv2d(Conv2d):
    """Convolution of each channel by itself: `Conv2d` with as many groups as channels.

    Parameters
    ----------
    channels : int
        C.
    kernel_size, stride, padding, dilation
        As in `Conv2d`.
    multiplier : int, default 1
        Filters a channel: the output has ``C * multiplier`` maps.
    bias, weight_init, bias_init, seed, dtype, name
        As in `Conv2d`.

    Attributes
    ----------
    weight : Parameter
        Shape (C * multiplier, 1, R, S).
    bias : Parameter or None
        Shape (C * multiplier,).
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        multiplier: int = 1,
        bias: bool = True,
        *,
        weight_init: str | Initializer = "default",
        bias_init: str | Initializer = "default",
        seed: Seed = None,
        dtype: Any = np.float32,
        name: str | None = None,
    ) -> None:
        self.channels = checked_size(channels, "channels", 1)
        self.multiplier = checked_size(multiplier, "multiplier", 1)
        super().__init__(
            self.channels,
            self.channels * self.multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            self.channels,
            bias,
            weight_init=weight_init,
            bias_init=bias_init,
            seed=seed,
            dtype=dtype,
            name=name,
        )


class SeparableConv2d(Layer):
    """A depthwise convolution, then one of 1x1 that mixes the channels.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size, stride, padding, dilation
        Of the depthwise convolution, as in `Conv2d`.
    multiplier : int, default 1
        Depthwise filters a channel.
    bias : bool, default True
        Whether the second convolution adds a bias; the first has none.
    depthwise_init, pointwise_init, bias_init, seed, dtype, name
        As `weight_init` and the others in `Conv2d`.

    Attributes
    ----------
    depthwise : Parameter
        Shape (C * multiplier, 1, R, S).
    pointwise : Parameter
        Shape (K, C * multiplier, 1, 1).
    bias : Parameter or None
        Shape (K,).

    References
    ----------
    F. Chollet, "Xception: deep learning with depthwise separable convolutions", CVPR
    2017.
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
        multiplier: int = 1,
        bias: bool = True,
        *,
        depthwise_init: str | Initializer = "default",
        pointwise_init: str | Initializer = "default",
        bias_init: str | Initializer = "default",
        seed: Seed = None,
        dtype: Any = np.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        rng = generator(seed)
        first = DepthwiseConv2d(
            in_channels, kernel_size, stride, padding, dilation, multiplier, False,
            weight_init=depthwise_init, seed=rng, dtype=dtype,
        )  # fmt: skip
        second = Conv2d(
            first.out_channels, out_channels, 1, bias=bias,
            weight_init=pointwise_init, bias_init=bias_init, seed=rng, dtype=dtype,
        )  # fmt: skip
        self.in_channels, self.out_channels = first.in_channels, second.out_channels
        self.kernel_size, self.stride = first.kernel_size, first.stride
        self.padding, self.dilation = first.padding, first.dilation
        self.multiplier = first.multiplier
        self.depthwise, self.pointwise = first.weight, second.weight
        self.bias = second.bias

    def config(self) -> dict[str, Any]:
        return super().config() | {"bias": self.bias is not None}

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.in_channels,
        }

    def forward(self, x, train=False):
        bias = None if self.bias is None else self.bias.value
        h = F.conv2d(x, self.depthwise.value, **self._options)
        return F.conv2d(h, self.pointwise.value, bias), (x, h)

    def backward(self, grad_y, saved):
        x, _ = saved
        grad_h, grads = self._to_hidden(grad_y, saved)
        grad_x = F.conv2d_backward_input(
            grad_h, self.depthwise.value, x.shape, **self._options
        )
        return grad_x, grads

    def backward_parameters(self, grad_y, saved):
        return self._to_hidden(grad_y, saved)[1]

    def _to_hidden(self, grad_y, saved):
        """Return the error between the two convolutions, and the parameters'."""
        x, h = saved
        grad_h = F.conv2d_backward_input(grad_y, self.pointwise.value, h.shape)
        grads = {
            "depthwise": F.conv2d_backward_weight(
                grad_h, x, self.depthwise.shape, **self._options
            ),
            "pointwise": F.conv2d_backward_weight(grad_y, h, self.pointwise.shape),
        }
        if self.bias is not None:
            grads["bias"] = F.conv2d_backward_bias(grad_y)
        return grad_h, grads

    def geometries(
        self, input_shape: Any, n: int = 1
    ) -> tuple[ConvGeometry, ConvGeometry]:
        """Return the sizes of both convolutions for n images, or raise ValueError."""
        first = ConvGeometry.of(
            (n, *input_shape), self.depthwise.shape, **self._options
        )
        return first, ConvGeometry.of(first.y_shape, self.pointwise.shape)

    def output_shape(self, input_shape: Any) -> Shape:
        return self.geometries(input_shape)[1].y_shape[1:]

    def multiply_adds(self, input_shape: Any) -> int:
        return sum(g.multiply_adds for g in self.geometries(input_shape))


class ConvTranspose2d(Layer):
    """2-D transposed convolution: (N, C, H, W) -> (N, K, H_out, W_out), enlarging.

    ``H_out = (H-1)*stride - top - bottom + dilation*(R-1) + output_padding + 1``.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K; both multiples of `groups`.
    kernel_size : int or (int, int)
        R x S.
    stride, padding, output_padding, groups, bias, dilation
        As in `conv_transpose2d`, in PyTorch's order.
    weight_init, bias_init, seed, dtype, name
        As in `Conv2d`; fan_in is ``K / groups * R * S``, as PyTorch has it.

    Attributes
    ----------
    weight : Parameter
        Shape (C, K / groups, R, S).
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
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
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
        if self.out_channels % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the {self.out_channels} output "
                "channels"
            )
        self.stride, self.padding = plain(stride), plain(padding)
        self.output_padding, self.dilation = plain(output_padding), plain(dilation)
        shape = (
            self.in_channels,
            self.out_channels // self.groups,
            *self.kernel_size,
        )
        # A large image tells whether the arguments are sound: only a small one can be
        # cut away by the padding.
        large = 1 + 2 * max(_largest(self.padding), 1)
        TransposedGeometry.of(
            (1, self.in_channels, large, large), shape, **self._options
        )
        pixels = self.kernel_size[0] * self.kernel_size[1]
        fan = shape[1] * pixels, self.in_channels // self.groups * pixels
        rng = generator(seed)
        self.weight = Parameter(initialize(weight_init, shape, fan, rng, dtype))
        self.bias: Parameter | None = None
        if bias:
            first = initialize(bias_init, (self.out_channels,), fan, rng, dtype)
            self.bias = Parameter(first)

    def config(self) -> dict[str, Any]:
        return super().config() | {"bias": self.bias is not None}

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "dilation": self.dilation,
        }

    def forward(self, x, train=False):
        bias = None if self.bias is None else self.bias.value
        return conv_transpose2d(x, self.weight.value, bias, **self._options), x

    def backward(self, grad_y, saved):
        x = saved
        grad_x = conv_transpose2d_backward_input(
            grad_y, self.weight.value, x.shape, **self._options
        )
        return grad_x, self.backward_parameters(grad_y, x)

    def backward_parameters(self, grad_y, saved):
        x = saved
        grad_weight = conv_transpose2d_backward_weight(
            grad_y, x, self.weight.shape, **self._options
        )
        if self.bias is None:
            return {"weight": grad_weight}
        return {"weight": grad_weight, "bias": conv_transpose2d_backward_bias(grad_y)}

    def output_shape(self, input_shape: Any) -> Shape:
        shape = tuple(input_shape)
        if len(shape) != 3:
            raise ValueError(
                f"x must have axes (N, C, H, W), got {shape} beside the batch"
            )
        g = TransposedGeometry.of((1, *shape), self.weight.shape, **self._options)
        return g.y_shape[1:]

    def multiply_adds(self, input_shape: Any) -> int:
        _, h, w = input_shape
        return self.weight.size * h * w  # each pixel meets each of its filters


def _largest(padding: Any) -> int:
    """Return the largest number in a padding of any form; 0 where there is none."""
    if isinstance(padding, (tuple, list)):
        return max(map(_largest, padding), default=0)
    return padding if isinstance(padding, int) else 0
