"""Batch normalisation, with a sum and an activation behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_ext import _normalize
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.operators.base import Back, no_way_back
from cnn_ext.plan.operators.elementwise import ENDS
from cnn_ext.plan.program import NoPlanError, Program, Value

__all__ = ["batch_norm", "gain_and_shift", "normalized"]


def batch_norm(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    """`inputs` may hold a second value, which is added before the activation."""
    layer, (x, *rest) = op.layer, inputs
    residual = p.in_order(rest[0], x.last) if rest else None
    end = ENDS[type(op.activation)]
    if not p.train:
        return normalized(p, layer, x, residual, end), no_way_back
    count = math.prod(x.shape) // x.shape[1]
    if count == 1:
        raise NoPlanError(f"layer {p.names[layer]}: one value has no variance")
    gain, shift = gain_and_shift(p, layer)
    name = p.names[layer]
    y = p.like(x, name)
    stats = p.value((5, layer.channels), f"statistics of {name}", dtype=np.float64)
    p.do(
        _norm_name(residual, end), _normalize.train,
        x, gain, shift, y, stats, layer.eps, end, residual,
        writes=(y, stats), over=() if residual is None else ((y, residual),),
    )  # fmt: skip
    p.do("running mean and variance", _follow, layer, stats, count, writes=())

    def back(
        grad_y: Value, wanted: Sequence[bool], more: Value | None = None
    ) -> list[Value | None]:
        # of the added value, too: the error of the sum, stopped
        error = grad_y
        if more is not None or (rest and end):
            error = p.like(y, grad_y.name)
        grad_x = p.like(x, f"gradient of {x.name}") if wanted[0] else None
        grads = {} if gain is None else {k: p.gradient(layer, k) for k in _AFFINE}
        targets = grad_x, grads.get("weight"), grads.get("bias")
        writes = [v for v in targets if v is not None]
        over = [(error, grad_y)]
        parts: tuple[Any, ...] = ()
        if error is not grad_y:
            parts = error, y if end else None, more
            over += [(error, y if more is None else more)]
            writes.insert(0, error)
        if grad_x is not None:
            over += [(grad_x, v) for v in (grad_y, more, x) if v is not None]
        p.do(
            "batch norm backward", _normalize.backward,
            grad_y, x, stats, *targets, end, *parts,
            writes=tuple(writes), over=tuple(over),
        )  # fmt: skip
        for key, value in grads.items():
            p.add_gradient(layer, key, value)
        return [grad_x, error] if rest else [grad_x]

    return y, back


_AFFINE = ("weight", "bias")


def gain_and_shift(p: Program, layer: Any) -> tuple[Value | None, Value | None]:
    if layer.weight is None:
        return None, None
    return p.parameter(layer, "weight"), p.parameter(layer, "bias")


def _norm_name(residual: Value | None, end: int) -> str:
    plus = "" if residual is None else " + add"
    return f"batch norm{plus}{('', ' + relu', ' + relu6')[end]}"


def normalized(
    p: Program, layer: Any, x: Value, residual: Value | None, end: int
) -> Value:
    """In inference: by the running values, in the place of x if that is done with."""
    y = p.like(x, p.names[layer])
    gain, shift = gain_and_shift(p, layer)
    over = ((y, x),) if residual is None else ((y, x), (y, residual))
    p.do(
        _norm_name(residual, end), _infer, layer, x, gain, shift, y, end, residual,
        writes=(y,), over=over,
    )  # fmt: skip
    return y


def _follow(layer: Any, stats: np.ndarray, count: int) -> None:
    """Move the running values towards those of a batch."""
    mean, variance = layer.running_mean, layer.running_var
    # new arrays: a pass of another thread may be reading the old ones
    new = np.empty_like(mean.value), np.empty_like(variance.value)
    _normalize.follow(stats, mean.value, variance.value, *new, layer.momentum, count)
    mean.value, variance.value = new


def _infer(layer, x, gain, shift, y, end, residual) -> None:
    mean, variance = layer.running_mean.value, layer.running_var.value
    _normalize.infer(x, mean, variance, gain, shift, y, layer.eps, end, residual)
