# Pooling passes on arrays that functional has checked. `sizes` are the integers
# of a PoolGeometry in its order; results are written into the arrays that end the
# line of arguments, or are followed by options; `fresh` says that nobody has used the
# result's memory yet.
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

def max_pool2d(
    sizes: Sequence[int],
    x: _Array,
    y: _Array,
    argmax: _Array | None,
    fresh: bool = False,
) -> None: ...
def max_pool2d_indices(
    sizes: Sequence[int], argmax: _Array, indices: _Array
) -> None: ...
def max_pool2d_backward(
    sizes: Sequence[int],
    grad_y: _Array,
    argmax: _Array,
    grad_x: _Array,
    fresh: bool = False,
) -> None: ...
def avg_pool2d(
    sizes: Sequence[int],
    x: _Array,
    y: _Array,
    count_include_pad: bool,
    divisor_override: int,
    fresh: bool = False,
) -> None: ...
def avg_pool2d_backward(
    sizes: Sequence[int],
    grad_y: _Array,
    grad_x: _Array,
    count_include_pad: bool,
    divisor_override: int,
    fresh: bool = False,
) -> None: ...
