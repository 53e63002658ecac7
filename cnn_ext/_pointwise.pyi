# Activations on arrays of one shape and one dense memory order.
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

def relu(x: _Array, y: _Array) -> None: ...
def relu_backward(grad_y: _Array, y: _Array, grad_x: _Array) -> None: ...
def quadratic_backward(
    grad_y: _Array, y: _Array, grad_x: _Array, a: float, b: float, c: float
) -> None: ...
