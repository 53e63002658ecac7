# Passes element by element, on arrays of one shape and one dense memory order.
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

KINDS: dict[str, int]

def activate(
    kind: int, x: _Array, y: _Array, a: float = 0.0, b: float = 0.0
) -> None: ...
def delta(
    kind: int,
    grad_y: _Array,
    kept: _Array,
    grad_x: _Array,
    a: float = 0.0,
    b: float = 0.0,
    c: float = 0.0,
) -> None: ...
def add(a: _Array, b: _Array, y: _Array, activation: int = 0) -> None: ...
def copy(src: _Array, dst: _Array) -> None: ...
