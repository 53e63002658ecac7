"""What the operators have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cnn_ext.plan.program import Program, Value

__all__ = ["Back", "no_way_back", "weight_and_bias"]

#: From the error of the output, and for each input whether its error is asked for, to
#: the inputs' errors; what was not asked for may be None. Where the operation
#: `joins_errors` a third argument may be a second part of the output's error.
Back = Callable[..., list[Value | None]]


def no_way_back(grad_y: Value, wanted: Sequence[bool]) -> list[Value | None]:
    raise AssertionError("a plan for inference has no way back")


def weight_and_bias(
    p: Program, layer: Any, key: str = "weight"
) -> tuple[Value, Value | None]:
    bias = None if layer.bias is None else p.parameter(layer, "bias")
    return p.parameter(layer, key), bias
