"""Bounds on gradients, between the way back and the optimiser's step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from cnn_ext import _update
from cnn_ext.layers.base import Parameter

__all__ = ["clip_grad_norm", "clip_grad_value"]


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Shorten all gradients, in place, by one factor, so that their norm is at most…

    Parameters
    ----------
    parameters : iterable of Parameter
    max_norm : float
        … this; above 0.

    Returns
    -------
    float
        The norm of all gradients together before, ``sqrt(sum of all squares)``.

    Notes
    -----
    The factor is ``max_norm / (norm + 1e-6)``, at most 1, as in PyTorch. A norm that is
    not finite changes nothing: `fit` stops at the loss.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013.
    """
    if not 0 < max_norm < math.inf:
        raise ValueError(f"max_norm must be above 0 and finite, got {max_norm!r}")
    grads = _gradients(parameters)
    norm = math.sqrt(_update.sum_squares(grads))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:  # not for NaN
        _update.scale(grads, factor)
    return norm


def clip_grad_value(parameters: Iterable[Parameter], limit: float) -> None:
    """Bring every element of the gradients, in place, into -limit … limit.

    Parameters
    ----------
    parameters : iterable of Parameter
    limit : float
        Above 0.
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be above 0 and finite, got {limit!r}")
    _update.clip(_gradients(parameters), limit)


def _gradients(parameters: Iterable[Parameter]) -> list[np.ndarray]:
    """Return the gradients there are, each array once, made writeable if need be."""
    found: dict[int, np.ndarray] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            flags = parameter.grad.flags
            if not (flags.writeable and flags.c_contiguous):
                parameter.grad = parameter.grad.copy()
            found[id(parameter.grad)] = parameter.grad
    return list(found.values())
