"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence

from cnn_ext import _pool
from cnn_ext._geometry import PoolGeometry
from cnn_ext.functional.pooling import argmax_dtype
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.opaque import opaque
from cnn_ext.plan.operators.base import Back
from cnn_ext.plan.operators.linear import filters_of
from cnn_ext.plan.program import Program, Value

__all__ = ["avg_pool", "global_avg_pool", "max_pool"]


def max_pool(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    layer, (x,) = op.layer, inputs
    name = p.names[layer]
    g = layer.geometry(x.shape[1:], x.shape[0])
    if g.r * g.s > 65536:  # positions in a window have two bytes at most
        return opaque(p, op, inputs)
    y = p.value(g.y_shape, name, last=x.last)
    winners = None
    if p.train:
        winners = p.value(y.shape, "winners", last=y.last, dtype=argmax_dtype(g))
    writes = (y,) if winners is None else (y, winners)
    p.do("max_pool2d", _pool.max_pool2d, g, x, y, winners, writes=writes)

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        grad_x = p.like(x, f"gradient of {x.name}")
        # every window's error goes to one pixel, whole
        grad_x.sums = grad_y.sums or grad_y
        p.do(
            "max_pool2d_backward", _pool.max_pool2d_backward,
            g, grad_y, winners, grad_x, writes=(grad_x,),
        )  # fmt: skip
        return [grad_x]

    return y, back


def avg_pool(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    layer, (x,) = op.layer, inputs
    g = layer.geometry(x.shape[1:], x.shape[0])
    y = p.value(g.y_shape, p.names[layer], last=x.last)
    divisor = layer.divisor_override or 0
    return y, _averaged(p, g, x, y, layer.count_include_pad, divisor)


def global_avg_pool(
    p: Program, op: Operation, inputs: list[Value]
) -> tuple[Value, Back]:
    (x,) = inputs
    n, c = x.shape[:2]
    g = PoolGeometry.of(x.shape, x.shape[2:])
    y = p.value((n, c), p.names[op.layer])
    maps = filters_of(y)
    back_maps = _averaged(p, g, x, maps, True, 0)

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return back_maps(filters_of(grad_y), wanted)

    return y, back


def _averaged(
    p: Program, g: PoolGeometry, x: Value, y: Value, include_pad: bool, divisor: int
) -> Back:
    rule = include_pad, divisor
    p.do("avg_pool2d", _pool.avg_pool2d, g, x, y, *rule, writes=(y,))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        grad_x = p.like(x, f"gradient of {x.name}")
        p.do(
            "avg_pool2d_backward", _pool.avg_pool2d_backward,
            g, grad_y, grad_x, *rule, writes=(grad_x,),
        )  # fmt: skip
        return [grad_x]

    return back
