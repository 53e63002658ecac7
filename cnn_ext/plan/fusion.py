"""From the steps of a model to operations: what runs as one, and what need not run.

Each rewrite keeps the result:

- In inference, dropout does nothing and goes.
- An activation goes into the operation before it: convolution, linear map, batch
  normalisation or sum apply it as they store.
- In inference, batch normalisation goes into the convolution before it.
- A sum of two goes into the batch normalisation that makes one of them.
- In training, ``max_pool(relu(x))`` becomes ``relu(max_pool(x))``, on fewer pixels.
  ReLU and ReLU6 are monotone, so the value is the same, NaN included. So is the
  gradient: where the maximum is in their rising part the same pixel wins, the first of
  equals; elsewhere their derivative is 0, and so is every pixel's error, whichever won.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cnn_ext.layers import (
    Add,
    BatchNorm2d,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Dropout2d,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
)

if TYPE_CHECKING:
    from cnn_ext.model import Model

__all__ = ["Operation", "chains", "operations"]

_CONVOLUTIONS = (Conv2d, DepthwiseConv2d)
_PIECEWISE = (ReLU, ReLU6)


@dataclass(frozen=True)
class Operation:
    """A layer's place in the graph, and the layers that run with it.

    Attributes
    ----------
    layer : Layer
    inputs : tuple of int
        Numbers of the values that it takes; 0 is the model's input. After a layer of
        one input that has or is a `norm`, the second is a value that is added.
    output : int
    norm : BatchNorm2d or None
        What follows a convolution and runs in it.
    activation : Layer or None
        What follows and runs in it.
    """

    layer: Any
    inputs: tuple[int, ...]
    output: int
    norm: Any = None
    activation: Any = None

    @property
    def joins_errors(self) -> bool:
        """Whether its way back takes an error in two parts, and adds as it reads."""
        return type(self.layer) is BatchNorm2d and len(self.inputs) == 2

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers that it runs, in order."""
        parts = (self.layer, self.norm, self.activation)
        return tuple(part for part in parts if part is not None)


def operations(model: Model, train: bool) -> list[Operation]:
    """Return what is to be run for a model, in order."""
    ops = [
        Operation(step.layer, step.inputs, k + 1)
        for k, step in enumerate(model._graph.steps)
    ]
    if not train:
        ops = _without_dropout(ops)
    ops = _pool_first(ops) if train else _merged(ops, _takes_norm, "norm")
    ops = _with_sums(ops)
    return _merged(ops, _takes_activation, "activation")


def chains(ops: list[Operation]) -> list[list[Operation]]:
    """Return the operations in runs that may go image by image through a cache.

    That pays around a depthwise convolution, which does little with what it reads: it,
    and the convolutions beside it, where nothing else reads what is between.
    """
    reader = _only_reader(ops)
    runs: list[list[Operation]] = []
    for op in ops:
        run = runs[-1] if runs else [op]
        before = run[-1]
        if (
            before is not op
            and reader.get(before.output) is op
            and op.inputs[0] == before.output
            and len(before.inputs) == 1
            and _is(before.layer, _CONVOLUTIONS)
            and _is(op.layer, _CONVOLUTIONS)
            and _is_depthwise(before.layer) != _is_depthwise(op.layer)
            and (len(run) == 1 or not _is_depthwise(op.layer))
        ):
            run.append(op)
        else:
            runs.append([op])
    return runs


def _is_depthwise(layer: Any) -> bool:
    return layer.groups > 1 and layer.groups == layer.in_channels


def _is(layer: Layer | None, kinds: tuple[type, ...]) -> bool:
    """Whether the layer is one of these: a subclass may do anything."""
    return type(layer) in kinds


def _without_dropout(ops: list[Operation]) -> list[Operation]:
    same: dict[int, int] = {}
    kept = []
    for op in ops:
        inputs = tuple(same.get(i, i) for i in op.inputs)
        if _is(op.layer, (Dropout, Dropout2d)) and op is not ops[-1]:
            same[op.output] = inputs[0]
        else:
            kept.append(replace(op, inputs=inputs))
    return kept


def _only_reader(ops: list[Operation]) -> dict[int, Operation]:
    """The operation that reads a value, for those that are read once."""
    readers = Counter(i for op in ops for i in op.inputs)
    return {i: op for op in ops for i in op.inputs if readers[i] == 1}


def _pool_first(ops: list[Operation]) -> list[Operation]:
    """Let maxima be taken before ReLU, except where it costs nothing: in a norm."""
    maker = {op.output: op for op in ops}
    reader = _only_reader(ops)
    swapped: dict[Operation, Operation] = {}
    for op in ops:
        pool = reader.get(op.output)
        if (
            _is(op.layer, _PIECEWISE)
            and pool is not None
            and _is(pool.layer, (MaxPool2d,))
            and not _is(getattr(maker.get(op.inputs[0]), "layer", None), (BatchNorm2d,))
        ):
            swapped[op] = replace(op, layer=pool.layer)
            swapped[pool] = replace(pool, layer=op.layer)
    return [swapped.get(op, op) for op in ops]


def _merged(ops: list[Operation], takes, role: str) -> list[Operation]:
    """Give each operation that `takes` its only reader this reader's layer."""
    reader = _only_reader(ops)
    merged: list[Operation] = []
    gone: set[Operation] = set()
    for op in ops:
        if op in gone:
            continue
        after = reader.get(op.output)
        if after is not None and len(after.inputs) == 1 and takes(op, after.layer):
            gone.add(after)
            changes: dict[str, Any] = {role: after.layer}
            op = replace(op, output=after.output, **changes)
        merged.append(op)
    return merged


def _with_sums(ops: list[Operation]) -> list[Operation]:
    """Let normalisations add what their only reader, a sum of two, would add."""
    maker = {op.output: op for op in ops}
    reader = _only_reader(ops)
    gone: set[Operation] = set()
    sums: dict[Operation, Operation] = {}
    for op in ops:
        if not _is(op.layer, (Add,)) or len(op.inputs) != 2:
            continue
        for i, other in (op.inputs, op.inputs[::-1]):
            norm = maker.get(i)
            if norm is None or reader.get(i) is not op:
                continue
            if norm.norm is not None or _is(norm.layer, (BatchNorm2d,)):
                gone.add(norm)
                inputs = (*norm.inputs, other)
                sums[op] = replace(norm, inputs=inputs, output=op.output)
                break
    return [sums.get(op, op) for op in ops if op not in gone]


def _takes_norm(op: Operation, after: Layer) -> bool:
    return _is(op.layer, _CONVOLUTIONS) and _is(after, (BatchNorm2d,))


def _takes_activation(op: Operation, after: Layer) -> bool:
    if op.norm is not None or _is(op.layer, (BatchNorm2d, Add)):
        return _is(after, _PIECEWISE)
    if _is(op.layer, _CONVOLUTIONS):
        return _is(after, _PIECEWISE)
    return _is(op.layer, (Linear,)) and _is(after, (ReLU,))
