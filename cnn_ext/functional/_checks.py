"""Checks that several operators share, and the types of their parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._geometry import shown

Array = np.ndarray[Any, Any]
Size = int | tuple[int, int]
Cut = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
Padding = Cut | str


def image_shape(shape: Any, single: bool) -> tuple[int, ...]:
    """`shape` as (N, C, H, W); one image if the gradient is one."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(
            f"x_shape must be a tuple of sizes, got {shown(shape)}"
        ) from None
    if single and len(sizes) == 3:
        return (1, *sizes)
    if single:
        raise ValueError(f"x_shape must be (C, H, W) as grad_y is, got {sizes}")
    return sizes


def check_shape(x: Array, name: str, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")


def check_both(x: Array, single_x: bool, grad_y: Array, single: bool) -> None:
    if single != single_x:
        raise ValueError(
            "x and grad_y must both be batches or both single images, got "
            f"{x.ndim - single_x} and {grad_y.ndim - single} axes"
        )


def check_sizes(x: Array, name: str) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} must not have an empty axis, got shape {x.shape}")


#: What a convolution may end with, as the compiled passes number it.
_ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}


def activation_code(activation: str | None) -> int:
    if activation is not None and not isinstance(activation, str):
        code = None
    else:
        code = _ACTIVATIONS.get(activation)
    if code is None:
        raise ValueError(
            f"activation must be None, 'relu' or 'relu6', got {shown(activation)}"
        )
    return code
