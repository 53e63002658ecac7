"""Element by element: activations, and where paths join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_ext import _pointwise
from cnn_ext.layers import ReLU, ReLU6
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.operators.base import Back
from cnn_ext.plan.program import Program, Value

__all__ = ["ENDS", "activation", "add", "added", "concat", "stopped"]

_RELU = _pointwise.KINDS["relu"]
#: How `_pointwise.add` and `_normalize` name what they apply at the end.
ENDS: dict[Any, int] = {type(None): 0, ReLU: 1, ReLU6: 2}


def activation(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    (x,) = inputs
    kind, constants, of_delta, keeps_y = op.layer._pass
    y = p.like(x, p.names[op.layer])
    what = type(op.layer).__name__.lower()
    p.do(what, _pointwise.activate, kind, x, y, *constants, writes=(y,), over=((y, x),))
    kept = y if keeps_y else x

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return [_delta(p, f"{what} backward", kind, grad_y, kept, of_delta)]

    return y, back


def _delta(
    p: Program, what: str, kind: int, grad_y: Value, kept: Value, constants: Any = ()
) -> Value:
    """The error behind an activation, in the place of the one before it."""
    grad = p.like(kept, grad_y.name)
    p.do(
        what, _pointwise.delta, kind, grad_y, kept, grad, *constants,
        writes=(grad,), over=((grad, grad_y), (grad, kept)),
    )  # fmt: skip
    return grad


def stopped(p: Program, grad_y: Value, y: Value, end: int = 1) -> Value:
    """The error behind a fused ReLU: what arrives where it was on."""
    kind = _pointwise.KINDS["relu6"] if end == 2 else _RELU
    return _delta(p, "relu backward", kind, grad_y, y)


def add(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    last = any(x.last for x in inputs)
    end = ENDS[type(op.activation)]
    y, *rest = (p.in_order(x, last) for x in inputs)
    for part in rest:
        y = added(p, y, part, p.names[op.layer], end if part is rest[-1] else 0)

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return [stopped(p, grad_y, y, end) if end else grad_y] * len(inputs)

    return y, back


def added(p: Program, a: Value, b: Value, name: str, end: int = 0) -> Value:
    """The sum of two values, in the place of one of them if it is not read again."""
    y = p.like(a, name)
    what = ("add", "add + relu", "add + relu6")[end]
    p.do(what, _pointwise.add, a, b, y, end, writes=(y,), over=((y, a), (y, b)))
    return y


def concat(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    axis = op.layer.axis
    shape = list(inputs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in inputs)
    y = p.value(shape, p.names[op.layer], last=any(x.last for x in inputs))
    p.do("concat", _concatenate, axis, y, *inputs, writes=(y,))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        grads: list[Value | None] = []
        start = 0
        for x, asked in zip(inputs, wanted, strict=True):
            part = slice(start, start + x.shape[axis])
            start = part.stop
            grad_x = p.like(x, f"gradient of {x.name}") if asked else None
            if grad_x is not None:
                p.do("part", _part, axis, part, grad_y, grad_x, writes=(grad_x,))
            grads.append(grad_x)
        return grads

    return y, back


def _concatenate(axis: int, y: np.ndarray, *parts: np.ndarray) -> None:
    np.concatenate(parts, axis=axis, out=y)


def _part(axis: int, part: slice, whole: np.ndarray, result: np.ndarray) -> None:
    result[...] = whole[(slice(None),) * axis + (part,)]
