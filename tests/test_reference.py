"""cnn_ext.reference is the definition: it says what it says, and PyTorch says the same.

Random cases of it against PyTorch are in the tests of the operators, which compare
all three. Here are the signatures, and values worked out by hand.
"""

import inspect
import pkgutil
from importlib import import_module

import numpy as np
import pytest
from cases import CONV_CASES, POOL_CASES, Setting
from checks import torch
from torch_operators import (
    avg_pool2d_and_gradient,
    conv2d_and_gradients,
    max_pool2d_and_gradient,
)

from cnn_ext import functional as F
from cnn_ext import reference

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def test_every_operator_has_a_reference_of_the_same_signature():
    # words; and conv2d in two steps
    others = {"explain_conv2d", "prepare_conv2d", "PreparedConv2d"}
    operators = set(F.__all__) - others
    assert set(reference.__all__) == operators
    for name in operators:
        fast, plain = (
            [
                (p.name, p.kind, p.default)
                for p in inspect.signature(getattr(module, name)).parameters.values()
            ]
            for module in (F, reference)
        )
        assert fast == plain, name


def test_reference_imports_numpy_and_geometry_alone():
    parts = [
        import_module(f"cnn_ext.reference.{part.name}")
        for part in pkgutil.iter_modules(reference.__path__)
    ]
    assert len(parts) >= 6
    for part in parts:
        modules = {v.__name__ for v in vars(part).values() if inspect.ismodule(v)}
        assert modules <= {"numpy"}
        owners = {
            getattr(value, "__module__", "")
            for value in vars(part).values()
            if inspect.isclass(value) or inspect.isfunction(value)
        }
        for owner in owners:
            ours = owner.startswith("cnn_ext")
            allowed = ("cnn_ext._geometry", "cnn_ext.reference.")
            assert not ours or owner.startswith(allowed), owner


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32])
def test_results_are_float64_whatever_comes_in(dtype):
    x, weight = np.ones((1, 2, 4, 4), dtype), np.ones((3, 2, 3, 3), dtype)
    y = reference.conv2d(x, weight)
    grad_x, grad_gain, grad_bias = reference.subsample2d_backward(
        np.ones((1, 2, 2, 2), dtype), x, np.ones(2, dtype), 2
    )
    for result in (
        y,
        reference.conv2d_backward_input(y, weight, x.shape),
        reference.conv2d_backward_weight(y, x, weight.shape),
        reference.conv2d_backward_bias(y),
        reference.conv_transpose2d(y, weight),
        reference.conv_transpose2d_backward_input(x, weight, y.shape),
        reference.conv_transpose2d_backward_weight(x, y, weight.shape),
        reference.conv_transpose2d_backward_bias(x),
        reference.max_pool2d(x, 2),
        reference.avg_pool2d(x, 2),
        reference.linear(x[0, 0], weight[0, 0, :, :1].repeat(4, axis=1)),
        grad_x,
        grad_gain,
        grad_bias,
    ):
        assert result.dtype == np.float64


def test_out_takes_the_result():
    out = np.full((1, 2, 2, 2), np.nan)
    x = np.arange(32.0).reshape(1, 2, 4, 4)
    assert reference.max_pool2d(x, 2, out=out) is out
    assert out[0, 0].tolist() == [[5, 7], [13, 15]]
    with pytest.raises(ValueError, match="out must have shape"):
        reference.max_pool2d(x, 2, out=np.empty((1, 2, 2, 3)))


def test_convolution_by_hand():
    x = np.array([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    weight = np.array([[[[1.0, 10], [100, 1000]]]])
    bias = np.array([0.5])
    y = reference.conv2d(x, weight, bias)
    assert y.tolist() == [[[5421.5, 6532.5], [8754.5, 9865.5]]]
    padded = reference.conv2d(x, weight, padding=((1, 0), (0, 1)), stride=2)
    assert padded.tolist() == [[[2100, 300], [8754, 906]]]
    dilated = reference.conv2d(x, weight, dilation=2)
    assert dilated.tolist() == [[[1 + 30 + 700 + 9000]]]


def test_gradients_of_a_convolution_by_hand():
    x = np.array([[[1.0, 2, 3], [4, 5, 6]]])
    weight = np.array([[[[1.0, 10], [100, 1000]]]])
    grad_y = np.array([[[1.0, 2]]])
    grad_x = reference.conv2d_backward_input(grad_y, weight, x.shape)
    assert grad_x.tolist() == [[[1, 12, 20], [100, 1200, 2000]]]
    grad_weight = reference.conv2d_backward_weight(grad_y, x, weight.shape)
    assert grad_weight.tolist() == [[[[1 + 4, 2 + 6], [4 + 10, 5 + 12]]]]
    assert reference.conv2d_backward_bias(grad_y).tolist() == [3]


def test_pooling_by_hand():
    x = np.array([[[1.0, 5, 2], [5, 0, 7], [3, 4, 6]]])
    y, argmax = reference.max_pool2d(x, 2, stride=1, return_argmax=True)
    assert y.tolist() == [[[5, 7], [5, 7]]]
    assert argmax.tolist() == [[[1, 3], [0, 1]]]
    _, indices = reference.max_pool2d(x, 2, stride=1, return_indices=True)
    assert indices.tolist() == [[[1, 5], [3, 5]]]
    errors = np.array([[[1.0, 2], [4, 8]]])
    for position in (argmax, indices):
        grad_x = reference.max_pool2d_backward(errors, position, x.shape, 2, stride=1)
        assert grad_x.tolist() == [[[0, 1, 0], [4, 0, 10], [0, 0, 0]]]
    y = reference.avg_pool2d(x, 2, ceil_mode=True)
    assert y.tolist() == [[[11 / 4, 9 / 2], [7 / 2, 6]]]
    grad_x = reference.avg_pool2d_backward(errors, x.shape, 2, ceil_mode=True)
    assert grad_x.tolist() == [[[1 / 4, 1 / 4, 1], [1 / 4, 1 / 4, 1], [2, 2, 8]]]


def test_positions_that_are_no_pixels_are_refused():
    grad_y = np.ones((1, 1, 2, 2))
    where = {"kernel_size": 3, "stride": 2, "padding": 1}
    for position in (np.uint8(0), np.uint8(9), np.int64(-1), np.int64(16)):
        argmax = np.full((1, 1, 2, 2), position)
        with pytest.raises(ValueError, match="outside of the image"):
            reference.max_pool2d_backward(grad_y, argmax, (1, 1, 4, 4), **where)
    with pytest.raises(TypeError, match="uint8, uint16 or int64"):
        reference.max_pool2d_backward(grad_y, grad_y, (1, 1, 4, 4), **where)


def test_a_window_without_a_pixel_is_refused():
    """With dilation, a window may step over an image that is small enough."""
    x = np.zeros((1, 1, 2, 2))
    with pytest.raises(ValueError, match="without any pixel"):
        reference.max_pool2d(x, 2, stride=1, padding=1, dilation=3)


@needs_torch
@pytest.mark.parametrize("name", CONV_CASES)
def test_convolutions_are_pytorchs(name):
    case = CONV_CASES[name]
    rng = np.random.default_rng(0)
    x, weight = (
        rng.standard_normal(case.x_shape),
        rng.standard_normal(case.weight_shape),
    )
    bias, grad_y = (
        rng.standard_normal(case.k),
        rng.standard_normal(case.geometry.y_shape),
    )
    expected = conv2d_and_gradients(x, weight, bias, grad_y, **case.options)
    actual = (
        reference.conv2d(x, weight, bias, **case.options),
        reference.conv2d_backward_input(grad_y, weight, x.shape, **case.options),
        reference.conv2d_backward_weight(grad_y, x, weight.shape, **case.options),
        reference.conv2d_backward_bias(grad_y),
    )
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-11)


@needs_torch
@pytest.mark.parametrize("name", POOL_CASES)
def test_poolings_are_pytorchs(name):
    case = POOL_CASES[name]
    rng = np.random.default_rng(Setting().seed)
    x, k = rng.standard_normal(case.x_shape), case.kernel_size
    grad_y = rng.standard_normal(case.geometry.y_shape)
    options = case.max_options
    expected = max_pool2d_and_gradient(x, k, grad_y, **options)
    if expected is None:
        pytest.skip("PyTorch has no asymmetric padding")
    y, indices = reference.max_pool2d(x, k, return_indices=True, **options)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    del options["ceil_mode"]
    grad_x = reference.max_pool2d_backward(grad_y, indices, x.shape, k, **options)
    np.testing.assert_allclose(grad_x, expected[2], rtol=1e-13)
    if case.dilation == 1:
        options = case.average_options
        expected = avg_pool2d_and_gradient(x, k, grad_y, **options)
        y = reference.avg_pool2d(x, k, **options)
        grad_x = reference.avg_pool2d_backward(grad_y, x.shape, k, **options)
        np.testing.assert_allclose(y, expected[0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(grad_x, expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["same", "valid"])
@pytest.mark.parametrize("name", ["3x3 same", "4x2 same", "3x3 valid"])
def test_convolution_is_scipys_correlation(name, mode):
    signal = pytest.importorskip("scipy.signal", reason="scipy is not installed")
    case = CONV_CASES[name]
    rng = np.random.default_rng(0)
    x, weight = (
        rng.standard_normal(case.x_shape),
        rng.standard_normal(case.weight_shape),
    )
    y = reference.conv2d(x, weight, padding=mode)
    for n in range(case.n):
        for k in range(case.k):
            expected = sum(
                signal.correlate2d(x[n, c], weight[k, c], mode) for c in range(case.c)
            )
            np.testing.assert_allclose(y[n, k], expected, rtol=1e-12, atol=1e-12)
