"""Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Array",
    "batched",
    "check",
    "deliver",
    "images",
]

Array = NDArray[np.float64]


def images(x: ArrayLike, name: str) -> tuple[Array, bool]:
    """Return `x` as float64 (N, C, H, W), and whether it was a single image."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{name} must have axes (N, C, H, W) or (C, H, W), got {array.shape}"
        )
    return (array[None], True) if array.ndim == 3 else (array, False)


def batched(shape: Any, single: bool) -> tuple[int, ...]:
    """Return `x_shape` with a batch axis; `single` says what grad_y came as."""
    sizes = tuple(shape)
    if len(sizes) != (3 if single else 4):
        raise ValueError(f"x_shape must have as many axes as grad_y, got {sizes}")
    return (1, *sizes) if single else sizes


def check(array: NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")


def deliver(result: Array, single: bool, out: NDArray[Any] | None) -> NDArray[Any]:
    """Return `result`, without the batch axis if `single`, in `out` if given."""
    result = result[0] if single else result
    if out is None:
        return result
    check(out, result.shape, "out")
    out[...] = result
    return out
