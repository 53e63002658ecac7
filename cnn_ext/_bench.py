"""`cnn-ext bench`: how fast the operators are on this machine, checked first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from . import functional as F
from . import reference

__all__ = ["Timing", "timings"]


class _Conv(NamedTuple):
    name: str
    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    options: dict[str, Any]


class _Pool(NamedTuple):
    name: str
    kind: str
    x_shape: tuple[int, int, int, int]
    kernel_size: int
    options: dict[str, Any]


# Layers of published networks, (N, C, H, W) and (K, C/groups, R, S).
_CONVS = (
    _Conv("LeNet-5 C1 5x5", (64, 1, 32, 32), (6, 1, 5, 5), {}),
    _Conv("LeNet-5 C3 5x5", (64, 6, 14, 14), (16, 6, 5, 5), {}),
    _Conv("ResNet-20 3x3", (32, 16, 32, 32), (16, 16, 3, 3), {"padding": 1}),
    _Conv("ResNet-50 3x3", (8, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}),
    _Conv("ResNet-50 1x1", (8, 256, 28, 28), (128, 256, 1, 1), {}),
    _Conv(
        "ResNet-50 3x3 stride 2",
        (8, 128, 56, 56),
        (128, 128, 3, 3),
        {"padding": 1, "stride": 2},
    ),
    _Conv(
        "MobileNet depthwise 3x3",
        (8, 64, 56, 56),
        (64, 1, 3, 3),
        {"padding": 1, "groups": 64},
    ),
)
_POOLS = (
    _Pool("LeNet-5 S2 2x2", "max", (64, 6, 28, 28), 2, {}),
    _Pool("ResNet-50 3x3 stride 2", "max", (8, 64, 112, 112), 3, {"stride": 2}),
    _Pool("LeNet-5 S2 2x2", "avg", (64, 6, 28, 28), 2, {}),
    _Pool("ResNet-50 7x7", "avg", (8, 2048, 7, 7), 7, {}),
)


class Timing(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    layer, operator : str
    milliseconds : float
        Median of the repeated calls.
    rate : float
        10^9 floating-point operations a second for convolutions (a multiply-add
        counts two), 10^9 bytes read and written a second for pools.
    unit : str
        ``"GFLOP/s"`` or ``"GB/s"``.
    """

    layer: str
    operator: str
    milliseconds: float
    rate: float
    unit: str


def timings(*, seconds: float = 0.2) -> Iterator[Timing]:
    """Check, then time each operator on float32 layers of published networks.

    Parameters
    ----------
    seconds : float
        Repeat each call for at least this long, and at least three times.

    Yields
    ------
    Timing

    Raises
    ------
    RuntimeError
        If an operator disagrees with `cnn_ext.reference` on two of the images.
    """
    rng = np.random.default_rng(0)
    for conv in _CONVS:
        yield from _time_conv(conv, rng, seconds)
    for pool in _POOLS:
        yield from _time_pool(pool, rng, seconds)


def _integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-2, 3, shape).astype(np.float32)


def _time_conv(
    conv: _Conv, rng: np.random.Generator, seconds: float
) -> Iterator[Timing]:
    x, weight = _integers(rng, conv.x_shape), _integers(rng, conv.weight_shape)
    grad_y = _integers(rng, F.conv2d(x, weight, **conv.options).shape)

    def calls(module: Any, count: int) -> dict[str, Callable[[], np.ndarray]]:
        some_x, some_g = x[:count], grad_y[:count]
        return {
            "conv2d": lambda: module.conv2d(some_x, weight, **conv.options),
            "conv2d_backward_input": lambda: module.conv2d_backward_input(
                some_g, weight, some_x.shape, **conv.options
            ),
            "conv2d_backward_weight": lambda: module.conv2d_backward_weight(
                some_g, some_x, weight.shape, **conv.options
            ),
        }

    terms = 4 * max(weight[0].size * len(weight), grad_y[:2, 0].size)
    _check(conv.name, calls(F, 2), calls(reference, 2), terms)
    # y[K x NPQ] = weight[K x CRS] . patches[CRS x NPQ]; the backwards do as many
    operations = 2 * weight[0].size * grad_y.size
    for operator, call in calls(F, len(x)).items():
        spent = _time(call, seconds)
        yield Timing(
            conv.name, operator, spent * 1e3, operations / spent / 1e9, "GFLOP/s"
        )


def _time_pool(
    pool: _Pool, rng: np.random.Generator, seconds: float
) -> Iterator[Timing]:
    x = _integers(rng, pool.x_shape)
    forward = f"{pool.kind}_pool2d"
    backward = f"{forward}_backward"
    size = pool.kernel_size
    grad_y = _integers(rng, getattr(F, forward)(x, size, **pool.options).shape)

    def calls(module: Any, count: int) -> dict[str, Callable[[], np.ndarray]]:
        some_x, some_g = x[:count], grad_y[:count]
        back: tuple[Any, ...]
        if pool.kind == "avg":
            back = (some_g, some_x.shape, size)
        else:
            _, argmax = module.max_pool2d(
                some_x, size, return_argmax=True, **pool.options
            )
            back = (some_g, argmax, some_x.shape, size)
        return {
            forward: lambda: getattr(module, forward)(some_x, size, **pool.options),
            backward: lambda: getattr(module, backward)(*back, **pool.options),
        }

    _check(pool.name, calls(F, 2), calls(reference, 2), 2 * size * size)
    traffic = x.nbytes + grad_y.nbytes
    for operator, call in calls(F, len(x)).items():
        spent = _time(call, seconds)
        yield Timing(pool.name, operator, spent * 1e3, traffic / spent / 1e9, "GB/s")


def _check(
    name: str,
    fast: dict[str, Callable[[], np.ndarray]],
    plain: dict[str, Callable[[], np.ndarray]],
    magnitude: float,
) -> None:
    """Compare with the reference; `magnitude` bounds the sum of the terms' sizes."""
    # A sum is off by at most eps times its terms' sizes for each addition, in
    # practice by a few: one wrong term, an integer, stands far above this.
    bound = 8 * float(np.finfo(np.float32).eps) * magnitude
    for operator, call in fast.items():
        error = float(np.abs(call() - plain[operator]()).max())
        if not error <= bound:
            raise RuntimeError(
                f"{operator} of {name} is off by {error:.3g} from the reference "
                f"(bound {bound:.3g}): please report it with the output of cnn-ext info"
            )


def _time(call: Callable[[], Any], seconds: float) -> float:
    """Median time of a call, after one that is not counted."""
    call()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begin)
    return median(spent)
