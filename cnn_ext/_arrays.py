"""Arrays in, arrays out: every check of an array, and every allocation, is here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from . import _runtime

__all__ = ["checked_out", "images", "matrix", "new_like", "same_dtype", "vector"]

Array = np.ndarray[Any, Any]
# A cache line, and bytes from which an array begins one (about 10 us of copying).
LINE, ALIGNED_BYTES = 64, 65536
FEW_ELEMENTS = ALIGNED_BYTES // 8
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def floats(x: Any, name: str, ndims: tuple[int, ...], axes: str) -> Array:
    """Return `x` if it is a float32 or float64 array with one of these ranks."""
    if not isinstance(x, ndarray):
        raise TypeError(
            f"{name} must be a numpy array, got {type(x).__name__}; "
            "convert it with numpy.asarray"
        )
    dtype = x.dtype
    if dtype is not FLOAT32 and dtype is not FLOAT64:
        if dtype in (FLOAT32, FLOAT64):  # equal, but another object
            return floats(x.view(dtype.name), name, ndims, axes)
        hint = f"{name}.astype(numpy.float32)"
        if dtype == np.uint8:
            hint += " / 255"
        raise TypeError(
            f"{name} must be float32 or float64, got {dtype}; convert it, e.g. {hint}"
        )
    if x.ndim not in ndims:
        raise ValueError(f"{name} must have axes {axes}, got shape {x.shape}")
    flags = x.flags
    if not flags.carray and (  # C-contiguous, aligned and writeable, as most are
        not flags.aligned
        or (not flags.c_contiguous and any(step % x.itemsize for step in x.strides))
    ):
        x = x.copy()  # e.g. a field of a packed record
    return x


def images(x: Any, name: str) -> tuple[Array, bool]:
    """Return `x` as (N, C, H, W), and whether it was one image (C, H, W)."""
    x = floats(x, name, (3, 4), "(N, C, H, W) or (C, H, W)")
    single = x.ndim == 3
    return x[None] if single else x, single


def matrix(x: Any, name: str, axes: str) -> Array:
    return floats(x, name, (2,), axes)


def vector(x: Any, name: str, size: int, rule: str) -> Array:
    x = floats(x, name, (1,), "(size,)")
    if x.shape[0] != size:
        raise ValueError(f"{name} has {x.shape[0]} values, {rule}")
    return contiguous(x)


def same_dtype(x: Array, name: str, /, **others: Array | None) -> None:
    """Everything in one call has one dtype."""
    for other, array in others.items():
        if array is not None and array.dtype is not x.dtype and array.dtype != x.dtype:
            raise TypeError(
                f"{other} is {array.dtype} but {name} is {x.dtype}; one call has one "
                f"dtype, convert with {other}.astype({name}.dtype)"
            )


def contiguous(x: Array) -> Array:
    """`x` itself if it is C-contiguous, else a copy; its rank stays."""
    return x if x.flags.c_contiguous else x.copy()


def is_channels_last(x: Array) -> bool:
    """Whether channels are closer in memory than pixels (N, C, H, W logical)."""
    if x.flags.c_contiguous:
        return False
    _, step_c, step_h, step_w = x.strides
    if x.shape[1] == 1:
        return False
    if x.shape[3] > 1:
        return abs(step_c) < abs(step_w)
    return x.shape[2] > 1 and abs(step_c) < abs(step_h)


def empty(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Array:
    """New (N, C, H, W) array in either memory order.

    From `ALIGNED_BYTES` on it begins a cache line: vectors of 64 bytes that cross
    lines cost up to twice as much, and numpy aligns to 16 bytes only. Such an array
    is a view of a buffer that is one line larger.
    """
    if channels_last:
        n, c, h, w = shape
        return lines((n, h, w, c), dtype).transpose(0, 3, 1, 2)
    return lines(shape, dtype)


def lines(shape: tuple[int, ...], dtype: Any, least: int = ALIGNED_BYTES) -> Array:
    """New contiguous array; from `least` bytes on it begins a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < least:
        return np.empty(shape, dtype)
    buffer = np.empty(size + LINE, np.uint8)
    return np.ndarray(shape, dtype, buffer, -_runtime.address(buffer) % LINE)


def new_like(like: Array, shape: tuple[int, ...]) -> Array:
    """New (N, C, H, W) array of the dtype and the memory order of `like`."""
    if like.flags.c_contiguous and math.prod(shape) < FEW_ELEMENTS:
        return np.empty(shape, like.dtype)  # as `empty` makes it, in less time
    return empty(shape, like.dtype, is_channels_last(like))


def checked_out(
    out: Any,
    shape: tuple[int, ...],
    like: Array,
    single: bool = False,
    /,
    **inputs: Array | None,
) -> Array:
    """Return the caller's `out` as (N, C, H, W), once it is known to be fit."""
    check_out(out, shape[1:] if single else shape, like.dtype, **inputs)
    return out[None] if single else out


def check_out(out: Any, shape: tuple[int, ...], dtype: Any, /, **inputs: Any) -> None:
    if not isinstance(out, ndarray):
        raise TypeError(f"out must be a numpy array, got {type(out).__name__}")
    if out.dtype is not dtype and out.dtype != dtype:
        raise TypeError(f"out must be {dtype} as the inputs, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    gaps = not flags.c_contiguous
    if not flags.aligned or (gaps and any(step % out.itemsize for step in out.strides)):
        raise ValueError("out must be aligned to its dtype")
    if gaps and _overlaps_itself(out):
        raise ValueError("out must not overlap itself: its elements share memory")
    for name, array in inputs.items():
        if isinstance(array, ndarray) and _overlap(out, array):
            raise ValueError(f"out must not overlap {name}")


def _overlaps_itself(x: Array) -> bool:
    reach = 0  # bytes that the axes so far span
    axes = sorted(
        (abs(step), size) for step, size in zip(x.strides, x.shape, strict=True)
    )
    for step, size in axes:
        if size > 1:
            if step <= reach:
                return True
            reach += step * (size - 1)
    return False


def _overlap(a: Array, b: Array) -> bool:
    if a is not b and a.flags.owndata and b.flags.owndata:
        return False  # each has memory of its own; asking numpy takes longer
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except Exception:  # too hard to tell: be safe
        return True


def dense(x: Array) -> Array:
    """`x` itself if its rows or its pixels have no gaps, else a copy."""
    step = x.itemsize
    last = is_channels_last(x)
    return x if x.strides[1 if last else 3] == step else ordered(x, last)


def ordered(x: Array, channels_last: bool) -> Array:
    """A copy of `x` (N, C, H, W), without gaps, in the memory order asked for."""
    copy = empty(x.shape, x.dtype, channels_last)
    copy[...] = x
    return copy


def same_order(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape lie alike in memory, element for element."""
    if a.flags.c_contiguous and b.flags.c_contiguous:
        return True
    return all(
        size == 1 or p // a.itemsize == q // b.itemsize
        for size, p, q in zip(a.shape, a.strides, b.strides, strict=True)
    )
