"""Layers that a plan has no steps for: custom ones, and rare ones of ours.

They run as they are, `forward` and `backward` as `cnn_ext.layers.base` says; their
results are copied to where the next step reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_ext.graph import check_gradients, explained, place
from cnn_ext.layers.base import Layer
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.program import Program, Slot, Value

__all__ = ["opaque"]


def opaque(p: Program, op: Operation, inputs: list[Value]) -> tuple[Any, Any]:
    """Write down the steps of a layer that is only known by its interface."""
    layer = op.layer
    name = p.names[layer]
    p.opaque.append(name)
    shapes = tuple(x.shape[1:] for x in inputs)
    shape = layer.output_shape(shapes if layer.joins else shapes[0])
    last = len(shape) == 3 and any(x.last for x in inputs)
    # the model's output is handed on as it is, of any dtype
    ends = op.output == p.output
    y = Slot() if ends else p.value((inputs[0].shape[0], *shape), name, last=last)
    saved = Slot()
    p.do(
        type(layer).__name__, _forward, layer, name, p.train, saved, y, *inputs,
        writes=(y,) if isinstance(y, Value) else (),
    )  # fmt: skip

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        grads = [
            p.like(x, f"gradient of {x.name}") if asked else None
            for x, asked in zip(inputs, wanted, strict=True)
        ]
        of_parameters = [p.gradient(layer, key) for key in layer.parameters]
        written = tuple(v for v in (*grads, *of_parameters) if v is not None)
        p.do(
            f"{type(layer).__name__} backward", _backward,
            layer, name, saved, grad_y, len(grads), *grads, *of_parameters,
            writes=written, holds=tuple(inputs),
        )  # fmt: skip
        for key, value in zip(layer.parameters, of_parameters, strict=True):
            p.add_gradient(layer, key, value)
        return grads

    return y, back


def _forward(
    layer: Layer, name: str, train: bool, saved: list, y: Any, *inputs: np.ndarray
) -> None:
    try:
        result, kept = layer.forward(inputs if layer.joins else inputs[0], train)
    except (TypeError, ValueError) as error:
        raise explained(error, layer, name) from error
    saved[0] = kept if train else None
    if isinstance(y, list):  # the model's output: whatever it is
        y[0] = result
    else:
        _copy(y, result, layer, name, "forward")


def _backward(
    layer: Layer,
    name: str,
    saved: list,
    grad_y: np.ndarray,
    inputs: int,
    *targets: np.ndarray | None,
) -> None:
    of_inputs, of_parameters = targets[:inputs], targets[inputs:]
    if any(target is not None for target in of_inputs):
        grad_x, grads = layer.backward(grad_y, saved[0])
        grad_x = grad_x if layer.joins else (grad_x,)
        for target, grad in zip(of_inputs, grad_x, strict=True):
            if target is not None:
                _copy(target, grad, layer, name, "backward")
    else:
        grads = layer.backward_parameters(grad_y, saved[0])
    check_gradients(grads, layer, name)
    for key, target in zip(layer.parameters, of_parameters, strict=True):
        if target is not None:
            _copy(target, grads[key], layer, name, "backward", key)


def _copy(
    target: np.ndarray, result: Any, layer: Layer, name: str, which: str, of: str = ""
) -> None:
    result = np.asarray(result)
    if result.shape != target.shape:
        what = f" for {of}" if of else ""
        raise ValueError(
            f"{place(layer, name)}: {which} returned shape {result.shape}{what}, it "
            f"must be {target.shape}"
        )
    if result.dtype != target.dtype:
        raise TypeError(
            f"{place(layer, name)}: {which} returned {result.dtype}, the model works "
            f"in {target.dtype}"
        )
    np.copyto(target, result)
