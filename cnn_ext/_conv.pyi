# Convolution passes on arrays that functional has checked. `sizes` are the
# integers of a ConvGeometry in its order; results are written into the last array.
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

def conv2d(
    sizes: Sequence[int],
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    y: _Array,
    activation: int = 0,
    prepared: _Array | None = None,
) -> None: ...
def conv2d_chain(
    links: tuple[tuple[Sequence[int], _Array, _Array | None, int, _Array | None], ...],
    x: _Array,
    y: _Array,
    residual: _Array | None = None,
    activation: int = 0,
) -> None: ...
def prepare_conv2d(
    sizes: Sequence[int],
    weight: _Array,
    bias: _Array | None,
    x_last: bool,
    y_last: bool,
    prepared: _Array | None = None,
) -> int: ...
def conv2d_backward_input(
    sizes: Sequence[int], grad_y: _Array, weight: _Array, grad_x: _Array
) -> None: ...
def conv2d_backward_weight(
    sizes: Sequence[int], grad_y: _Array, x: _Array, grad_weight: _Array
) -> None: ...
def conv2d_backward_bias(grad_y: _Array, grad_bias: _Array) -> None: ...
def algorithms(
    sizes: Sequence[int], itemsize: int, channels_last: bool
) -> tuple[str, str, str]: ...
