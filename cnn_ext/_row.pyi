# Linear maps of one row, on contiguous arrays that functional has checked: x and
# grad_x (1, C), weight (K, C), y and grad_y (1, K).
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

def forward(
    x: _Array, weight: _Array, bias: _Array | None, y: _Array, relu: bool = False
) -> None: ...
def backward_input(grad_y: _Array, weight: _Array, grad_x: _Array) -> None: ...
def backward_weight(grad_y: _Array, x: _Array, grad_weight: _Array) -> None: ...
