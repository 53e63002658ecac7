"""Shared geometries, as data and as hypothesis strategies, and arrays to put in them.

A case holds the sizes and the options of one operator and, drawn with them, how the
arrays lie in memory and what runs them: kernel set and number of threads.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from cnn_ext import (
    _runtime,
    get_num_threads,
    get_precision,
    set_num_threads,
    set_precision,
)
from cnn_ext._geometry import ConvGeometry, PoolGeometry

KERNEL_SETS = _runtime.kernel_sets()
THREADS = (1, 2, 3, 7)


# -- what runs ----------------------------------------------------------------------


@contextmanager
def machine(
    kernel_set: str | None = None, threads: int | None = None, strict: bool = False
):
    """Run with a kernel set and a number of threads; strict: with direct sums only."""
    before = _runtime.kernel_set(), get_num_threads(), get_precision()
    try:
        _runtime.use_kernel_set(kernel_set or before[0])
        set_num_threads(threads or before[1])
        set_precision("strict" if strict else "fast")
        yield
    finally:
        _runtime.use_kernel_set(before[0])
        set_num_threads(before[1])
        set_precision(before[2])


# -- how arrays lie in memory -------------------------------------------------------


def _axes_of(order: str) -> tuple[int, int, int, int]:
    last = order.startswith("channels_last")
    return (
        (0, 2, 3, 1) if last else (3, 2, 1, 0) if order == "reversed" else (0, 1, 2, 3)
    )


ORDERS = (
    "contiguous",
    "channels_last",
    "reversed",  # axes in the opposite order, as Fortran's
    "gaps",  # every axis strided, NaN between the elements
    "crop",  # rows of a wider image
    "channels_last_gaps",  # some channels of a channels-last image
    "negative",  # every axis backwards
    "channels_last_negative",
    "readonly",
)


def lay_out(values: np.ndarray, order: str) -> np.ndarray:
    """Return an array equal to `values`, (N, C, H, W) or (C, H, W), in this order."""
    if values.ndim == 3:
        return lay_out(values[None], order)[0]
    axes = _axes_of(order)
    back = np.argsort(axes)
    stored = values.transpose(axes)
    if order == "readonly":
        array = np.array(stored, order="C")
        array.flags.writeable = False
        return array
    if order.endswith("negative"):
        flip = (slice(None), *[slice(None, None, -1)] * 3)
        return np.array(stored[flip], order="C")[flip].transpose(back)
    before, step, after = {
        "gaps": ((1, 1, 1, 1), 2, (0, 0, 0, 0)),
        "crop": ((0, 0, 1, 2), 1, (0, 0, 2, 3)),
        "channels_last_gaps": ((0, 0, 0, 1), 1, (0, 0, 0, 2)),
    }.get(order, ((0, 0, 0, 0), 1, (0, 0, 0, 0)))
    shape = tuple(
        b + step * size + a
        for b, size, a in zip(before, stored.shape, after, strict=True)
    )
    around = np.full(shape, np.nan, values.dtype)
    view = around[
        tuple(
            slice(b, b + step * size, step)
            for b, size in zip(before, stored.shape, strict=True)
        )
    ]
    view[...] = stored
    return view.transpose(back)


# -- what is in them ----------------------------------------------------------------


def integers(rng: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    """Small whole numbers: sums of their products are exact, and maxima often tie."""
    return rng.integers(-4, 5, shape).astype(dtype)


def normals(rng: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def specials(rng: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    """NaN, infinities, both zeros, subnormals, the largest and the smallest."""
    limits = np.finfo(dtype)
    pool = [np.nan, -np.inf, -np.inf, -np.inf, np.inf, 0.0, -0.0, 1.0, 1.0, -1.0]
    pool += [limits.smallest_subnormal, -limits.smallest_subnormal]
    pool += [limits.tiny, limits.max, limits.min]
    return rng.choice(np.array(pool, dtype), shape)


CONTENTS = {"integers": integers, "normals": normals, "specials": specials}


# -- convolution --------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How the arrays of a case lie and what runs it."""

    dtype: str = "float32"
    orders: tuple[str, str] = ("contiguous", "contiguous")  # of x and of grad_y
    single: bool = False
    kernel_set: str | None = None
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class ConvCase:
    """Images (n, c, h, w), filters (k, c/groups, r, s), and the options."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True
    setting: Setting = field(default_factory=Setting)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def geometry(self) -> ConvGeometry:
        return ConvGeometry.of(self.x_shape, self.weight_shape, **self.options)


CONV_CASES = {
    "1x1": ConvCase(2, 5, 6, 7, 4, 1, 1),
    "1x1 strided": ConvCase(2, 5, 6, 7, 4, 1, 1, stride=2),
    "3x3 valid": ConvCase(2, 3, 8, 9, 4, 3, 3, padding="valid"),
    "3x3 same": ConvCase(2, 3, 8, 9, 4, 3, 3, padding="same"),
    "3x3 same stride 2": ConvCase(2, 3, 8, 9, 4, 3, 3, stride=2, padding="same"),
    "4x2 same_lower": ConvCase(1, 2, 7, 6, 3, 4, 2, (3, 2), "same_lower"),
    "4x2 same": ConvCase(1, 2, 7, 6, 3, 4, 2, (3, 2), "same"),
    "5x5 as LeNet's first": ConvCase(3, 1, 28, 28, 6, 5, 5, padding=2),
    "5x5 as LeNet's second": ConvCase(3, 6, 14, 14, 16, 5, 5),
    "7x7 stride 2": ConvCase(1, 3, 30, 31, 20, 7, 7, stride=2, padding=3),
    "one row": ConvCase(2, 4, 1, 33, 5, 1, 7, padding=(0, 3)),
    "one column": ConvCase(2, 4, 33, 1, 5, 7, 1, padding=(3, 0)),
    "one pixel": ConvCase(3, 7, 1, 1, 9, 1, 1),
    "kernel as large as image": ConvCase(2, 3, 6, 5, 4, 6, 5),
    "kernel larger than image": ConvCase(2, 3, 2, 2, 4, 5, 5, padding=2),
    "padding beyond kernel": ConvCase(1, 2, 4, 4, 3, 3, 3, padding=5),
    "asymmetric padding": ConvCase(2, 3, 6, 7, 4, 3, 3, padding=((0, 2), (3, 1))),
    "dilation 2": ConvCase(2, 3, 9, 10, 4, 3, 3, padding=2, dilation=2),
    "dilation (2, 3)": ConvCase(2, 3, 9, 10, 4, 3, 2, padding="same", dilation=(2, 3)),
    "stride beyond kernel": ConvCase(2, 3, 11, 12, 4, 2, 2, stride=(4, 3)),
    "stride and dilation": ConvCase(
        1, 4, 15, 14, 6, 3, 3, stride=2, padding=1, dilation=3
    ),
    "groups": ConvCase(2, 6, 8, 8, 9, 3, 3, padding=1, groups=3),
    "depthwise": ConvCase(2, 19, 8, 9, 19, 3, 3, padding=1, groups=19),
    "depthwise stride 2": ConvCase(1, 17, 9, 8, 17, 5, 5, 2, 2, groups=17),
    "depthwise 7x7": ConvCase(1, 17, 9, 26, 17, 7, 7, padding=3, groups=17),
    "depthwise, rows of several vectors": ConvCase(
        2, 5, 13, 45, 5, 3, 3, 2, 1, groups=5
    ),
    "depthwise, boxes of rows": ConvCase(1, 3, 60, 75, 3, 3, 3, padding=1, groups=3),
    "depthwise, boxes of columns": ConvCase(1, 2, 3, 3200, 2, 5, 5, 1, 2, groups=2),
    "depthwise, uneven taps": ConvCase(
        2, 3, 11, 37, 3, 2, 4, (1, 3), (0, 2), dilation=(2, 1), groups=3
    ),
    "depthwise, stride beyond kernel": ConvCase(
        2, 3, 11, 40, 3, 2, 2, stride=(4, 3), groups=3
    ),
    "depthwise, boxes of phases' rows": ConvCase(1, 3, 65, 90, 3, 3, 3, 2, 1, groups=3),
    "depthwise, boxes of phases' columns": ConvCase(
        1, 2, 4, 1700, 2, 5, 5, 2, 2, groups=2
    ),
    "4 channels a group": ConvCase(2, 24, 9, 31, 24, 3, 3, padding=1, groups=6),
    "2 channels a group, stride 2": ConvCase(2, 38, 9, 16, 38, 3, 3, 2, 1, groups=19),
    "8 channels a group, uneven taps": ConvCase(
        1, 24, 11, 13, 24, 2, 3, (1, 3), (0, 2), dilation=(2, 1), groups=3
    ),
    "depth multiplier": ConvCase(2, 5, 8, 8, 10, 3, 3, padding=1, groups=5),
    "no images": ConvCase(0, 3, 8, 8, 4, 3, 3, padding=1),
    "sums of taps": ConvCase(9, 6, 14, 13, 17, 5, 5),
    "sums of taps, one channel": ConvCase(2, 1, 14, 13, 17, 5, 5),
    "sums of taps, many channels": ConvCase(2, 19, 10, 9, 33, 5, 5),
    "sums of taps, strips of rows": ConvCase(1, 3, 61, 8, 25, 5, 5),
    "sums of taps, strided": ConvCase(2, 5, 21, 11, 25, 9, 5, (2, 3)),
    "sums of taps, groups and dilation": ConvCase(
        2, 6, 20, 21, 34, 3, 3, dilation=3, groups=2
    ),
    "wide enough for minimal filtering": ConvCase(2, 33, 13, 14, 35, 3, 3, padding=1),
    "minimal filtering at 7 points": ConvCase(3, 18, 14, 18, 34, 3, 3, padding=1),
    "minimal filtering at 8 points": ConvCase(3, 17, 18, 35, 33, 3, 3, padding=1),
    "5x5 minimal filtering": ConvCase(2, 17, 12, 15, 34, 5, 5, padding=2),
    "5x5 minimal filtering, many channels": ConvCase(
        2, 130, 12, 13, 20, 5, 5, padding=2
    ),
    "dilated minimal filtering": ConvCase(
        2, 17, 26, 21, 34, 3, 3, padding=(3, 1), dilation=(3, 2)
    ),
    "dilated, most taps in the padding": ConvCase(
        2, 20, 33, 31, 35, 3, 3, padding=12, dilation=12
    ),
    "dilated, boxes of padding alone": ConvCase(
        1, 34, 12, 13, 36, 2, 2, padding=13, dilation=5, groups=2
    ),
    "1x7 minimal filtering": ConvCase(3, 33, 14, 17, 50, 1, 7, padding=(0, 3)),
    "7x1 minimal filtering": ConvCase(3, 48, 17, 14, 35, 7, 1, padding=(3, 0)),
    "1x5 minimal filtering": ConvCase(
        2, 40, 15, 25, 34, 1, 5, padding=(0, 4), dilation=(1, 3)
    ),
    "5x1 minimal filtering": ConvCase(2, 34, 16, 14, 49, 5, 1),
    "1x3 minimal filtering": ConvCase(3, 50, 12, 16, 65, 1, 3, padding=(0, 2)),
    "3x1 minimal filtering": ConvCase(5, 66, 8, 13, 49, 3, 1, padding=(1, 0)),
    "2x2 minimal filtering": ConvCase(2, 34, 26, 21, 50, 2, 2, padding=(1, 0)),
    "dilated 2x2 minimal filtering": ConvCase(
        2, 49, 29, 24, 49, 2, 2, padding=1, dilation=2
    ),
    "1x2 minimal filtering": ConvCase(2, 130, 15, 29, 128, 1, 2),
    "2x1 minimal filtering": ConvCase(2, 128, 28, 14, 132, 2, 1, padding=(1, 0)),
    "3x3 by shares of stride 2": ConvCase(2, 48, 64, 63, 50, 3, 3, 2, 1),
    "4x4 by shares of stride 2": ConvCase(2, 32, 32, 33, 34, 4, 4, 2, 1),
    "5x5 by shares of stride 2": ConvCase(2, 32, 31, 32, 34, 5, 5, 2, 2),
    "5x6 by shares of stride 2": ConvCase(2, 32, 32, 29, 34, 5, 6, 2, (0, 3)),
    "many weights by shares of stride 2": ConvCase(4, 96, 16, 16, 98, 5, 5, 2, 2),
    "minimal filtering of many weights": ConvCase(
        2, 90, 13, 11, 106, 3, 3, padding=1
    ),
    "many channels": ConvCase(1, 130, 5, 6, 70, 3, 3, padding=1),
    "large batch of small images": ConvCase(40, 3, 3, 3, 5, 3, 3, padding=1),
    "1x1, pixels in place": ConvCase(3, 32, 9, 11, 48, 1, 1),
    "1x1 strided, pixels in place": ConvCase(2, 48, 9, 10, 32, 1, 1, stride=2),
    "1x1, tiles across images": ConvCase(9, 20, 7, 7, 30, 1, 1),
    "1x1, low tiles and slabs": ConvCase(2, 70, 32, 25, 64, 1, 1),
    "1x1 padded": ConvCase(2, 18, 5, 6, 3, 1, 1, padding=1),
    "many channels to three": ConvCase(2, 20, 9, 8, 3, 3, 3, padding=(1, 0)),
    "many channels to seven, strided": ConvCase(2, 33, 9, 27, 7, 3, 3, 2, 1),
    "few channels to many, strided": ConvCase(2, 4, 11, 26, 35, 4, 3, (2, 3), 1),
    "groups of many channels to two": ConvCase(
        1, 40, 7, 19, 4, 3, 3, padding=2, dilation=2, groups=2
    ),
    "few pixels, many weights": ConvCase(2, 130, 4, 5, 250, 3, 3, padding=1),
    "a handful of pixels": ConvCase(1, 64, 2, 2, 130, 3, 3, padding=1),
    "a handful of pixels, groups": ConvCase(1, 2048, 1, 2, 2048, 1, 1, groups=8),
    "few errors, many weights": ConvCase(1, 90, 9, 10, 84, 3, 3, 2, 1, groups=2),
}  # fmt: skip


def _sizes(most: int):
    return st.one_of(st.integers(1, 3), st.integers(1, most))


def _pairs(most: int):
    """An int, or a pair of them."""
    return st.one_of(st.integers(1, most), st.tuples(_sizes(most), _sizes(most)))


def _both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def paddings(most: tuple[int, int]):
    """Every form of padding, at most so much on each side."""
    vertical, horizontal = st.integers(0, most[0]), st.integers(0, most[1])
    return st.one_of(
        st.just(0),
        st.integers(0, min(most)),
        st.tuples(vertical, horizontal),
        st.tuples(st.tuples(vertical, vertical), st.tuples(horizontal, horizontal)),
        st.sampled_from(["valid", "same", "same_lower"]),
    )


def settings_of_a_case():
    return st.builds(
        Setting,
        dtype=st.sampled_from(["float32", "float64"]),
        orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
        single=st.booleans(),
        kernel_set=st.sampled_from(KERNEL_SETS),
        threads=st.sampled_from(THREADS),
        seed=st.integers(0, 2**32 - 1),
    )


KINDS = ["plain", "plain", "wide", "groups", "few a group", "depthwise"]


@st.composite
def conv_cases(draw) -> ConvCase:
    """Every kind of convolution, small; some with enough channels for wide kernels."""
    setting = draw(settings_of_a_case())
    kind = draw(st.sampled_from(KINDS))
    if kind == "plain":
        groups, c, k = 1, draw(_sizes(9)), draw(_sizes(9))
    elif kind == "wide":
        groups, c, k = 1, draw(st.integers(4, 40)), draw(st.integers(4, 40))
    elif kind == "groups":
        groups = draw(st.integers(2, 5))
        c, k = groups * draw(_sizes(4)), groups * draw(_sizes(4))
    elif kind == "few a group":
        groups = draw(st.integers(2, 9))
        c = k = groups * draw(st.sampled_from([2, 4, 8]))
    else:
        groups = c = k = draw(_sizes(40))
    if kind == "wide" and draw(st.booleans()):
        r = s = draw(st.sampled_from([1, 3, 3, 5]))
        stride, dilation = 1, 1
    else:
        r, s = draw(_sizes(6)), draw(_sizes(6))
        stride, dilation = draw(_pairs(4)), draw(_pairs(3))
    padding = draw(paddings((r + 1, s + 1)))
    case = ConvCase(
        1 if setting.single else draw(st.integers(0, 3)),
        c, draw(_sizes(18)), draw(_sizes(36)), k, r, s,
        stride, padding, dilation, groups, draw(st.booleans()), setting,
    )  # fmt: skip
    try:
        case.geometry  # noqa: B018
    except ValueError:
        assume(False)
    return case


# -- pooling ------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolCase:
    """Images (n, c, h, w), a window, and the options of all poolings."""

    n: int
    c: int
    h: int
    w: int
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1  # of max pooling alone
    ceil_mode: bool = False
    count_include_pad: bool = True  # this and the next, of average pooling alone
    divisor_override: int | None = None
    content: str = "integers"
    setting: Setting = field(default_factory=Setting)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.n, self.c, self.h, self.w

    @property
    def max_options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def average_options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }

    @property
    def geometry(self) -> PoolGeometry:
        return PoolGeometry.of(self.x_shape, self.kernel_size, **self.max_options)


POOL_CASES = {
    "2x2": PoolCase(2, 3, 8, 10, 2),
    "2x2 odd image": PoolCase(2, 3, 7, 9, 2),
    "2x2 ceil": PoolCase(2, 3, 7, 9, 2, ceil_mode=True),
    "3x3 stride 2 as AlexNet": PoolCase(2, 5, 13, 13, 3, 2),
    "3x3 stride 2 ceil as Caffe": PoolCase(2, 5, 12, 14, 3, 2, ceil_mode=True),
    "3x3 stride 2 pad 1 as ResNet": PoolCase(2, 17, 14, 15, 3, 2, 1),
    "3x3 stride 1 same": PoolCase(1, 33, 7, 7, 3, 1, "same"),
    "2x3 same_lower": PoolCase(1, 4, 7, 8, (2, 3), (3, 2), "same_lower"),
    "2x2 same at the edge": PoolCase(1, 4, 7, 7, 2, 2, "same"),
    "pad 1 ceil": PoolCase(2, 3, 6, 7, 3, 2, 1, ceil_mode=True),
    "dropped last window": PoolCase(1, 2, 4, 5, 2, 3, 1, ceil_mode=True),
    "overhang beyond padding": PoolCase(1, 2, 5, 6, 4, 3, 1, ceil_mode=True),
    "asymmetric padding": PoolCase(2, 3, 7, 8, 4, 2, ((0, 2), (2, 1))),
    "asymmetric ceil": PoolCase(2, 3, 7, 8, 4, 3, ((1, 2), (0, 2)), ceil_mode=True),
    "real pixels only": PoolCase(2, 3, 7, 8, 3, 2, 1, count_include_pad=False),
    "real pixels ceil": PoolCase(
        2, 3, 7, 8, 3, 2, 1, ceil_mode=True, count_include_pad=False
    ),
    "divisor 7": PoolCase(2, 3, 7, 8, 3, 2, 1, divisor_override=7),
    "global": PoolCase(2, 5, 6, 7, (6, 7)),
    "windows of half the map": PoolCase(2, 6, 13, 13, 13, 1, 6),
    "windows of a quarter": PoolCase(1, 33, 14, 15, 7, 1, 3),
    "bands of a plane": PoolCase(1, 3, 300, 62, 6, (2, 1), 3),
    "3x3 stride 3": PoolCase(2, 5, 12, 13, 3, 3),
    "one pixel": PoolCase(2, 5, 1, 1, 1),
    "kernel 1 stride 3": PoolCase(2, 5, 8, 9, 1, 3),
    "stride beyond kernel": PoolCase(2, 5, 11, 12, 2, (4, 3)),
    "dilation 2": PoolCase(2, 5, 9, 10, 3, 1, dilation=2),
    "dilation (2, 3) pad ceil": PoolCase(
        2, 5, 9, 12, (3, 2), 2, 1, dilation=(2, 3), ceil_mode=True
    ),
    "row": PoolCase(1, 3, 1, 40, (1, 3), (1, 2)),
    "no images": PoolCase(0, 3, 8, 8, 2),
    "256 positions": PoolCase(1, 2, 18, 18, 16, 1),
    "257 positions": PoolCase(1, 2, 3, 300, (1, 257), 7),
    "wide rows": PoolCase(1, 2, 6, 70, 3, 1, 1),
    "many channels": PoolCase(2, 70, 4, 5, 2, 2),
}


@st.composite
def pool_cases(draw) -> PoolCase:
    """Every kind of pooling, small."""
    setting = draw(settings_of_a_case())
    kernel_size, dilation = draw(_pairs(6)), draw(_pairs(3))
    r, s = _both(kernel_size)
    # at most half of the kernel; of the plain one, for average pooling has no dilation
    padding = draw(paddings((r // 2, s // 2)))
    case = PoolCase(
        1 if setting.single else draw(st.integers(0, 3)),
        draw(st.one_of(_sizes(9), st.integers(1, 40))),
        draw(_sizes(16)), draw(_sizes(36)),
        kernel_size, draw(st.one_of(st.none(), _pairs(5))), padding, dilation,
        draw(st.booleans()), draw(st.booleans()),
        draw(st.one_of(st.none(), st.integers(1, 9))),
        draw(st.sampled_from(sorted(CONTENTS))), setting,
    )  # fmt: skip
    try:
        case.geometry  # noqa: B018
    except ValueError:
        assume(False)
    return case
