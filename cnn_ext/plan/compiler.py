"""A model and a shape become a program: the walk forward, then the walk back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_ext.plan.fusion import Operation, chains, operations
from cnn_ext.plan.operators import Back, added, chained, write
from cnn_ext.plan.program import Program, Slot, Value

if TYPE_CHECKING:
    from cnn_ext.model import Model

__all__ = ["compiled"]


def compiled(
    model: Model,
    shape: tuple[int, ...],
    dtype: Any,
    train: bool,
    input_gradient: bool,
    frozen: bool = False,
) -> Program:
    """Write down all steps of a model for a batch of this shape.

    The same walk as `Graph.forward` and `Graph.backward`, once for all runs.
    """
    graph = model._graph
    p = Program(shape, dtype, train, graph.names, frozen)
    p.output = len(graph.steps)
    shapes = graph.shapes(shape[1:])
    values: dict[int, Any] = {0: p.x}
    walked: list[tuple[Operation, Back]] = []
    ops = operations(model, train)
    for run in chains(ops) if frozen else [[op] for op in ops]:
        if len(run) > 1:
            inputs = [values[i] for i in (run[0].inputs[0], *run[-1].inputs[1:])]
            y = chained(p, run, inputs)
            if y is not None:
                values[run[-1].output] = y
                continue
        for op in run:
            values[op.output], back = write(p, op, [values[i] for i in op.inputs])
            walked.append((op, back))
    y = values[p.output]
    p.y = y if isinstance(y, Slot) else _result(p, y)
    if not train:
        return p

    p.turn_back()
    p.grad_y = p.value((shape[0], *shapes[-1]), "gradient of y")
    # of[i]: the error of value i, as far as the operations walked so far make it;
    # more[i]: a part of it that the operation which made i will add as it reads
    of: dict[int, Value] = {p.output: p.grad_y}
    more: dict[int, Value] = {}
    joining = {op.output for op, _ in walked if op.joins_errors}
    for op, back in reversed(walked):
        if op.output not in of:
            continue  # nothing before it learns
        wanted = [input_gradient or graph.trained[i] for i in op.inputs]
        if not any(wanted) and not any(layer.parameters for layer in op.layers):
            continue
        arriving = of.pop(op.output)
        if op.output == p.output and isinstance(y, Value):
            arriving = p.in_order(arriving, y.last)
        parts = [more.pop(op.output)] if op.output in more else []
        errors = back(arriving, wanted, *parts)
        for i, asked, grad in zip(op.inputs, wanted, errors, strict=True):
            if not asked or grad is None:
                continue
            grad = p.in_order(grad, values[i].last)
            # where paths join, errors add
            if i not in of:
                of[i] = grad
            elif i in joining and i not in more:
                more[i] = grad
            else:
                of[i] = added(p, of[i], grad, grad.name)
    if input_gradient:
        p.grad_x = of[0]
    return p


def _result(p: Program, y: Value) -> Value:
    """The output in plain order, in memory of the plan's own."""
    if y.root is not p.x:
        return p.in_order(y, False)
    copy = p.like(y, "y")
    p.do("copy", np.copyto, copy, y, writes=(copy,))
    return copy
