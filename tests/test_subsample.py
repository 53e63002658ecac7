"""LeCun's subsampling and its backward pass."""

from dataclasses import replace

import cases
import numpy as np
import pytest
from cases import POOL_CASES, PoolCase, lay_out, machine, pool_cases
from checks import assert_equal, assert_near, frozen, rounding_bound, torch
from hypothesis import assume, given, settings

from cnn_ext import functional as F
from cnn_ext import reference


def by_torch(x, gain, bias, grad_y, g):
    """Return y and the gradients by PyTorch's autograd: a sum, a gain and a bias."""
    x, gain, bias = (
        torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in (x, gain, bias)
    )
    padded = torch.nn.functional.pad(x, (g.left, g.right, g.top, g.bottom))
    sums = torch.nn.functional.avg_pool2d(
        padded, (g.r, g.s), stride=(g.stride_h, g.stride_w), divisor_override=1
    )
    y = gain[:, None, None] * sums + bias[:, None, None]
    y.backward(torch.from_numpy(grad_y.astype(np.float64)))
    return tuple(a.detach().numpy() for a in (y, x.grad, gain.grad, bias.grad))


def passes(operators, x, gain, bias, grad_y, kernel_size, options):
    return (
        frozen(operators.subsample2d, x, gain, bias, kernel_size, **options),
        *frozen(
            operators.subsample2d_backward, grad_y, x, gain, kernel_size, **options
        ),
    )


def check(case: PoolCase) -> None:
    """Exact for whole numbers; within the rounding of the sum for others."""
    setting, k = case.setting, case.kernel_size
    options = {"stride": case.stride, "padding": case.padding}
    try:
        g = replace(case, dilation=1, ceil_mode=False).geometry
    except ValueError:
        assume(False)
    rng = np.random.default_rng(setting.seed)
    windows = g.n * g.out_h * g.out_w
    for content in (cases.integers, cases.normals):
        x = content(rng, g.x_shape, setting.dtype)
        grad_y = content(rng, g.y_shape, setting.dtype)
        gain, bias = (content(rng, g.c, setting.dtype) for _ in range(2))
        expected = passes(reference, x, gain, bias, grad_y, k, options)
        magnitudes = passes(
            reference, *(np.abs(a) for a in (x, gain, bias, grad_y)), k, options
        )
        if torch is not None and content is cases.integers:
            for ours, theirs in zip(
                expected, by_torch(x, gain, bias, grad_y, g), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
        x, grad_y = (
            lay_out(array, order)
            for array, order in zip((x, grad_y), setting.orders, strict=True)
        )
        if setting.single:
            x, grad_y = x[0], grad_y[0]
        with machine(setting.kernel_set, setting.threads):
            actual = passes(F, x, gain, bias, grad_y, k, options)
        terms = g.r * g.s, g.r * g.s, g.r * g.s + windows, windows
        for i, ours in enumerate(actual):
            theirs, magnitude = expected[i], magnitudes[i]
            if setting.single and i < 2:
                theirs, magnitude = theirs[0], magnitude[0]
            if content is cases.integers:
                assert_equal(ours, theirs, setting.dtype)
            bound = rounding_bound(terms[i], magnitude, setting.dtype)
            assert_near(ours, theirs, bound)


@given(pool_cases())
def test_random_cases(case):
    check(case)


@pytest.mark.slow
@settings(settings.get_profile("thorough"))
@given(pool_cases())
def test_2000_random_cases(case):
    check(case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", POOL_CASES)
def test_named_cases(name, dtype, kernel_set):
    setting = cases.Setting(dtype, ("contiguous", "channels_last"), False, kernel_set)
    check(replace(POOL_CASES[name], setting=setting))


def test_it_is_the_average_with_gain_four():
    """A 2x2 average is a subsampling of gain 1/4 and bias 0."""
    x = cases.integers(np.random.default_rng(0), (2, 3, 6, 8), np.float32)
    gain, bias = np.full(3, 0.25, np.float32), np.zeros(3, np.float32)
    average = F.avg_pool2d(x, 2)
    np.testing.assert_array_equal(F.subsample2d(x, gain, bias, 2), average)
