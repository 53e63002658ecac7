"""Linear maps, and the way from images to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cnn_ext import _conv, _row
from cnn_ext._geometry import ConvGeometry
from cnn_ext.functional.linear import as_filters, as_planes, as_row
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.operators.base import Back, weight_and_bias
from cnn_ext.plan.operators.elementwise import stopped
from cnn_ext.plan.program import Program, Value, view_of

__all__ = ["filters_of", "flatten", "linear"]


def linear(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    """The calls of `functional.linear`."""
    layer, (x,) = op.layer, inputs
    relu = op.activation is not None
    weight, bias = weight_and_bias(p, layer)
    (n, c), k = x.shape, weight.shape[0]
    y = p.value((n, k), p.names[layer])
    what = "linear + relu" if relu else "linear"
    if n == 1:
        p.do(what, _row.forward, x, weight, bias, y, relu, writes=(y,))
    else:
        g = ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))
        args = g, pixels_of(x), filters_of(weight), bias, pixels_of(y), relu
        p.do(what, _conv.conv2d, *args, writes=(y,))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        if relu:
            grad_y = stopped(p, grad_y, y)
        _linear_weight(p, layer, grad_y, x)
        if bias is not None:
            bias_pass, error = _conv.conv2d_backward_bias, (pixels_of(grad_y),)
            p.do_gradient("linear_backward_bias", bias_pass, error, layer, "bias")
        if not wanted[0]:
            return [None]
        grad_x = p.like(x, f"gradient of {x.name}")
        what = "linear_backward_input"
        if n == 1:
            p.do(what, _row.backward_input, grad_y, weight, grad_x, writes=(grad_x,))
        else:
            g = ConvGeometry.of((1, k, 1, c), (n, k, 1, 1))
            errors = planes_of(grad_x)
            args = g, planes_of(weight), filters_of(grad_y), None, errors
            p.do(what, _conv.conv2d, *args, writes=(grad_x,))
        return [grad_x]

    return y, back


def _linear_weight(p: Program, layer: Any, grad_y: Value, x: Value) -> None:
    (n, c), k = x.shape, grad_y.shape[1]
    what = "linear_backward_weight"
    if n == 1:
        p.do_gradient(what, _row.backward_weight, (grad_y, x), layer, "weight")
    else:
        g = ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))
        pixels = g, pixels_of(grad_y), pixels_of(x)
        weight_pass = _conv.conv2d_backward_weight
        p.do_gradient(what, weight_pass, pixels, layer, "weight", as_filters)


def pixels_of(x: Value) -> Value:
    n, c = x.shape
    return view_of(x, (1, c, 1, n), as_row)


def planes_of(x: Value) -> Value:
    n, c = x.shape
    return view_of(x, (1, n, 1, c), as_planes)


def filters_of(x: Value) -> Value:
    return view_of(x, (*x.shape, 1, 1), as_filters)


def flatten(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    (x,) = inputs
    planes = p.in_order(x, False)
    n = x.shape[0]
    y = view_of(planes, (n, math.prod(x.shape[1:])), lambda a: a.reshape(n, -1))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return [view_of(grad_y, x.shape, lambda a: a.reshape(x.shape))]

    return y, back
