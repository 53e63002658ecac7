"""Sizes beyond 2**31 elements; sizes whose products do not fit."""

import itertools

import numpy as np
import pytest
from trust.big_arrays import CHECKS
from trust.programs import run

from cnn_ext import functional as F
from cnn_ext._geometry import ConvGeometry, PoolGeometry

HUGE = (2**31, 2**32, 2**40, 2**58)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_more_than_two_to_the_31_elements(name):
    """About 10 GiB each: an own process gives them back."""
    with open("/proc/meminfo") as file:
        free = dict(line.split(":") for line in file)["MemAvailable"]
    if int(free.split()[0]) < 12 << 20:
        pytest.skip("needs 12 GiB of free memory")
    run("-m", "trust.big_arrays", name, timeout=1800)


@pytest.mark.parametrize(
    "sizes", sorted(set(itertools.permutations([2**31, 2**30, 1, 1])))
)
def test_products_that_overflow_are_refused(sizes):
    with pytest.raises(ValueError, match="too large"):
        ConvGeometry.of(sizes, (1, sizes[1], 1, 1))
    with pytest.raises(ValueError, match="too large"):
        PoolGeometry.of(sizes, 1)


@pytest.mark.parametrize("size", [2**59, 2**63, 2**64, 2**200])
@pytest.mark.parametrize("option", ["stride", "padding", "dilation", "groups"])
def test_options_that_overflow_are_refused(option, size):
    x, weight = np.ones((1, 1, 4, 4), "f"), np.ones((1, 1, 2, 2), "f")
    with pytest.raises(ValueError, match=option):
        F.conv2d(x, weight, **{option: size})


@pytest.mark.parametrize("size", HUGE)
def test_large_options_are_right_or_refused(size):
    """A stride may be as large as it likes; padding has its price in scratch memory."""
    x, weight = np.ones((1, 1, 4, 4), "f"), np.ones((1, 1, 2, 2), "f")
    one = np.ones((1, 1, 1, 1), "f")
    assert F.conv2d(x, weight, stride=size).tolist() == [[[[4.0]]]]
    assert F.max_pool2d(x, 2, stride=size).tolist() == [[[[1.0]]]]
    back = F.conv2d_backward_input(one, weight, x.shape, stride=size)
    assert back.sum() == 4
    apart = {"padding": size, "dilation": 2 * size}
    for call in (
        lambda: F.conv2d(x, weight, padding=size),
        lambda: F.conv2d(x, weight, dilation=size),
        lambda: F.conv2d(x, weight, padding=size, stride=size),
        lambda: F.conv2d(x, weight, **apart),
        lambda: F.conv2d_backward_input(x, weight, x.shape, **apart),
        lambda: F.conv2d_backward_weight(x, x, weight.shape, **apart),
        lambda: F.max_pool2d(x, 2, padding=size),
        lambda: F.max_pool2d(x, 2, dilation=size),
        lambda: F.max_pool2d(x, 3, padding=size, dilation=size),
    ):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize(
    "dims", [(2**20, 2**10, 2**10, 2**10), (2**16, 2, 2**12, 2**9)]
)
def test_results_that_no_memory_holds(dims):
    x = np.broadcast_to(np.float32(1), dims)
    weight = np.ones((2**8, dims[1], 1, 1), np.float32)
    with pytest.raises(MemoryError):
        F.conv2d(x, weight)
