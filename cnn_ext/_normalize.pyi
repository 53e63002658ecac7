# Batch normalisation of arrays (N, C, H, W) in one dense memory order. `stats` is
# float64 (5, C); activation: 0 none, 1 ReLU, 2 ReLU6.
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

def train(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    y: _Array,
    stats: _Array,
    eps: float,
    activation: int = 0,
    residual: _Array | None = None,
) -> None: ...
def infer(
    x: _Array,
    mean: _Array,
    variance: _Array,
    weight: _Array | None,
    bias: _Array | None,
    y: _Array,
    eps: float,
    activation: int = 0,
    residual: _Array | None = None,
) -> None: ...
def backward(
    grad_y: _Array,
    x: _Array,
    stats: _Array,
    grad_x: _Array | None,
    grad_weight: _Array | None,
    grad_bias: _Array | None,
    activation: int = 0,
    error: _Array | None = None,
    y: _Array | None = None,
    more: _Array | None = None,
) -> None: ...
def follow(
    stats: _Array,
    old_mean: _Array,
    old_variance: _Array,
    new_mean: _Array,
    new_variance: _Array,
    momentum: float,
    count: float,
) -> None: ...
def fold(
    weight: _Array,
    bias: _Array | None,
    mean: _Array,
    variance: _Array,
    gain: _Array | None,
    offset: _Array | None,
    eps: float,
    out_weight: _Array,
    out_bias: _Array,
) -> None: ...
