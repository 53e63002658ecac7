"""Where each value lies: lifetimes, results in the place of what dies, offsets.

Values that never live at the same time share memory. A training step is one line of
steps, forward and back: an activation that its layer's backward needs lives until
then, any other until its last reader; a gradient lives from the step that makes it to
the layer before, often in the space of an activation that has died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnn_ext.plan.program import Program, Step, Value

__all__ = ["ALIGNMENT", "Layout", "allocate", "lay_out"]

#: Bytes: a cache line, and the widest vector that kernels load and store.
ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes of the roots of all values, in one block of `nbytes`."""

    offsets: dict[Value, int]
    nbytes: int
    arena: int


@dataclass(eq=False)
class _Block:
    """Memory that is in use from step `first` to step `last`, by one or more values."""

    size: int
    first: int
    last: int
    offset: int = -1

    def meets(self, other: _Block) -> bool:
        return self.first <= other.last and other.first <= self.last


def lay_out(program: Program, repeat: bool) -> Layout:
    """Find a place for every value of a program.

    With `repeat` the steps back may be taken again: what they read of the steps
    forward then lives on.
    """
    # The loss stands between the steps forward and back: it reads y, writes grad_y.
    loss = Step("loss", print, (program.y,), tuple(filter(None, [program.grad_y])))
    steps = [*program.forward, loss, *program.backward]
    turn, end = len(program.forward), len(steps)
    last: dict[Value, int] = {}
    for k, step in enumerate(steps):
        for value in (*step.reads, *step.writes):
            last[value.root] = k
    for gradient in (program.grad_x, *program.gradients.values()):
        if gradient is not None:
            last[gradient.root] = end

    blocks: dict[Value, _Block] = {}
    kept: list[Value] = []
    for k, step in enumerate(steps):
        for value in step.writes:
            root = value.root
            if root.source == "kept":
                if root not in kept:
                    kept.append(root)
            elif root.source == "arena" and root not in blocks:
                until = last[root]
                if repeat and k < turn < until:
                    until = end
                blocks[root] = _taken_over(step, value, k, blocks, until) or _Block(
                    _rounded(root.nbytes), k, until
                )

    arena = _place(list(dict.fromkeys(blocks.values())))
    offsets = {value: block.offset for value, block in blocks.items()}
    at = arena
    for value in kept:
        offsets[value] = at
        at += _rounded(value.nbytes)
    return Layout(offsets, at, arena)


def _taken_over(
    step: Step, value: Value, k: int, blocks: dict[Value, _Block], until: int
) -> _Block | None:
    """The block of an input that dies in step k, if the result may lie there."""
    for written, read in step.over:
        if written is not value or value.base is not None:
            continue
        block = blocks.get(read.root)
        if block is None or block.last != k or read.root.nbytes != value.nbytes:
            continue
        if value.dtype.itemsize == read.dtype.itemsize:
            block.last = until
            return block
    return None


def _place(blocks: Sequence[_Block]) -> int:
    """Give each block the lowest offset that is free while it lives; the end of all.

    The largest first: the small ones find room between them.
    """
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.first)):
        offset = 0
        for other in placed:  # by rising offset
            if not block.meets(other):
                continue
            if offset + block.size <= other.offset:
                break
            offset = max(offset, other.offset + other.size)
        block.offset = offset
        placed.append(block)
        placed.sort(key=lambda b: b.offset)
    return max((b.offset + b.size for b in blocks), default=0)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def allocate(nbytes: int) -> np.ndarray:
    """A block of bytes that begins on a cache line."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]
