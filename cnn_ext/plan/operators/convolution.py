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

__all__ = ["chained", "convolution", "separable"]

# What a task of a chain reads and writes of its images in one convolution: it stays in
# a second-level cache. Tasks that a chain has at least, to be shared out. MobileNetV2,
# 32 images: 42 ms so, 47 layer by layer; 8 images 11.5 and 12.2.
_CHAIN_BYTES = 3 << 19
_CHAIN_TASKS = 8


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
    last = _channels_last(g, x.last)
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
    x, *rest = inputs
    y = p.value(g.y_shape, p.names[op.layer], last=_channels_last(g, x.last))
    stored = 0 if rest else end
    _, weight, bias, _, ready = _link(op, g, stored, x.last, y.last)
    p.do(_WHAT[stored], _conv.conv2d, g, x, weight, bias, y, stored, ready, writes=(y,))
    if rest:
        residual = p.in_order(rest[0], y.last)
        return added(p, y, residual, p.names[op.norm], end)
    return y


def _link(
    op: Operation, g: ConvGeometry, end: int, x_last: bool, y_last: bool
) -> tuple[ConvGeometry, np.ndarray, np.ndarray | None, int, np.ndarray | None]:
    """One convolution as `_conv.conv2d_chain` takes it, its weights packed."""
    layer = op.layer
    weight = np.ascontiguousarray(layer.weight.value)
    bias = None if layer.bias is None else layer.bias.value
    if op.norm is not None:
        norm, source, offset = op.norm, weight, bias
        gain = None if norm.weight is None else norm.weight.value
        shift = None if norm.bias is None else norm.bias.value
        weight, bias = np.empty_like(weight), np.empty(g.k, weight.dtype)
        _fold(norm, source, offset, gain, shift, weight, bias)
    return g, weight, bias, end, packed(g, weight, bias, x_last, y_last)


def chained(p: Program, ops: list[Operation], inputs: list[Value]) -> Value | None:
    """Frozen convolutions that read one another, some images at a time.

    What is between them never leaves the caches, nor takes the plan's memory. `inputs`
    may hold a second value, which the last one adds. None where it does not pay.
    """
    x, *rest = inputs
    n, shape = x.shape[0], x.shape[1:]
    sizes = []
    for op in ops:
        sizes.append(op.layer.geometry(shape))
        shape = sizes[-1].y_shape[1:]
    some = _images_together(n, sizes, p.dtype.itemsize)
    lasts = [x.last]
    for g in sizes:
        lasts.append(_channels_last(g, lasts[-1]))
    if not some or not all(lasts[1:]):
        return None
    ends = [ENDS[type(op.activation)] for op in ops]
    stored = [*ends[:-1], 0 if rest else ends[-1]]
    links = tuple(
        _link(op, op.layer.geometry(g.x_shape[1:], some), end, *order)
        for op, g, end, *order in zip(
            ops, sizes, stored, lasts, lasts[1:], strict=False
        )
    )
    y = p.value((n, *shape), p.names[ops[-1].layer], last=True)
    residual = p.in_order(rest[0], True) if rest else None
    p.do(
        " > ".join(_WHAT[end] for end in ends) + (" + add" if rest else ""),
        _conv.conv2d_chain, links, x, y, residual, ends[-1], writes=(y,),
    )  # fmt: skip
    return y


def _images_together(n: int, sizes: list[ConvGeometry], itemsize: int) -> int:
    """How many of n images go through a chain at a time; 0: all, layer by layer."""
    most = max(g.c * g.h * g.w + g.k * g.out_h * g.out_w for g in sizes) * itemsize
    if n * most <= _CHAIN_BYTES:
        return 0
    limit = min(n // _CHAIN_TASKS, _CHAIN_BYTES // most)
    return max((k for k in range(1, limit + 1) if n % k == 0), default=0)


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


def _channels_last(g: ConvGeometry, x_last: bool) -> bool:
    """The memory order of a convolution's result, and so of what follows it.

    With enough maps, vectors over channels are full, however small the maps.
    """
    return x_last if g.groups > 1 and g.groups == g.c == g.k else g.k >= 16


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
    y = p.value(g.y_shape, name, last=_channels_last(g, x.last))
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
