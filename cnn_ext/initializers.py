"""How parameters start: initialisers by name, each drawing from one Generator.

An initialiser is called as ``f(shape, fan_in, fan_out, rng)`` and returns float64;
the caller rounds to the parameter's dtype, so that a float32 and a float64 model of
one seed start from the same numbers. `fan_in` is the number of inputs that one output
sums over, `fan_out` the number of outputs that one input reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["INITIALIZERS", "Initializer", "generator", "initialize"]

Initializer = Callable[[tuple[int, ...], int, int, np.random.Generator], np.ndarray]
Seed = int | np.random.Generator | None


def _uniform(bound: Callable[[int, int], float]) -> Initializer:
    def draw(shape, fan_in, fan_out, rng):
        limit = bound(fan_in, fan_out)
        return rng.uniform(-limit, limit, shape)

    return draw


def _normal(deviation: Callable[[int, int], float]) -> Initializer:
    def draw(shape, fan_in, fan_out, rng):
        return rng.normal(0.0, deviation(fan_in, fan_out), shape)

    return draw


#: Name -> initialiser.
INITIALIZERS: dict[str, Initializer] = {
    # PyTorch's, for weights and biases of Conv2d and Linear
    "default": _uniform(lambda i, o: 1 / math.sqrt(i)),
    # X. Glorot, Y. Bengio, 2010: keeps the variance of values and of errors, for tanh
    "glorot_uniform": _uniform(lambda i, o: math.sqrt(6 / (i + o))),
    "glorot_normal": _normal(lambda i, o: math.sqrt(2 / (i + o))),
    # K. He et al., 2015: the same for ReLU, which passes half of its inputs
    "he_uniform": _uniform(lambda i, o: math.sqrt(6 / i)),
    "he_normal": _normal(lambda i, o: math.sqrt(2 / i)),
    # Y. LeCun et al., "Efficient BackProp", 1998: variance 1 / fan_in
    "lecun_uniform": _uniform(lambda i, o: math.sqrt(3 / i)),
    "lecun_normal": _normal(lambda i, o: math.sqrt(1 / i)),
    # LeNet-5's own, appendix A of LeCun et al., 1998
    "lenet": _uniform(lambda i, o: 2.4 / i),
    "zeros": lambda shape, fan_in, fan_out, rng: np.zeros(shape),
    "ones": lambda shape, fan_in, fan_out, rng: np.ones(shape),
}


def generator(seed: Seed) -> np.random.Generator:
    """Return the Generator of a `seed` argument.

    Parameters
    ----------
    seed : int, numpy.random.Generator or None
        A Generator is returned as it is, so that several layers can draw from one;
        None takes fresh entropy from the system.
    """
    if seed is not None and not isinstance(
        seed, (int, np.integer, np.random.Generator)
    ):
        raise TypeError(
            "seed must be an int, a numpy.random.Generator or None, got "
            f"{type(seed).__name__}"
        )
    if isinstance(seed, (int, np.integer)) and seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return np.random.default_rng(seed)


def initialize(
    init: str | Initializer,
    shape: tuple[int, ...],
    fan: tuple[int, int],
    rng: np.random.Generator,
    dtype: Any,
) -> np.ndarray:
    """Return the first value of a parameter.

    Parameters
    ----------
    init : str or callable
        A name of `INITIALIZERS`, or a function of the same signature.
    shape : tuple of int
        Shape of the parameter.
    fan : (int, int)
        fan_in and fan_out.
    rng : numpy.random.Generator
        Where the draws come from.
    dtype : dtype
        float32 or float64.

    Raises
    ------
    ValueError
        If the name is unknown, or a function returns another shape.
    TypeError
        If dtype is neither float32 nor float64.
    """
    dtype = checked_dtype(dtype)
    if isinstance(init, str):
        if init not in INITIALIZERS:
            raise ValueError(
                f"unknown initializer {init!r}; known are {', '.join(INITIALIZERS)}"
            )
        init = INITIALIZERS[init]
    elif not callable(init):
        raise TypeError(
            f"an initializer is a name or a function, got {type(init).__name__}"
        )
    value = np.array(init(shape, *fan, rng), dtype=dtype)
    if value.shape != shape:
        raise ValueError(
            f"the initializer returned shape {value.shape} for a parameter of {shape}"
        )
    return value


def checked_dtype(dtype: Any) -> np.dtype:
    """Return float32 or float64 as a numpy dtype; anything else is a TypeError."""
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return dtype
