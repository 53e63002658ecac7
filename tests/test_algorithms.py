"""The choice of an algorithm, and what a user is told of it."""

import numpy as np
import pytest
from cases import CONV_CASES

import cnn_ext
from cnn_ext import _runtime
from cnn_ext import functional as F


def chosen(*shapes, **options):
    return [
        line.split()[1] for line in F.explain_conv2d(*shapes, **options).split("\n")
    ]


def test_each_kind_of_geometry_gets_its_algorithm():
    large = (8, 64, 28, 28), (64, 64, 3, 3)
    assert chosen(*large, padding=1) == ["winograd"] * 3
    assert chosen(*large, padding=1, stride=2) == ["direct"] * 3
    assert chosen(*large, padding=1, dtype=np.float64) == ["direct"] * 3
    assert chosen((8, 1, 28, 28), (6, 1, 5, 5)) == ["planes"] * 3
    depthwise = (8, 64, 28, 28), (64, 1, 3, 3)
    assert chosen(*depthwise, groups=64, channels_last=True) == ["depthwise"] * 3
    assert chosen(*depthwise, groups=64) == ["depthwise-planes"] * 3
    few = (1, 256, 4, 4), (256, 256, 3, 3)
    assert chosen(*few, padding=1) == ["columns", "columns", "direct"]
    assert chosen(*few, padding=1, stride=2)[:2] == ["columns"] * 2
    strided = chosen(*depthwise, groups=64, stride=2)
    assert strided == ["depthwise-planes"] * 3
    few = chosen((8, 64, 28, 28), (64, 4, 3, 3), groups=16, channels_last=True)
    assert few == ["grouped", "grouped", "planes"]
    few = (8, 64, 28, 28), (3, 64, 3, 3)
    assert chosen(*few, channels_last=True)[0] == "dots"
    assert chosen((8, 3, 28, 28), (64, 3, 3, 3), channels_last=True)[1] == "dots"
    assert chosen(*few)[0] == "planes"


@pytest.mark.parametrize("name", [name for name in CONV_CASES if "sums of" in name])
def test_few_channels_of_many_taps_sum_their_products(name, kernel_set):
    case = CONV_CASES[name]
    g = case.geometry
    shapes = (g.n, g.c, g.h, g.w), case.weight_shape
    assert chosen(*shapes, dtype=np.float64, **case.options)[1] == "columns"


def test_where_sums_of_taps_pay(kernel_set):
    def named(*shapes, **options):
        return chosen(*shapes, **options)[1]

    second = (64, 6, 14, 14), (16, 6, 5, 5)
    assert named(*second) == "columns"
    wide = kernel_set == "avx512"
    assert (named(*second, channels_last=True) == "columns") == wide
    # as many pixels as sums: few filters do not pay
    assert named(*second, padding=2) == "planes"
    # phases would be mostly rounded up
    assert named((1, 3, 99, 99), (64, 3, 7, 7), stride=5, padding=3) == "planes"
    # minimal filtering saves more
    assert named((64, 20, 12, 12), (50, 20, 5, 5)) == "winograd"


@pytest.mark.parametrize("channels_last", [False, True])
def test_minimal_filtering_is_for_these_geometries(channels_last):
    def named(shape, weight, **options):
        return chosen(shape, weight, channels_last=channels_last, **options)

    for name, case in CONV_CASES.items():
        if "minimal filtering" in name:
            g = case.geometry
            shapes = (g.n, g.c, g.h, g.w), (g.k, g.c, g.r, g.s)
            assert named(*shapes, **case.options) == ["winograd"] * 3, name
        if "by shares" in name:
            g = case.geometry
            shapes = (g.n, g.c, g.h, g.w), (g.k, g.c, g.r, g.s)
            assert named(*shapes, **case.options)[0] == "winograd", name
            odd = named(
                (g.n, g.c + 1, g.h, g.w), (g.k, g.c + 1, g.r, g.s), **case.options
            )
            assert odd[0] == "direct", name
    wide = (2, 64, 65, 65)
    assert named(wide, (64, 64, 3, 3), dilation=4, padding=4) == ["winograd"] * 3
    # a phase has two pixels, or three; the patches are more than the outputs
    small = named((8, 64, 33, 33), (64, 64, 3, 3), dilation=12, padding=12)
    assert small == ["direct"] * 3
    # transforming many weights costs more than few patches save
    few = named((4, 512, 7, 7), (512, 512, 3, 3), padding=1)
    assert few[:2] == ["winograd"] * 2
    few = named((1, 512, 7, 7), (512, 512, 3, 3), padding=1)
    assert few[:2] == ["columns"] * 2
    few = named((1, 384, 4, 4), (384, 384, 1, 3), padding=(0, 1))
    assert few[0] != "winograd"
    # no other kernels
    assert named(wide, (64, 64, 3, 5)) == ["direct"] * 3
    assert named(wide, (64, 64, 1, 9)) == ["direct"] * 3


def test_strict_precision_sums_directly():
    cnn_ext.set_precision("strict")
    try:
        assert cnn_ext.get_precision() == "strict"
        assert chosen((8, 64, 28, 28), (64, 64, 3, 3)) == ["direct"] * 3
    finally:
        cnn_ext.set_precision("fast")
    with pytest.raises(ValueError, match="precision must be"):
        cnn_ext.set_precision("exact")


@pytest.mark.parametrize(
    "precision, channels, bound",
    [("strict", 48, 1e-6), ("fast", 48, 5e-6), ("fast", 128, 5e-6)],
)
@pytest.mark.parametrize("size", [3, 5])
def test_accuracy_against_float64(precision, channels, bound, size):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((4, channels, 19, 22))
    w = rng.standard_normal((40, channels, size, size))
    y = F.conv2d(x, w, padding=1)
    g = rng.standard_normal(y.shape)
    wanted = [
        y,
        F.conv2d_backward_input(g, w, x.shape, padding=1),
        F.conv2d_backward_weight(g, x, w.shape, padding=1),
    ]
    x, w, g = x.astype(np.float32), w.astype(np.float32), g.astype(np.float32)
    cnn_ext.set_precision(precision)
    try:
        found = [
            F.conv2d(x, w, padding=1),
            F.conv2d_backward_input(g, w, x.shape, padding=1),
            F.conv2d_backward_weight(g, x, w.shape, padding=1),
        ]
    finally:
        cnn_ext.set_precision("fast")
    for a, b in zip(found, wanted, strict=True):
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)


@pytest.mark.parametrize("size", [4, 5, 6])
def test_accuracy_of_shares_of_stride_2(size):
    rng = np.random.default_rng(8)
    x = rng.standard_normal((8, 256, 15, 16))
    w = rng.standard_normal((64, 256, size, size))
    options = {"stride": 2, "padding": 2}
    assert chosen(x.shape, w.shape, **options)[0] == "winograd"
    y = F.conv2d(x, w, **options)
    found = F.conv2d(x.astype(np.float32), w.astype(np.float32), **options)
    assert np.linalg.norm(found - y) <= 5e-6 * np.linalg.norm(y)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("depth", [1, 4])
def test_depthwise_ends_with_its_activation(depth, channels_last, size, activation):
    rng = np.random.default_rng(9)
    x = 4 * rng.standard_normal((2, 20, 13, 40), np.float32)
    if channels_last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    w = rng.standard_normal((20, depth, size, size), np.float32)
    y = F.conv2d(x, w, groups=20 // depth)
    expected = np.where(y <= 0, 0, y)
    if activation == "relu6":
        expected[expected > 6] = 6
    for kernel_set in _runtime.kernel_sets():
        before = _runtime.kernel_set()
        _runtime.use_kernel_set(kernel_set)
        try:
            ended = F.conv2d(x, w, groups=20 // depth, activation=activation)
        finally:
            _runtime.use_kernel_set(before)
        np.testing.assert_allclose(ended, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("taps", [1, 3])
def test_few_pixels_end_with_their_activation(side, taps, activation, kernel_set):
    rng = np.random.default_rng(10)
    x = rng.standard_normal((1, 64, side, side), np.float32)
    x[0, 0, 0, 0] = np.nan
    w = rng.standard_normal((130, 64, taps, taps), np.float32) / 4
    b = rng.standard_normal(130, np.float32)
    around = {"padding": taps // 2}
    y = F.conv2d(x, w, b, **around)
    ended = F.conv2d(x, w, b, activation=activation, **around)
    prepared = F.prepare_conv2d(w, b, x.shape, activation=activation, **around)
    np.testing.assert_array_equal(prepared(x), ended)
    y[y <= 0] = 0
    if activation == "relu6":
        y[y > 6] = 6
    np.testing.assert_array_equal(ended, y)


@pytest.mark.parametrize("channels", [1, 5, 20])
@pytest.mark.parametrize("filters", [1, 6, 24])
def test_relu_as_the_result_is_stored(channels, filters):
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, channels, 13, 14), np.float32)
    x[0, 0, 6, 6] = np.nan
    w = rng.standard_normal((filters, channels, 3, 3), np.float32)
    b = rng.standard_normal(filters, np.float32)
    y = F.conv2d(x, w, b)
    expected = np.where(y <= 0, 0, y)
    np.testing.assert_array_equal(F.conv2d(x, w, b, activation="relu"), expected)
    expected[expected > 6] = 6
    np.testing.assert_array_equal(F.conv2d(x, w, b, activation="relu6"), expected)
    for wrong in ("tanh", 1, ["relu"]):
        with pytest.raises(ValueError, match="must be None, 'relu' or 'relu6', got"):
            F.conv2d(x, w, b, activation=wrong)


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (512, 512)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7)])
@pytest.mark.parametrize("groups", [1, 16])
def test_no_images_by_any_algorithm(shape, kernel, groups, kernel_set):
    """Sizes that are 0 are nobody's divisor."""
    k, c = shape
    x = np.zeros((0, c, 9, 9), np.float32)
    weight = np.ones((k, c // groups, *kernel), np.float32)
    for stride in (1, 2):
        options = {"stride": stride, "padding": "same", "groups": groups}
        y = F.conv2d(x, weight, **options)
        assert y.shape[:2] == (0, k)
        grad_x = F.conv2d_backward_input(y, weight, x.shape, **options)
        assert grad_x.shape == x.shape
        grad_weight = F.conv2d_backward_weight(y, x, weight.shape, **options)
        assert not grad_weight.any()
