# Softmax and cross-entropy of rows of logits, C-contiguous.
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

def cross_entropy(
    y: _Array,
    labels: _Array,
    weights: _Array | None,
    smoothing: float,
    ignored: int,
    mean: bool,
    grad_y: _Array,
    losses: _Array,
) -> tuple[float, float] | None: ...
