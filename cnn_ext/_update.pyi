# Optimisers' steps and clipping: C-contiguous arrays, all parameters in one call.
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

SGD: int
ADAM: int
RMSPROP: int

def step(
    rule: int,
    values: list[_Array],
    grads: list[_Array],
    kept: Sequence[tuple[_Array | None, ...]],
    numbers: Sequence[tuple[float, ...]],
) -> None: ...
def sum_squares(arrays: list[_Array]) -> float: ...
def scale(arrays: list[_Array], factor: float) -> None: ...
def clip(arrays: list[_Array], limit: float) -> None: ...
