"""The model that is a chain of layers."""

from __future__ import annotations

from typing import Any

from cnn_ext.graph import Graph
from cnn_ext.layers.base import Layer, checked_shape
from cnn_ext.model import Model

__all__ = ["Sequential"]


class Sequential(Model):
    """Layers one behind the other: the graph that is a chain.

    Parameters
    ----------
    *layers : Layer or Model
        At least one. Layers are named by their place, "0", "1", …, unless they have a
        name; those of a nested model "0.0", "0.1", ….
    input_shape : tuple of int, optional
        Shape of one input, without the batch axis, e.g. ``(1, 28, 28)``. Where given,
        layers that do not fit are found at once and `summary` needs no argument.

    Examples
    --------
    >>> model = Sequential(Conv2d(1, 6, 5), ReLU(), MaxPool2d(2), Flatten())
    >>> model.output_shape((1, 28, 28))
    (864,)
    """

    def __init__(self, *layers: Layer | Model, input_shape: Any = None) -> None:
        if not layers:
            raise ValueError("Sequential needs at least one layer")
        parts: list[Layer | Graph] = []
        for i, part in enumerate(layers):
            if isinstance(part, Model):
                parts.append(part._graph)
            elif isinstance(part, Layer) and not part.joins:
                parts.append(part)
            elif isinstance(part, Layer):
                raise TypeError(
                    f"layer {i}, {part!r}, joins several inputs: use cnn_ext.Model"
                )
            else:
                raise TypeError(
                    f"layer {i} must be a Layer or a Model, got {type(part).__name__}"
                )
        if input_shape is not None:
            input_shape = checked_shape(input_shape, "input_shape")
        self._set_up(Graph.chain(parts), input_shape)
