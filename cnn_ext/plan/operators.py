"""The steps of each layer, forward beside backward, as a plan writes them down.

A function here takes the program, an operation and the values of its inputs. It writes
the steps forward and returns the output's value, and a function that writes the steps
back: from the value of the error that arrives, the values of the errors that go on.
Nothing is computed here: the steps call the compiled passes with the arrays that these
values will have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnn_ext import _conv, _normalize, _pointwise, _pool
from cnn_ext._geometry import ConvGeometry, PoolGeometry
from cnn_ext.functional.linear import (
    as_filters,
    as_planes,
    as_row,
    by_columns,
    by_dots,
)
from cnn_ext.functional.pooling import argmax_dtype
from cnn_ext.layers import (
    ELU,
    GELU,
    Add,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    DepthwiseConv2d,
    Flatten,
    GlobalAvgPool,
    HardSwish,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
    ScaledTanh,
    SeparableConv2d,
    Sigmoid,
    SiLU,
    Tanh,
)
from cnn_ext.plan.fusion import Operation
from cnn_ext.plan.opaque import opaque
from cnn_ext.plan.program import NoPlanError, Program, Value, view_of

__all__ = ["write"]

#: From the error of the output, and for each input whether its error is asked for, to
#: the inputs' errors; what was not asked for may be None.
Back = Callable[[Value, Sequence[bool]], list[Value | None]]


def write(p: Program, op: Operation, inputs: list[Value]) -> tuple[Any, Back]:
    """Write down the steps of one operation."""
    known = _OPERATORS.get(type(op.layer), opaque)
    if known not in _STRIDED and any(value.root is p.x for value in inputs):
        p.strided_x = False
    return known(p, op, inputs)


# -- convolution ---------------------------------------------------------------------


def convolution(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    """With `op.norm`, in inference, `inputs` may hold a second value to be added."""
    layer, (x, *rest) = op.layer, inputs
    g = layer.geometry(x.shape[1:], x.shape[0])
    weight, bias = _weight_and_bias(p, layer)
    keys, end = ("weight", "bias"), _ENDS[type(op.activation)]
    if op.norm is None:
        y, back = _convolved(p, layer, g, x, weight, bias, keys, end == 1)
        return y, lambda grad_y, wanted: [back(grad_y, wanted[0])]
    last = _channels_last(g, x)
    residual = p.in_order(rest[0], last) if rest else None
    if not _folding_pays(g):
        y, _ = _convolved(p, layer, g, x, weight, bias, keys)
        return _normalized(p, op.norm, y, residual, end), _no_way_back
    folded = p.value(weight.shape, "folded weight"), p.value((g.k,), "folded bias")
    scaling = _gain_and_shift(p, op.norm)
    p.do(
        "fold batch norm", _fold, op.norm, weight, bias, *scaling, *folded,
        writes=folded,
    )  # fmt: skip
    in_store = end == 1 and residual is None
    y, _ = _convolved(p, layer, g, x, *folded, keys, in_store)
    if residual is not None:
        y = added(p, y, residual, p.names[op.norm], end)
    elif end == 2:
        z = p.like(y, y.name)
        kind = _pointwise.KINDS["relu6"]
        p.do("relu6", _pointwise.activate, kind, y, z, writes=(z,), over=((z, y),))
        y = z
    return y, _no_way_back


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
    pointwise, bias = _weight_and_bias(p, layer, "pointwise")
    h, back_h = _convolved(p, layer, first, x, depthwise, None, ("depthwise", ""))
    y, back_y = _convolved(p, layer, second, h, pointwise, bias, ("pointwise", "bias"))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        grad_h = back_y(grad_y, True)
        assert grad_h is not None
        return [back_h(grad_h, wanted[0])]

    return y, back


def _weight_and_bias(
    p: Program, layer: Any, key: str = "weight"
) -> tuple[Value, Value | None]:
    bias = None if layer.bias is None else p.parameter(layer, "bias")
    return p.parameter(layer, key), bias


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
    relu: bool = False,
) -> tuple[Value, Callable[[Value, bool], Value | None]]:
    name = p.names[layer]
    y = p.value(g.y_shape, name, last=_channels_last(g, x))
    what = "conv2d + relu" if relu else "conv2d"
    p.do(what, _conv.conv2d, g, x, weight, bias, y, relu, writes=(y,))

    def back(grad_y: Value, wanted: bool) -> Value | None:
        if relu:
            grad_y = _stopped(p, grad_y, y)
        weight_pass = _conv.conv2d_backward_weight
        args = g, grad_y, x
        p.do_gradient("conv2d_backward_weight", weight_pass, args, layer, keys[0])
        if bias is not None:
            bias_pass = _conv.conv2d_backward_bias
            p.do_gradient("conv2d_backward_bias", bias_pass, (grad_y,), layer, keys[1])
        if not wanted:
            return None
        grad_x = p.like(x, f"gradient of {x.name}")
        p.do(
            "conv2d_backward_input", _conv.conv2d_backward_input,
            g, grad_y, weight, grad_x, writes=(grad_x,),
        )  # fmt: skip
        return grad_x

    return y, back


# -- linear maps ---------------------------------------------------------------------


def linear(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    """The calls of `functional.linear`."""
    layer, (x,) = op.layer, inputs
    relu = op.activation is not None
    weight, bias = _weight_and_bias(p, layer)
    (n, c), k = x.shape, weight.shape[0]
    y = p.value((n, k), p.names[layer])
    what = "linear + relu" if relu else "linear"
    if by_dots(n):
        g = ConvGeometry.of((1, k, 1, c), (n, k, 1, 1))
        sums = _filters(p.like(y, y.name))
        p.do(
            "linear", _conv.conv2d_backward_weight,
            g, _planes(x), _planes(weight), sums, writes=(sums,),
        )  # fmt: skip
        y = _ended(p, sums.root, bias, relu)
    else:
        g = ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))
        args = g, _row(x), _filters(weight), bias, _row(y), relu
        p.do(what, _conv.conv2d, *args, writes=(y,))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        if relu:
            grad_y = _stopped(p, grad_y, y)
        _linear_weight(p, layer, grad_y, x)
        if bias is not None:
            bias_pass, error = _conv.conv2d_backward_bias, (_row(grad_y),)
            p.do_gradient("linear_backward_bias", bias_pass, error, layer, "bias")
        if not wanted[0]:
            return [None]
        grad_x = p.like(x, f"gradient of {x.name}")
        g = ConvGeometry.of((1, k, 1, c), (n, k, 1, 1))
        args = g, _planes(weight), _filters(grad_y), None, _planes(grad_x)
        p.do("linear_backward_input", _conv.conv2d, *args, writes=(grad_x,))
        return [grad_x]

    return y, back


def _ended(p: Program, sums: Value, bias: Value | None, relu: bool) -> Value:
    """The sums of one row with bias and ReLU."""
    y = p.like(sums, sums.name)
    what, over = "bias + relu" if relu else "bias", ((y, sums),)
    if bias is not None:
        row = view_of(bias, y.shape, lambda b: b[None])
        p.do(what, _pointwise.add, sums, row, y, int(relu), writes=(y,), over=over)
    elif relu:
        p.do("relu", _pointwise.activate, _RELU, sums, y, writes=(y,), over=over)
    else:
        return sums
    return y


def _linear_weight(p: Program, layer: Any, grad_y: Value, x: Value) -> None:
    (n, c), k = x.shape, grad_y.shape[1]
    what = "linear_backward_weight"
    if by_columns(n, k):
        turned = view_of(grad_y, (k, n), np.transpose)
        if n > 1 and k > 1:
            turned = p.value((k, n), f"{grad_y.name}, transposed")
            p.do("transpose", _transpose, grad_y, turned, writes=(turned,))
        g = ConvGeometry.of((1, n, 1, c), (k, n, 1, 1))
        pixels = g, _planes(x), _filters(turned), None
        p.do_gradient(what, _conv.conv2d, pixels, layer, "weight", as_planes)
    else:
        g = ConvGeometry.of((1, c, 1, n), (k, c, 1, 1))
        weight_pass, args = _conv.conv2d_backward_weight, (g, _row(grad_y), _row(x))
        p.do_gradient(what, weight_pass, args, layer, "weight", as_filters)


def _transpose(x: np.ndarray, y: np.ndarray) -> None:
    y[...] = x.T


def _row(x: Value) -> Value:
    n, c = x.shape
    return view_of(x, (1, c, 1, n), as_row)


def _planes(x: Value) -> Value:
    n, c = x.shape
    return view_of(x, (1, n, 1, c), as_planes)


def _filters(x: Value) -> Value:
    return view_of(x, (*x.shape, 1, 1), as_filters)


def flatten(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    (x,) = inputs
    planes = p.in_order(x, False)
    n = x.shape[0]
    y = view_of(planes, (n, math.prod(x.shape[1:])), lambda a: a.reshape(n, -1))

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return [view_of(grad_y, x.shape, lambda a: a.reshape(x.shape))]

    return y, back


# -- pooling -------------------------------------------------------------------------


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
    maps = _filters(y)
    back_maps = _averaged(p, g, x, maps, True, 0)

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return back_maps(_filters(grad_y), wanted)

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


# -- element by element --------------------------------------------------------------

_RELU = _pointwise.KINDS["relu"]
#: How `_pointwise.add` and `_normalize` name what they apply at the end.
_ENDS: dict[Any, int] = {type(None): 0, ReLU: 1, ReLU6: 2}


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


def _stopped(p: Program, grad_y: Value, y: Value, end: int = 1) -> Value:
    """The error behind a fused ReLU: what arrives where it was on."""
    kind = _pointwise.KINDS["relu6"] if end == 2 else _RELU
    return _delta(p, "relu backward", kind, grad_y, y)


def add(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    last = any(x.last for x in inputs)
    end = _ENDS[type(op.activation)]
    y, *rest = (p.in_order(x, last) for x in inputs)
    for part in rest:
        y = added(p, y, part, p.names[op.layer], end if part is rest[-1] else 0)

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        return [_stopped(p, grad_y, y, end) if end else grad_y] * len(inputs)

    return y, back


def added(p: Program, a: Value, b: Value, name: str, end: int = 0) -> Value:
    """The sum of two values, in the place of one of them if it is not read again."""
    y = p.like(a, name)
    what = ("add", "add + relu", "add + relu6")[end]
    p.do(what, _pointwise.add, a, b, y, end, writes=(y,), over=((y, a), (y, b)))
    return y


# -- batch normalisation -------------------------------------------------------------


def batch_norm(p: Program, op: Operation, inputs: list[Value]) -> tuple[Value, Back]:
    """`inputs` may hold a second value, which is added before the activation."""
    layer, (x, *rest) = op.layer, inputs
    residual = p.in_order(rest[0], x.last) if rest else None
    end = _ENDS[type(op.activation)]
    if not p.train:
        return _normalized(p, layer, x, residual, end), _no_way_back
    count = math.prod(x.shape) // x.shape[1]
    if count == 1:
        raise NoPlanError(f"layer {p.names[layer]}: one value has no variance")
    gain, shift = _gain_and_shift(p, layer)
    name = p.names[layer]
    y = p.like(x, name)
    stats = p.value((5, layer.channels), f"statistics of {name}", dtype=np.float64)
    p.do(
        _norm_name(residual, end), _normalize.train,
        x, gain, shift, y, stats, layer.eps, end, residual,
        writes=(y, stats), over=() if residual is None else ((y, residual),),
    )  # fmt: skip
    p.do("running mean and variance", _follow, layer, stats, count, writes=())

    def back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
        error, stop = grad_y, end
        if rest and end:  # the added value's error is stopped too
            error, stop = _stopped(p, grad_y, y, end), 0
        grad_x = p.like(x, f"gradient of {x.name}") if wanted[0] else None
        grads = {} if gain is None else {k: p.gradient(layer, k) for k in _AFFINE}
        targets = grad_x, grads.get("weight"), grads.get("bias")
        p.do(
            "batch norm backward", _normalize.backward,
            error, x, stats, *targets, stop,
            writes=tuple(v for v in targets if v is not None),
            over=() if grad_x is None else ((grad_x, error), (grad_x, x)),
        )  # fmt: skip
        for key, value in grads.items():
            p.add_gradient(layer, key, value)
        return [grad_x, error] if rest else [grad_x]

    return y, back


_AFFINE = ("weight", "bias")


def _gain_and_shift(p: Program, layer: Any) -> tuple[Value | None, Value | None]:
    if layer.weight is None:
        return None, None
    return p.parameter(layer, "weight"), p.parameter(layer, "bias")


def _norm_name(residual: Value | None, end: int) -> str:
    plus = "" if residual is None else " + add"
    return f"batch norm{plus}{('', ' + relu', ' + relu6')[end]}"


def _normalized(
    p: Program, layer: Any, x: Value, residual: Value | None, end: int
) -> Value:
    """In inference: by the running values, in the place of x if that is done with."""
    y = p.like(x, p.names[layer])
    gain, shift = _gain_and_shift(p, layer)
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


def _fold(layer, weight, bias, gain, shift, folded_weight, folded_bias) -> None:
    mean, variance = layer.running_mean.value, layer.running_var.value
    _normalize.fold(
        weight, bias, mean, variance, gain, shift, layer.eps, folded_weight, folded_bias
    )


def _no_way_back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
    raise AssertionError("a plan for inference has no way back")


# -- where paths join ----------------------------------------------------------------


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


_OPERATORS: dict[type, Any] = {
    Add: add,
    AvgPool2d: avg_pool,
    BatchNorm2d: batch_norm,
    Concat: concat,
    Conv2d: convolution,
    DepthwiseConv2d: convolution,
    Flatten: flatten,
    GlobalAvgPool: global_avg_pool,
    Linear: linear,
    MaxPool2d: max_pool,
    SeparableConv2d: separable,
    **dict.fromkeys(
        (ELU, GELU, HardSwish, LeakyReLU, ReLU, ReLU6, ScaledTanh, Sigmoid, SiLU, Tanh),
        activation,
    ),
}
#: Those whose passes read images of any strides.
_STRIDED = (convolution, linear, separable, concat)
