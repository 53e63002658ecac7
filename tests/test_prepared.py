"""Weights packed beforehand give what conv2d gives."""

import numpy as np
import pytest

import cnn_ext
from cnn_ext import _runtime
from cnn_ext import functional as F

# x, weight, keywords: one for each algorithm, several passes of weights, groups
CASES = [
    ((2, 20, 9, 8), (40, 20, 3, 3), {"padding": 1}),
    ((1, 32, 20, 20), (48, 32, 3, 3), {"padding": 1}),
    ((2, 16, 12, 12), (20, 16, 5, 5), {"padding": 2}),
    ((2, 17, 9, 8), (33, 17, 3, 3), {"stride": 2}),
    ((2, 3, 9, 8), (18, 3, 3, 3), {}),
    ((2, 18, 9, 8), (5, 18, 3, 3), {}),
    ((1, 24, 24, 24), (40, 24, 1, 1), {}),
    ((1, 160, 4, 4), (72, 160, 1, 1), {}),
    ((1, 130, 7, 7), (96, 130, 1, 1), {}),
    ((3, 260, 5, 9), (200, 130, 1, 1), {"groups": 2, "stride": 2}),
    ((1, 300, 3, 3), (96, 300, 3, 3), {"padding": 1}),
    ((2, 64, 6, 6), (64, 32, 3, 3), {"groups": 2, "stride": 2}),
    ((2, 16, 6, 6), (16, 1, 3, 3), {"groups": 16}),
    ((1, 20, 21, 23), (18, 20, 3, 3), {"padding": 8, "dilation": 8}),
    ((2, 16, 6, 40), (16, 4, 3, 3), {"groups": 4, "padding": 1}),
    ((1, 70, 6, 9), (5, 70, 3, 3), {"padding": 1}),
    ((1, 700, 5, 5), (700, 700, 3, 3), {"stride": 2}),  # more than one pass
    ((1, 64, 8, 8), (70, 64, 3, 3), {"padding": 1}),  # filtered if prepared
    ((2, 90, 8, 11), (105, 90, 3, 3), {"padding": 1}),  # U in memory if prepared
    ((2, 340, 8, 7), (350, 340, 3, 3), {"padding": 1}),  # weights that tasks transform
    # shares of stride 2: filtered if prepared; weights that tasks transform
    ((1, 32, 32, 30), (66, 32, 3, 3), {"stride": 2, "padding": 1}),
    ((4, 96, 16, 16), (98, 96, 5, 5), {"stride": 2, "padding": 2}),
    ((0, 3, 9, 8), (18, 3, 3, 3), {}),
]


def random(shape, dtype, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def ordered(x, channels_last):
    if not channels_last:
        return x
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def assert_same(a, b, exact):
    """The same bits; or the same but for the rounding of minimal filtering."""
    if exact:
        np.testing.assert_array_equal(a, b)
    else:
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.fixture(params=["strict", "fast"])
def precision(request):
    cnn_ext.set_precision(request.param)
    yield request.param
    cnn_ext.set_precision("fast")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords"), CASES)
def test_the_result_of_conv2d(
    x_shape, w_shape, keywords, dtype, channels_last, precision
):
    exact = precision == "strict" or dtype is np.float64
    weight, bias = random(w_shape, dtype, 1), random(w_shape[:1], dtype, 2)
    x = ordered(random(x_shape, dtype, 3), channels_last)
    for kernel_set in _runtime.kernel_sets():
        before = _runtime.use_kernel_set(kernel_set)
        try:
            convolve = F.prepare_conv2d(
                weight, bias, x_shape, channels_last=channels_last, **keywords
            )
            expected = F.conv2d(x, weight, bias, **keywords)
            assert_same(convolve(x), expected, exact)
            out = np.full(convolve.y_shape, np.nan, dtype)
            assert convolve(x, out=out) is out
            assert_same(out, expected, exact and not channels_last)
        finally:
            _runtime.use_kernel_set(before or _runtime.kernel_sets()[0])


def test_what_was_prepared_does_not_change():
    weight, bias = random((32, 16, 3, 3), np.float32, 1), np.zeros(32, np.float32)
    x = random((2, 16, 8, 8), np.float32, 2)
    convolve = F.prepare_conv2d(weight, bias, x.shape, activation="relu")
    expected = convolve(x)
    assert_same(expected, F.conv2d(x, weight, bias, activation="relu"), False)
    weight[...], bias[...] = np.nan, np.nan
    np.testing.assert_array_equal(convolve(x), expected)
    assert "2, 16, 8, 8" in repr(convolve)
    assert convolve.nbytes > 0


def test_other_orders_precisions_and_kernel_sets_are_served_too():
    weight = random((32, 32, 3, 3), np.float32, 1)
    x = random((2, 32, 12, 12), np.float32, 2)
    convolve = F.prepare_conv2d(weight, None, x.shape, channels_last=True)
    assert_same(convolve(x), F.conv2d(x, weight), False)
    cnn_ext.set_precision("strict")
    try:
        np.testing.assert_array_equal(convolve(x), F.conv2d(x, weight))
    finally:
        cnn_ext.set_precision("fast")


def test_errors():
    weight = random((32, 16, 3, 3), np.float32, 1)
    convolve = F.prepare_conv2d(weight, None, (2, 16, 8, 8))
    with pytest.raises(ValueError, match=r"x must have shape \(2, 16, 8, 8\), got"):
        convolve(random((1, 16, 8, 8), np.float32, 2))
    with pytest.raises(TypeError, match="x is float64 but weight is float32"):
        convolve(random((2, 16, 8, 8), np.float64, 2))
    with pytest.raises(ValueError, match="activation must be None, 'relu' or 'relu6'"):
        F.prepare_conv2d(weight, None, (2, 16, 8, 8), activation="tanh")
    with pytest.raises(TypeError, match="bias is float64"):
        F.prepare_conv2d(weight, np.zeros(32), (2, 16, 8, 8))
