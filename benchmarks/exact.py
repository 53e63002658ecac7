"""Right results in float64, for a sample of the outputs; numpy alone.

Written apart from the package and from every peer, so that it can judge them all.
A sample always has the corners, where padding matters, and random places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .shapes import Data, Shape, Task

__all__ = ["difference", "sampled_error"]

Array = np.ndarray[Any, Any]


def sampled_error(task: Task, data: Data, got: Array, places: int = 48) -> float:
    """Normwise relative error of `got` on a sample: ``|got - exact| / |exact|``.

    Parameters
    ----------
    task : Task
    data : Data
        In any memory order.
    got : ndarray
        The whole result of the task's pass.
    places : int
        About how many pixels of a convolution are looked at.
    """
    shape, rng = task.shape, np.random.default_rng(1)
    if not shape.is_conv:
        pairs = _pool(task, data, got, rng)
    elif task.pass_ == "forward":
        pairs = _forward(shape, data, got, rng, places)
    elif task.pass_ == "grad_x":
        pairs = _grad_x(shape, data, got, rng, places)
    else:
        pairs = _grad_w(shape, data, got, rng)
    wrong = size = 0.0
    for ours, exact in pairs:
        wrong += float(np.square(ours - exact).sum())
        size += float(np.square(exact).sum())
    return (wrong / size) ** 0.5 if size else wrong**0.5


def difference(a: Array, b: Array) -> float:
    """``|a - b| / |b|`` over all elements; image by image, for the memory's sake."""
    wrong = size = 0.0
    for one, other in zip(a, b, strict=True):
        gap = (one - other).ravel()
        wrong += float(np.dot(gap, gap))
        flat = other.ravel()
        size += float(np.dot(flat, flat))
    return (wrong / size) ** 0.5 if size else wrong**0.5


def _pixels(
    size: tuple[int, int, int], rng: np.random.Generator, places: int
) -> Iterator[tuple[int, int, int]]:
    """(image, row, column): the corners of the first and the last image, and others."""
    n, h, w = size
    corners = {(i, y, x) for i in (0, n - 1) for y in (0, h - 1) for x in (0, w - 1)}
    others = zip(*(rng.integers(0, limit, places).tolist() for limit in size))  # noqa: B905
    yield from sorted(corners | set(others))


def _forward(
    s: Shape, data: Data, got: Array, rng: np.random.Generator, places: int
) -> Iterator[tuple[Array, Array]]:
    g = s.geometry
    weight = data.weight.astype(np.float64)
    c, k = s.c // s.groups, s.k // s.groups
    for n, i, j in _pixels((g.n, g.out_h, g.out_w), rng, places):
        patch = np.zeros((s.c, s.r, s.s))
        for r in range(s.r):
            for q in range(s.s):
                y = i * s.stride + r * s.dilation - s.pad_h
                x = j * s.stride + q * s.dilation - s.pad_w
                if 0 <= y < s.h and 0 <= x < s.w:
                    patch[:, r, q] = data.x[n, :, y, x]
        # y[G x K] = weight[G x K x CRS] . patch[G x CRS]
        exact = np.matmul(
            weight.reshape(s.groups, k, c * s.r * s.s),
            patch.reshape(s.groups, c * s.r * s.s, 1),
        )
        yield got[n, :, i, j], exact.ravel()


def _grad_x(
    s: Shape, data: Data, got: Array, rng: np.random.Generator, places: int
) -> Iterator[tuple[Array, Array]]:
    g = s.geometry
    weight = data.weight.astype(np.float64)
    weight = weight.reshape(s.groups, s.k // s.groups, s.c // s.groups, s.r, s.s)
    for n, y, x in _pixels((s.n, s.h, s.w), rng, places):
        exact = np.zeros((s.groups, s.c // s.groups))
        for r in range(s.r):
            for q in range(s.s):
                i, rest_i = divmod(y + s.pad_h - r * s.dilation, s.stride)
                j, rest_j = divmod(x + s.pad_w - q * s.dilation, s.stride)
                if rest_i or rest_j or not (0 <= i < g.out_h and 0 <= j < g.out_w):
                    continue
                error = data.grad_y[n, :, i, j].astype(np.float64)
                exact += np.einsum(
                    "gk,gkc->gc", error.reshape(s.groups, -1), weight[..., r, q]
                )
        yield got[n, :, y, x], exact.ravel()


def _grad_w(
    s: Shape, data: Data, got: Array, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """All taps of the filters' first and last planes, and of a few others."""
    g = s.geometry
    c = s.c // s.groups
    planes = {(0, 0), (s.k - 1, c - 1)}
    planes |= {(int(rng.integers(s.k)), int(rng.integers(c))) for _ in range(6)}
    for k, ci in sorted(planes):
        channel = k // (s.k // s.groups) * c + ci
        error = data.grad_y[:, k].astype(np.float64)
        padded = np.pad(
            data.x[:, channel].astype(np.float64),
            ((0, 0), (s.pad_h, s.pad_h), (s.pad_w, s.pad_w)),
        )
        exact = np.empty((s.r, s.s))
        for r in range(s.r):
            for q in range(s.s):
                y, x = r * s.dilation, q * s.dilation
                seen = padded[
                    :,
                    y : y + (g.out_h - 1) * s.stride + 1 : s.stride,
                    x : x + (g.out_w - 1) * s.stride + 1 : s.stride,
                ]
                exact[r, q] = np.vdot(error, seen)
        yield got[k, ci], exact


def _pool(
    task: Task, data: Data, got: Array, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Whole planes: planes do not depend on each other."""
    s, g = task.shape, task.shape.geometry
    is_max = s.kind == "max"
    planes = {(0, 0), (s.n - 1, s.c - 1)}
    if s.h * s.w < 1e6:
        planes |= {(int(rng.integers(s.n)), int(rng.integers(s.c))) for _ in range(4)}
    for n, c in sorted(planes):
        padded = np.pad(
            data.x[n, c].astype(np.float64),
            ((s.pad_h, s.pad_h), (s.pad_w, s.pad_w)),
            constant_values=-np.inf if is_max else 0,
        )
        extent = s.dilation * (s.r - 1) + 1, s.dilation * (s.s - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent)
        windows = windows[
            :: s.stride, :: s.stride, :: s.dilation, :: s.dilation
        ].reshape(g.out_h, g.out_w, s.r * s.s)
        if task.pass_ != "grad_x":
            exact = windows.max(-1) if is_max else windows.mean(-1)
            yield got[n, c], exact
            continue
        error = data.grad_y[n, c].astype(np.float64)
        winner = windows.argmax(-1) if is_max else None
        grad = np.zeros(padded.shape)
        for tap in range(s.r * s.s):
            y, x = tap // s.s * s.dilation, tap % s.s * s.dilation
            share = error / (s.r * s.s) if winner is None else error * (winner == tap)
            grad[
                y : y + (g.out_h - 1) * s.stride + 1 : s.stride,
                x : x + (g.out_w - 1) * s.stride + 1 : s.stride,
            ] += share
        inside = slice(s.pad_h, s.pad_h + s.h), slice(s.pad_w, s.pad_w + s.w)
        yield got[n, c], grad[inside]
