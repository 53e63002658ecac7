"""Convolutions, and what runs in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnn_ext import _conv, _normalize
from cnn_ext._geometry import ConvGeometry
from cnn_ext.functional.prepared import packed
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.operators.base import Back, no_way_back, weight_and_bias
from cnn_ext.plan.operators.elementwise import ENDS, added, stopped
from cnn_ext.plan.operators.normalization import gain_and_shift, normalized
from cnn_ext.plan.program import Program, Value

__all__ = ["convolution", "separable"]


_WHAT = ("conv2d", "conv2d + relu", "conv2d + relu6")


def convolution(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    """With `op.norm`, in inference, `inputs` may hold a second value to be added."""
    layer, (x, *rest) = op.layer, inputs
    g = layer.geometry(x.shape[1:], x.shape[0])
    weight, bias = weight_and_bias(p, layer)
    keys, end = ("weight", "bias"), ENDS[type(op.activation)]
    if p.frozen:
        return _frozen(p, op, g, inputs, end), no_way_back
    if op.norm is None:
        y, back = _convolved(p, layer, g, x, weight, bias, keys, end)
        return y, lambda grad_y, wanted: [back(grad_y, wanted[0])]
    last = _channels_last(g, x)
    residual = p.in_order(rest[0], last) if rest else None
    if not _folding_pays(g):
        y, _ = _convolved(p, layer, g, x, weight, bias, keys)
        return normalized(p, op.norm, y, residual, end), no_way_back
    folded = p.value(weight.shape, "folded weight"), p.value((g.k,), "folded bias")
    scaling = gain_and_shift(p, op.norm)
    p.do(
        "fold batch norm", _fold, op.norm, weight, bias, *scaling, *folded,
        writes=folded,
    )  # fmt: skip
    in_store = end if residual is None else 0
    y, _ = _convolved(p, layer, g, x, *folded, keys, in_store)
    if residual is not None:
        y = added(p, y, residual, p.names[op.norm], end)
    return y, no_way_back


def _frozen(
    p: Program, op: Operation, g: ConvGeometry, inputs: list[Value], end: int
) -> Value:
    """The weights are those of now, the model nobody else's: folded, packed once."""
    layer, (x, *rest) = op.layer, inputs
    weight = np.ascontiguousarray(layer.weight.value)
    bias = None if layer.bias is None else layer.bias.value
    if op.norm is not None:
        norm, source, offset = op.norm, weight, bias
        gain = None if norm.weight is None else norm.weight.value
        shift = None if norm.bias is None else norm.bias.value
        weight, bias = np.empty_like(weight), np.empty(g.k, weight.dtype)
        _fold(norm, source, offset, gain, shift, weight, bias)
    y = p.value(g.y_shape, p.names[layer], last=_channels_last(g, x))
    stored = 0 if rest else end
    ready = packed(g, weight, bias, x.last, y.last)
    p.do(_WHAT[stored], _conv.conv2d, g, x, weight, bias, y, stored, ready, writes=(y,))
    if rest:
        residual = p.in_order(rest[0], y.last)
        return added(p, y, residual, p.names[op.norm], end)
    return y


def _fold(layer, weight, bias, gain, shift, folded_weight, folded_bias) -> None:
    mean, variance = layer.running_mean.value, layer.running_var.value
    _normalize.fold(
        weight, bias, mean, variance, gain, shift, layer.eps, folded_weight, folded_bias
    )


def _folding_pays(g: ConvGeometry) -> bool:
    """Whether to multiply the weights by a normalisation's scale, in every pass.

    So parameters may change at any time. A filter has fewer weights than its maps have
    pixels, but for the last layers on few images: there the maps are multiplied.
    """
    return g.c // g.groups * g.r * g.s <= g.n * g.out_h * g.out_w


def separable(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    layer, (x,) = op.layer, inputs
    first, second = layer.geometries(x.shape[1:], x.shape[0])
    depthwise = p.parameter(layer, "depthwise")
    pointwise, bias = weight_and_bias(p, layer, "pointwise")
    h, back_h = _convolved(p, layer, first, x, depthwise, None, ("depthwise", ""))
    y, back_y = _convolved(p, layer, second, h, pointwise, bias, ("pointwise", "bias"))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        grad_h = back_y(grad_y, True)
        assert grad_h is not None
        return [back_h(grad_h, wanted[0])]

    return y, back


def _channels_last(g: ConvGeometry, x: Value) -> bool:
    """The memory order of a convolution's result, and so of what follows it.

    With enough maps, vectors over channels are full, however small the maps.
    """
    return x.last if g.groups > 1 and g.groups == g.c == g.k else g.k >= 16


def _convolved(
    p: Program,
    layer: Any,
    g: ConvGeometry,
    x: Value,
    weight: Value,
    bias: Value | None,
    keys: tuple[str, str],
    end: int = 0,
) -> tuple[Value, Callable[[Value, bool], Value | None]]:
    name = p.names[layer]
    y = p.value(g.y_shape, name, last=_channels_last(g, x))
    p.do(_WHAT[end], _conv.conv2d, g, x, weight, bias, y, end, writes=(y,))

    def back(grad_y: Value, wanted: bool) -> Value | None:
        if end:
            grad_y = stopped(p, grad_y, y, end)
        weight_pass = _conv.conv2d_backward_weight
        args = g, grad_y, x
        p.do_gradient("conv2d_backward_weight", weight_pass, args, layer, keys[0])
        if bias is not None:
            bias_pass = _conv.conv2d_backward_bias
            errors = (grad_y.sums or grad_y,)
            p.do_gradient("conv2d_backward_bias", bias_pass, errors, layer, keys[1])
        if not wanted:
            return None
        grad_x = p.like(x, f"gradient of {x.name}")
        p.do(
            "conv2d_backward_input", _conv.conv2d_backward_input,
            g, grad_y, weight, grad_x, writes=(grad_x,),
        )  # fmt: skip
        return grad_x

    return y, back
