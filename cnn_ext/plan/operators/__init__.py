"""The steps of each layer, forward beside backward, as a plan writes them down.

A function here takes the program, an operation and the values of its inputs. It writes
the steps forward and returns the output's value, and a function that writes the steps
back: from the value of the error that arrives, the values of the errors that go on.
Nothing is computed here: the steps call the compiled passes with the arrays that these
values will have.
"""

from __future__ import annotations

from typing import Any

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
from cnn_ext.plan.operators.base import Back
from cnn_ext.plan.operators.convolution import chained, convolution, separable
from cnn_ext.plan.operators.elementwise import activation, add, added, concat
from cnn_ext.plan.operators.linear import flatten, linear
from cnn_ext.plan.operators.normalization import batch_norm
from cnn_ext.plan.operators.pooling import avg_pool, global_avg_pool, max_pool
from cnn_ext.plan.program import Program, Value

__all__ = ["Back", "added", "chained", "write"]

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
_STRIDED = (convolution, separable, concat)


def write(p: Program, op: Operation, inputs: list[Value]) -> tuple[Any, Back]:
    """Write down the steps of one operation."""
    known = _OPERATORS.get(type(op.layer), opaque)
    if known not in _STRIDED and any(map(p.is_x, inputs)):
        p.strided_x = False
    return known(p, op, inputs)
