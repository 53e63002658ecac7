"""Subnormal numbers cost no more than others; the caller's CPU state is left alone."""

import time

import numpy as np

from cnn_ext import functional as F

TINY = float(np.finfo(np.float32).tiny)

CASES = {
    "direct": ((2, 32, 20, 20), (32, 32, 2, 2), {}),
    "winograd": ((2, 32, 28, 28), (32, 32, 3, 3), {"padding": 1}),
    "planes": ((8, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "depthwise": ((2, 64, 28, 28), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
}


def seconds(call, times=9):
    call()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        for _ in range(3):
            call()
        took.append(time.perf_counter() - start)
    return min(took)


def passes(x, weight, options):
    y = F.conv2d(x, weight, **options)
    return {
        "forward": lambda: F.conv2d(x, weight, **options),
        "backward_input": lambda: F.conv2d_backward_input(
            y, weight, x.shape, **options
        ),
        "backward_weight": lambda: F.conv2d_backward_weight(
            y, x, weight.shape, **options
        ),
    }


def ratios(name, scale_x, scale_weight):
    """Time of each pass on numbers so small, as a multiple of the time on normal."""
    x_shape, weight_shape, options = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(x_shape).astype("f")
    weight = rng.standard_normal(weight_shape).astype("f")
    normal = passes(x, weight, options)
    with np.errstate(under="ignore"):
        small = passes(
            x * np.float32(scale_x), weight * np.float32(scale_weight), options
        )
    return {which: seconds(small[which]) / seconds(normal[which]) for which in normal}
