"""Shapes to measure on, and the arrays of one of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnn_ext._geometry import ConvGeometry, PoolGeometry

__all__ = ["ORDERS", "PASSES", "SHAPES", "Data", "Shape", "Task", "read_shapes"]

SHAPES = Path(__file__).with_name("shapes.csv")
ORDERS = ("nchw", "channels_last")
# `argmax` is the forward pass of max pooling that also returns the winners
PASSES = ("forward", "grad_x", "grad_w", "argmax")

Array = np.ndarray[Any, Any]


class Shape(NamedTuple):
    """One line of a CSV of shapes: N images (C, H, W), K filters of R x S taps."""

    kind: str
    name: str
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: int
    pad_h: int
    pad_w: int
    dilation: int
    groups: int
    source: str

    @property
    def is_conv(self) -> bool:
        return self.kind == "conv"

    @property
    def geometry(self) -> ConvGeometry | PoolGeometry:
        if self.is_conv:
            return ConvGeometry.of(
                self.x_shape,
                self.weight_shape,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
            )
        return PoolGeometry.of(
            self.x_shape, (self.r, self.s), self.stride, self.padding, self.dilation
        )

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.geometry.y_shape

    @property
    def padding(self) -> tuple[int, int]:
        return self.pad_h, self.pad_w

    @property
    def operations(self) -> int:
        """Operations of the direct sum, any pass; a multiply-add counts two."""
        assert self.is_conv
        return 2 * self.geometry.multiply_adds  # type: ignore[union-attr]

    @property
    def passes(self) -> tuple[str, ...]:
        if self.is_conv:
            return "forward", "grad_x", "grad_w"
        return ("forward", "argmax", "grad_x") if self.kind == "max" else PASSES[:2]


class Task(NamedTuple):
    """What one line of the table measures."""

    shape: Shape
    pass_: str
    order: str
    dtype: str

    @property
    def group(self) -> str:
        """Convolutions that the summary shows together."""
        s = self.shape
        if not s.is_conv:
            return f"{s.kind} pool"
        if s.groups > 1:
            return "depthwise" if s.groups == s.c else "grouped"
        if min(s.c, s.k) < 16:
            return "C or K < 16"
        if (s.r, s.s, s.stride, s.dilation) == (3, 3, 1, 1):
            return "3x3 s1 C,K>=32" if min(s.c, s.k) >= 32 else "3x3 s1 other"
        return "1x1" if (s.r, s.s) == (1, 1) else "other"

    @property
    def traffic(self) -> int:
        """Bytes that a pooling pass must read and write."""
        item = np.dtype(self.dtype).itemsize
        x, y = (int(np.prod(s)) for s in (self.shape.x_shape, self.shape.y_shape))
        winners = self.pass_ == "argmax" or (
            self.pass_ == "grad_x" and self.shape.kind == "max"
        )
        return (x + y) * item + (y if winners else 0)


class Data(NamedTuple):
    """Arrays of one task, logical order (N, C, H, W), in the task's memory order."""

    x: Array
    weight: Array | None
    grad_y: Array

    @classmethod
    def of(cls, shape: Shape, dtype: str, seed: int = 0) -> Data:
        """Normal random numbers, in C order."""
        rng = np.random.default_rng(seed)

        def normal(size: tuple[int, ...]) -> Array:
            return rng.standard_normal(size, np.dtype(dtype))

        weight = normal(shape.weight_shape) if shape.is_conv else None
        return cls(normal(shape.x_shape), weight, normal(shape.y_shape))

    def ordered(self, order: str) -> Data:
        """The same values; weights are always C-contiguous."""
        if order == "nchw":
            return self
        return Data(channels_last(self.x), self.weight, channels_last(self.grad_y))


def channels_last(x: Array) -> Array:
    """Copy of `x` with the channels side by side in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def empty(shape: tuple[int, ...], dtype: Any, order: str) -> Array:
    """New array in either memory order."""
    if order == "nchw":
        return np.empty(shape, dtype)
    n, c, h, w = shape
    return np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def read_shapes(path: Path | str = SHAPES, only: Iterable[str] = ()) -> list[Shape]:
    """Read a CSV of shapes; lines that start with # are comments.

    Parameters
    ----------
    path : path
        Columns: kind (conv, max, avg), name, N, C, H, W, K, R, S, stride, pad_h,
        pad_w, dilation, groups, source.
    only : iterable of str
        Keep these names; all if empty.

    Raises
    ------
    ValueError
        For a malformed line, or a name in `only` that is not there.
    """
    shapes = []
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row or row[0].startswith("#"):
                continue
            try:
                kind, name, *sizes = row[:14]
                shape = Shape(kind, name, *map(int, sizes), ",".join(row[14:]))
                if kind not in ("conv", "max", "avg"):
                    raise ValueError(f"kind must be conv, max or avg, got {kind!r}")
                shape.geometry  # noqa: B018  (raises if the sizes do not fit)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            shapes.append(shape)
    wanted = set(only)
    if unknown := wanted - {shape.name for shape in shapes}:
        raise ValueError(f"{path} has no shape named {', '.join(sorted(unknown))}")
    return [shape for shape in shapes if not wanted or shape.name in wanted]
