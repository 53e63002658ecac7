"""Backward passes are the adjoints of their forward passes; gradients by differences.

A linear map's backward is its adjoint: ``<A x, g> == <x, A' g>`` for every x and g, to
the rounding of the two sums. What is not linear is checked by differences.
"""

from dataclasses import replace

import cases
import numpy as np
import pytest
from cases import CONV_CASES, POOL_CASES, conv_cases, pool_cases
from hypothesis import given

from cnn_ext import functional as F
from cnn_ext.gradcheck import gradcheck

EPS = np.finfo(np.float64).eps


def assert_same_product(a, b, c, d, terms):
    """<a, b> == <c, d>, to the rounding of sums whose terms are sums themselves."""
    left, right = (a * b).ravel(), (c * d).ravel()
    magnitude = np.abs(left).sum() + np.abs(right).sum()
    bound = (terms + left.size + right.size) * EPS * magnitude
    assert abs(left.sum() - right.sum()) <= bound


def check_conv(case):
    rng = np.random.default_rng(case.setting.seed)
    x = rng.standard_normal(case.x_shape)
    weight = rng.standard_normal(case.weight_shape)
    y = F.conv2d(x, weight, **case.options)
    grad_y = rng.standard_normal(y.shape)
    grad_x = F.conv2d_backward_input(grad_y, weight, x.shape, **case.options)
    grad_weight = F.conv2d_backward_weight(grad_y, x, weight.shape, **case.options)
    terms = 8 * case.c * case.r * case.s
    assert_same_product(y, grad_y, x, grad_x, terms)
    assert_same_product(y, grad_y, weight, grad_weight, terms)


@pytest.mark.parametrize("name", CONV_CASES)
def test_conv2d_of_named_cases(name, kernel_set):
    check_conv(CONV_CASES[name])


@given(conv_cases())
def test_conv2d_of_random_cases(case):
    with cases.machine(case.setting.kernel_set):
        check_conv(case)


def check_average(case):
    rng = np.random.default_rng(case.setting.seed)
    x = rng.standard_normal(case.x_shape)
    y = F.avg_pool2d(x, case.kernel_size, **case.average_options)
    grad_y = rng.standard_normal(y.shape)
    grad_x = F.avg_pool2d_backward(
        grad_y, x.shape, case.kernel_size, **case.average_options
    )
    assert_same_product(y, grad_y, x, grad_x, 100)


@pytest.mark.parametrize("name", POOL_CASES)
def test_avg_pool2d_of_named_cases(name, kernel_set):
    check_average(replace(POOL_CASES[name], dilation=1))


@given(pool_cases())
def test_avg_pool2d_of_random_cases(case):
    with cases.machine(case.setting.kernel_set):
        check_average(case)


def check_max(case):
    """With its winners fixed, max pooling is the linear map that selects them."""
    rng = np.random.default_rng(case.setting.seed)
    x, k = rng.standard_normal(case.x_shape), case.kernel_size
    options = case.max_options
    y, argmax = F.max_pool2d(x, k, return_argmax=True, **options)
    grad_y = rng.standard_normal(y.shape)
    del options["ceil_mode"]
    grad_x = F.max_pool2d_backward(grad_y, argmax, x.shape, k, **options)
    assert_same_product(y, grad_y, x, grad_x, 1)


@pytest.mark.parametrize("name", POOL_CASES)
def test_max_pool2d_of_named_cases(name, kernel_set):
    check_max(POOL_CASES[name])


@given(pool_cases())
def test_max_pool2d_of_random_cases(case):
    with cases.machine(case.setting.kernel_set):
        check_max(case)


def test_linear(kernel_set):
    rng = np.random.default_rng(0)
    x, weight, grad_y = (rng.standard_normal(s) for s in ((9, 40), (23, 40), (9, 23)))
    y = F.linear(x, weight)
    assert_same_product(y, grad_y, x, F.linear_backward_input(grad_y, weight), 80)
    assert_same_product(y, grad_y, weight, F.linear_backward_weight(grad_y, x), 80)


# -- differences --------------------------------------------------------------------


def distinct(shape, seed=0):
    """Numbers that differ by far more than a step of the differences."""
    size = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(size).reshape(shape) / 7.0


@pytest.mark.parametrize("name", [n for n, case in CONV_CASES.items() if case.n])
def test_gradients_of_conv2d(name):
    case = CONV_CASES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(case.x_shape)
    weight, bias = rng.standard_normal(case.weight_shape), rng.standard_normal(case.k)

    def forward(x, weight, bias):
        return F.conv2d(x, weight, bias, **case.options)

    def backward(grad_y, x, weight, bias):
        return (
            F.conv2d_backward_input(grad_y, weight, x.shape, **case.options),
            F.conv2d_backward_weight(grad_y, x, weight.shape, **case.options),
            F.conv2d_backward_bias(grad_y),
        )

    names = ["x", "weight", "bias"]
    report = gradcheck(forward, (x, weight, bias), vjp=backward, names=names)
    assert set(report.discrepancies) == set(names)


@pytest.mark.parametrize("name", [n for n, case in POOL_CASES.items() if case.n])
@pytest.mark.parametrize("kind", ["return_argmax", "return_indices"])
def test_gradients_of_max_pool2d(name, kind):
    case = POOL_CASES[name]
    options, k = case.max_options, case.kernel_size
    back = {key: value for key, value in options.items() if key != "ceil_mode"}

    def function(x):
        y, position = F.max_pool2d(x, k, **{kind: True}, **options)
        return y, lambda g: F.max_pool2d_backward(g, position, x.shape, k, **back)

    gradcheck(function, distinct(case.x_shape))


@pytest.mark.parametrize("name", [n for n, case in POOL_CASES.items() if case.n])
def test_gradients_of_avg_pool2d(name):
    case = replace(POOL_CASES[name], dilation=1)
    options, k = case.average_options, case.kernel_size

    def backward(grad_y, x):
        return F.avg_pool2d_backward(grad_y, x.shape, k, **options)

    x = np.random.default_rng(0).standard_normal(case.x_shape)
    gradcheck(lambda x: F.avg_pool2d(x, k, **options), x, vjp=backward)


@pytest.mark.parametrize("name", [n for n, case in POOL_CASES.items() if case.n])
def test_gradients_of_subsample2d(name):
    case = replace(POOL_CASES[name], dilation=1, ceil_mode=False)
    options, k = {"stride": case.stride, "padding": case.padding}, case.kernel_size
    rng = np.random.default_rng(0)
    x, gain, bias = (rng.standard_normal(s) for s in (case.x_shape, case.c, case.c))
    gradcheck(
        lambda x, gain, bias: F.subsample2d(x, gain, bias, k, **options),
        (x, gain, bias),
        vjp=lambda g, x, gain, bias: F.subsample2d_backward(g, x, gain, k, **options),
        names=["x", "gain", "bias"],
    )


def test_gradients_of_linear():
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s) for s in ((5, 7), (4, 7), 4))

    def backward(grad_y, x, weight, bias):
        return (
            F.linear_backward_input(grad_y, weight),
            F.linear_backward_weight(grad_y, x),
            F.linear_backward_bias(grad_y),
        )

    gradcheck(F.linear, (x, weight, bias), vjp=backward)
