"""Fully connected layers, and the step from maps to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnn_ext import functional as F
from cnn_ext._geometry import checked_size
from cnn_ext.initializers import Initializer, Seed, generator, initialize
from cnn_ext.layers.base import Layer, Parameter, Shape

__all__ = ["Flatten", "Linear"]


class Linear(Layer):
    """Every output sees every input: ``y = x weight^T + bias``, (N, C) -> (N, K).

    Parameters
    ----------
    in_features, out_features : int
        C and K.
    bias : bool, default True
    weight_init, bias_init, seed, dtype, name
        As in `Conv2d`.

    Attributes
    ----------
    weight : Parameter
        Shape (K, C).
    bias : Parameter or None
        Shape (K,).
    """

    input_ndim = 2

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_init: str | Initializer = "default",
        bias_init: str | Initializer = "default",
        seed: Seed = None,
        dtype: Any = np.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.in_features = checked_size(in_features, "in_features", 1)
        self.out_features = checked_size(out_features, "out_features", 1)
        shape, rng = (self.out_features, self.in_features), generator(seed)
        fan = self.in_features, self.out_features
        self.weight = Parameter(initialize(weight_init, shape, fan, rng, dtype))
        self.bias: Parameter | None = None
        if bias:
            self.bias = Parameter(initialize(bias_init, shape[:1], fan, rng, dtype))

    def config(self) -> dict[str, Any]:
        return super().config() | {"bias": self.bias is not None}

    def forward(self, x, train=False):
        bias = None if self.bias is None else self.bias.value
        return F.linear(x, self.weight.value, bias), x

    def backward(self, grad_y, saved):
        x = saved
        grad_x = F.linear_backward_input(grad_y, self.weight.value)
        return grad_x, self.backward_parameters(grad_y, x)

    def backward_parameters(self, grad_y, saved):
        x = saved
        grad_weight = F.linear_backward_weight(grad_y, x)
        if self.bias is None:
            return {"weight": grad_weight}
        return {"weight": grad_weight, "bias": F.linear_backward_bias(grad_y)}

    def output_shape(self, input_shape: Any) -> Shape:
        if tuple(input_shape) != (self.in_features,):
            raise ValueError(
                f"weight takes {self.in_features} features, x has shape "
                f"{tuple(input_shape)} (batch axis left out)"
            )
        return (self.out_features,)

    def multiply_adds(self, input_shape: Any) -> int:
        return self.in_features * self.out_features


class Flatten(Layer):
    """All axes but the batch axis become one, in the order C, H, W."""

    def forward(self, x, train=False):
        # not -1: numpy cannot infer an axis of an empty batch
        return x.reshape(x.shape[0], math.prod(x.shape[1:])), x.shape

    def backward(self, grad_y, saved):
        x_shape = saved
        return grad_y.reshape(x_shape), {}

    def output_shape(self, input_shape: Any) -> Shape:
        return (math.prod(input_shape),)
