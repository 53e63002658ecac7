"""Layers in which paths of a graph join."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnn_ext._elementwise import add
from cnn_ext._geometry import checked_size
from cnn_ext.layers.activations import floating
from cnn_ext.layers.base import Layer, Shape

__all__ = ["Add", "Concat"]


def _at_least_two(parts: Any) -> None:
    if not isinstance(parts, tuple) or len(parts) < 2:
        raise ValueError("a layer that joins takes at least two inputs")


class Add(Layer):
    """The sum of its inputs, all of one shape; ``a + b`` on nodes makes one.

    Every input gets the whole error: the derivative of a sum is 1 for each part.
    """

    joins = True

    def forward(self, x, train=False):
        self.output_shape(tuple(part.shape for part in x))
        y = floating(x[0])
        for part in x[1:]:
            if floating(part).dtype != y.dtype:
                raise TypeError(f"inputs are {y.dtype} and {part.dtype}")
            y = add(y, part)
        return y, len(x)

    def backward(self, grad_y, saved):
        count = saved
        return (grad_y,) * count, {}

    def output_shape(self, input_shape: Any) -> Shape:
        _at_least_two(input_shape)
        for i, shape in enumerate(input_shape):
            if shape != input_shape[0]:
                raise ValueError(
                    f"all inputs must have one shape; input 0 has {input_shape[0]}, "
                    f"input {i} has {shape}"
                )
        return input_shape[0]


class Concat(Layer):
    """Its inputs one behind the other along `axis`.

    Each input gets its own part of the error.

    Parameters
    ----------
    axis : int, default 1
        Axis of the batch to join along, at least 1; 1 is the channels.
    name : str, optional
        See `Layer`.
    """

    joins = True

    def __init__(self, axis: int = 1, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.axis = checked_size(axis, "axis", 1)

    def forward(self, x, train=False):
        self.output_shape(tuple(part.shape[1:] for part in x))
        ends = np.cumsum([part.shape[self.axis] for part in x])
        return np.concatenate(x, axis=self.axis), ends

    def backward(self, grad_y, saved):
        ends = saved
        return tuple(np.split(grad_y, ends[:-1], axis=self.axis)), {}

    def output_shape(self, input_shape: Any) -> Shape:
        _at_least_two(input_shape)
        axis = self.axis - 1  # the batch axis is left out
        if axis >= len(input_shape[0]):
            raise ValueError(
                f"axis {self.axis} does not exist in inputs of {len(input_shape[0])} "
                "axes beside the batch axis"
            )
        for i, shape in enumerate(input_shape):
            rest = shape[:axis] + shape[axis + 1 :]
            if rest != input_shape[0][:axis] + input_shape[0][axis + 1 :]:
                raise ValueError(
                    f"inputs may differ along axis {self.axis} only; input 0 has "
                    f"{input_shape[0]}, input {i} has {shape} (batch axis left out)"
                )
        along = sum(shape[axis] for shape in input_shape)
        return (*input_shape[0][:axis], along, *input_shape[0][axis + 1 :])
