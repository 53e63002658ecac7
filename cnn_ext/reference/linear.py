"""Linear maps, and their backwards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn_ext.reference._arrays import Array, check

__all__ = [
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
]


def linear(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None
) -> NDArray[Any]:
    """Return ``y[n,k] = bias[k] + sum over c of weight[k,c] * x[n,c]``.

    See Also
    --------
    linear_backward_input, linear_backward_weight, linear_backward_bias
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    y: Array = np.einsum("nc,kc->nk", x, weight)
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        check(bias, y.shape[1:], "bias")
        y += bias
    return y


def linear_backward_input(grad_y: ArrayLike, weight: ArrayLike) -> NDArray[Any]:
    """Return ``grad_x[n,c] = sum over k of grad_y[n,k] * weight[k,c]``."""
    grad_y, weight = np.asarray(grad_y, np.float64), np.asarray(weight, np.float64)
    grad_x: Array = np.einsum("nk,kc->nc", grad_y, weight)
    return grad_x


def linear_backward_weight(grad_y: ArrayLike, x: ArrayLike) -> NDArray[Any]:
    """Return ``grad_weight[k,c] = sum over n of grad_y[n,k] * x[n,c]``."""
    grad_y, x = np.asarray(grad_y, np.float64), np.asarray(x, np.float64)
    grad_weight: Array = np.einsum("nk,nc->kc", grad_y, x)
    return grad_weight


def linear_backward_bias(grad_y: ArrayLike) -> NDArray[Any]:
    """Return ``grad_bias[k] = sum over n of grad_y[n,k]``."""
    grad_bias: Array = np.asarray(grad_y, dtype=np.float64).sum(axis=0)
    return grad_bias
