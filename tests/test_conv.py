"""conv2d and its backward passes agree with the definition and with PyTorch."""

from dataclasses import replace

import cases
import numpy as np
import pytest
from cases import CONV_CASES, ORDERS, ConvCase, conv_cases, lay_out, machine
from checks import (
    OUT_ORDERS,
    assert_equal,
    assert_near,
    assert_same_bits,
    frozen,
    overwrites,
    rounding_bound,
    torch,
)
from hypothesis import given, settings
from torch_operators import conv2d_and_gradients

from cnn_ext import functional as F
from cnn_ext import reference


def arrays(case: ConvCase, content):
    """Return x, weight, bias and grad_y of a case, plain."""
    rng = np.random.default_rng(case.setting.seed)
    dtype = case.setting.dtype
    bias = content(rng, case.k, dtype) if case.bias else None
    return (
        content(rng, case.x_shape, dtype),
        content(rng, case.weight_shape, dtype),
        bias,
        content(rng, case.geometry.y_shape, dtype),
    )


def passes(operators, case, x, weight, bias, grad_y):
    """Return y and the gradients of x, weight and bias by these operators."""
    options = case.options
    return (
        operators.conv2d(x, weight, bias, **options),
        operators.conv2d_backward_input(grad_y, weight, x.shape, **options),
        operators.conv2d_backward_weight(grad_y, x, weight.shape, **options),
        operators.conv2d_backward_bias(grad_y),
    )


def poisoned_passes(case, x, weight, bias, grad_y, order):
    """The same by the compiled operators, with every kind of `out`."""
    options = case.options
    return (
        overwrites(F.conv2d, x, weight, bias, order=order, **options),
        overwrites(
            F.conv2d_backward_input, grad_y, weight, x.shape, order=order, **options
        ),
        overwrites(
            F.conv2d_backward_weight, grad_y, x, weight.shape, order=order, **options
        ),
        overwrites(F.conv2d_backward_bias, grad_y),
    )


def laid_out(case, x, weight, bias, grad_y):
    setting = case.setting
    if setting.single:
        x, grad_y = x[0], grad_y[0]
    x, grad_y = lay_out(x, setting.orders[0]), lay_out(grad_y, setting.orders[1])
    # filters too may be a view; their order follows x's
    return x, lay_out(weight, setting.orders[0]), bias, grad_y


def check(case: ConvCase) -> None:
    """Exact for whole numbers; within the rounding of the sum for others."""
    dtype, single = case.setting.dtype, case.setting.single
    plain = arrays(case, cases.integers)
    expected = passes(reference, case, *plain)
    if torch is not None:
        by_torch = conv2d_and_gradients(
            *(None if a is None else a.astype(np.float64) for a in plain),
            **case.options,
        )
        for ours, theirs in zip(expected, by_torch, strict=True):
            assert theirs is None or np.array_equal(ours, theirs)
    order = OUT_ORDERS[case.setting.seed % len(OUT_ORDERS)]
    with machine(case.setting.kernel_set, case.setting.threads, strict=True):
        actual = poisoned_passes(case, *laid_out(case, *plain), order)
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert_equal(ours, theirs[0] if single and i < 2 else theirs, dtype)

    plain = arrays(case, cases.normals)
    expected = passes(reference, case, *plain)
    magnitudes = passes(
        reference, case, *(None if a is None else np.abs(a) for a in plain)
    )
    g = case.geometry
    pixels = g.n * g.out_h * g.out_w
    taps = g.r * g.s
    terms = g.c // g.groups * taps, g.k // g.groups * taps, pixels, pixels
    for strict in (True, False):
        with machine(case.setting.kernel_set, case.setting.threads, strict=strict):
            actual = passes(F, case, *laid_out(case, *plain))
        for i, ours in enumerate(actual):
            theirs, magnitude = expected[i], magnitudes[i]
            if single and i < 2:
                theirs, magnitude = theirs[0], magnitude[0]
            if not strict and dtype == "float32":
                # minimal filtering adds and subtracts neighbours, whose error spreads
                magnitude = 8 * magnitude.max(initial=0.0)
            assert_near(ours, theirs, rounding_bound(terms[i], magnitude, dtype))


@given(conv_cases())
def test_random_cases(case):
    check(case)


@pytest.mark.slow
@settings(settings.get_profile("thorough"))
@given(conv_cases())
def test_2000_random_cases(case):
    check(case)


@pytest.mark.skipif(torch is None, reason="torch is not installed")
def test_random_cases_were_compared_with_torch():
    """Says in the report of a test run whether `check` had PyTorch beside it."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONV_CASES)
def test_named_cases(name, dtype, kernel_set):
    case = CONV_CASES[name]
    setting = cases.Setting(dtype, ("contiguous", "channels_last"), False, kernel_set)
    check(replace(case, setting=setting))


@pytest.mark.parametrize(
    "case",
    [  # filters that fill one to four vectors of every kernel set, and some beside them
        ConvCase(3, 3, 19, 17, 64, 3, 3, padding=1),
        ConvCase(2, 1, 13, 18, 40, 5, 5),
        ConvCase(1, 4, 20, 35, 48, 7, 7, 2, 3),
        ConvCase(3, 2, 9, 8, 33, 3, 3, padding=1),
        ConvCase(2, 7, 11, 12, 96, 3, 2, (2, 1), (1, 0)),
        ConvCase(2, 5, 12, 12, 70, 3, 3, padding=2, dilation=2),
        ConvCase(5, 18, 17, 16, 34, 3, 3, 2, 1),
        ConvCase(2, 36, 10, 11, 24, 3, 3, groups=2),
    ],
    ids=lambda case: f"{case.c}-{case.k}-{case.r}x{case.s}",
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_channels(case, dtype, kernel_set):
    for order in ("channels_last", "contiguous"):
        orders = order, "channels_last"
        setting = cases.Setting(dtype, orders, False, kernel_set)
        check(replace(case, setting=setting))


@pytest.mark.parametrize(
    "case",
    [  # some tiles of rows at constant distances, and rows that fill none
        ConvCase(2, 18, 9, 13, 24, 1, 1),
        ConvCase(1, 33, 40, 33, 48, 1, 1, 2),
        ConvCase(3, 16, 7, 15, 17, 1, 1, bias=False),
        ConvCase(1, 300, 15, 16, 80, 1, 1),
        ConvCase(2, 64, 6, 14, 96, 1, 1, (1, 2), groups=2),
        ConvCase(1, 40, 16, 29, 16, 1, 1, padding=1),
        ConvCase(1, 16, 57, 58, 16, 3, 3, padding=1),
        ConvCase(2, 48, 30, 26, 48, 3, 3, padding=1),
        ConvCase(3, 34, 21, 22, 50, 3, 3),
    ],
    ids=lambda case: f"{case.c}-{case.k}-{case.r}x{case.s}",
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_at_constant_distances(case, dtype, kernel_set):
    setting = cases.Setting(dtype, ("channels_last",) * 2, False, kernel_set)
    check(replace(case, setting=setting))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["3x3 same", "groups", "depthwise", "no images"])
def test_memory_orders(name, order, dtype, kernel_set):
    setting = cases.Setting(dtype, (order, order), False, kernel_set)
    check(replace(CONV_CASES[name], setting=setting))


@pytest.mark.parametrize("name", ["3x3 same", "wide enough for minimal filtering"])
def test_result_has_the_memory_order_of_its_first_argument(name):
    case = CONV_CASES[name]
    x, weight, bias, grad_y = arrays(case, cases.normals)
    y = F.conv2d(x, weight, bias, **case.options)
    grad_x = F.conv2d_backward_input(grad_y, weight, x.shape, **case.options)
    assert y.flags.c_contiguous
    assert grad_x.flags.c_contiguous
    x, grad_y = lay_out(x, "channels_last"), lay_out(grad_y, "channels_last")
    y = F.conv2d(x, weight, bias, **case.options)
    grad_x = F.conv2d_backward_input(grad_y, weight, x.shape, **case.options)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    assert grad_x.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("name", ["3x3 same", "depthwise", "asymmetric padding"])
def test_single_image_is_a_batch_of_one(name, kernel_set):
    case = replace(CONV_CASES[name], n=1)
    x, weight, bias, grad_y = arrays(case, cases.normals)
    batch = passes(F, case, x, weight, bias, grad_y)
    single = passes(F, case, x[0], weight, bias, grad_y[0])
    assert_same_bits(single[0], batch[0][0])
    assert_same_bits(single[1], batch[1][0])
    assert_same_bits(single[2], batch[2])
    assert_same_bits(single[3], batch[3])


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("size", "channels", "filters", "kernel"),
    [
        (28, 64, 64, (3, 3)),
        (14, 256, 40, (3, 3)),
        (9, 20, 130, (3, 3)),
        (20, 33, 64, (5, 5)),
        (17, 256, 32, (1, 7)),
        (17, 40, 100, (7, 1)),
        (20, 128, 32, (1, 5)),
        (20, 33, 64, (5, 1)),
        (15, 256, 32, (1, 3)),
        (16, 20, 130, (3, 1)),
        # sums of more channels than are summed at once, where the points ask for it
        (35, 128, 16, (3, 3)),
        (29, 140, 18, (3, 3)),
        (14, 512, 64, (3, 3)),
        (20, 300, 17, (5, 5)),
        (20, 300, 32, (1, 7)),
    ],
)
def test_precision_is_as_promised(size, channels, filters, kernel, order, kernel_set):
    """What set_precision says of the error, relative to the norm of the result."""
    case = ConvCase(
        2, channels, size, size + 1, filters, *kernel, padding="same", bias=False
    )
    plain = arrays(case, cases.normals)
    expected = passes(reference, case, *plain)
    setting = replace(case, setting=cases.Setting(orders=(order, order)))
    products = channels * kernel[0] * kernel[1]
    direct = 1e-6 * max(1.0, products / 3000) ** 0.5
    for strict, bounds in ((True, (direct,) * 3), (False, (5e-6, 5e-6, 1e-5))):
        with machine(kernel_set, strict=strict):
            actual = passes(F, case, *laid_out(setting, *plain))
        for ours, theirs, bound in zip(actual, expected, bounds, strict=False):
            assert np.linalg.norm(ours - theirs) <= bound * np.linalg.norm(theirs)


def test_float64_is_summed_directly_at_any_precision(kernel_set):
    case = CONV_CASES["wide enough for minimal filtering"]
    case = replace(case, setting=cases.Setting("float64"))
    plain = arrays(case, cases.normals)
    with machine(strict=True):
        expected = passes(F, case, *plain)
    with machine(strict=False):
        actual = passes(F, case, *plain)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same_bits(ours, theirs)


def test_an_identity_filter_copies_the_image(kernel_set):
    x = cases.normals(np.random.default_rng(0), (2, 3, 5, 6), np.float32)
    weight = np.zeros((3, 3, 3, 3), np.float32)
    weight[range(3), range(3), 1, 1] = 1
    with machine(strict=True):
        assert_same_bits(F.conv2d(x, weight, padding=1), x)


def test_it_is_a_correlation_and_not_flipped():
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 1, 1] = 1
    weight = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    expected = weight[0, 0, ::-1, ::-1]
    np.testing.assert_array_equal(F.conv2d(x, weight, padding=1)[0, 0], expected)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "out", "before", "after"),
    [  # worked out by hand from out = ceil(H/stride) and the total of the formula
        (5, 3, 1, 1, 5, 1, 1),
        (5, 2, 1, 1, 5, 0, 1),
        (6, 3, 2, 1, 3, 0, 1),
        (7, 3, 2, 1, 4, 1, 1),
        (7, 4, 3, 1, 3, 1, 2),
        (8, 2, 3, 1, 3, 0, 0),
        (5, 3, 1, 2, 5, 2, 2),
        (6, 4, 4, 2, 2, 2, 3),
    ],
)
def test_same_padding_is_tensorflows(
    size, kernel, stride, dilation, out, before, after
):
    x = np.ones((1, 1, size, 1), np.float64)
    weight = 2.0 ** np.arange(kernel).reshape(1, 1, kernel, 1)
    options = {"stride": (stride, 1), "dilation": (dilation, 1)}
    for name, sides in (("same", (before, after)), ("same_lower", (after, before))):
        padded = np.pad(x, ((0, 0), (0, 0), sides, (0, 0)))
        taps = [
            padded[0, 0, i * stride : i * stride + kernel * dilation : dilation, 0]
            for i in range(out)
        ]
        y = F.conv2d(x, weight, padding=name, **options)
        assert y.shape == (1, 1, out, 1)
        expected = [float(t[:kernel] @ weight[0, 0, : len(t), 0]) for t in taps]
        assert y[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_sum_is_longer_than_it_says(stride):
    """All ones count the taps that fall on the image."""
    x, weight = np.ones((1, 1, 6, 6)), np.ones((1, 1, 3, 3))
    y = F.conv2d(x, weight, stride=stride, padding=1)
    rows = [3 - (i == 0) - (i + 2 > 6) for i in range(0, 6, stride)]
    np.testing.assert_array_equal(y[0, 0], np.outer(rows, rows))


def test_arguments_that_share_memory_are_read_as_they_are():
    """x and grad_y may be the same array, and either may repeat elements."""
    rng = np.random.default_rng(0)
    x = cases.integers(rng, (2, 4, 6, 6), np.float32)
    weight = cases.integers(rng, (4, 4, 1, 1), np.float32)
    same = frozen(F.conv2d_backward_weight, x, x, weight.shape)
    assert_equal(same, reference.conv2d_backward_weight(x, x, weight.shape), "float32")
    flat = np.broadcast_to(x[:1, :1, :1], x.shape)
    assert_equal(F.conv2d(flat, weight), reference.conv2d(flat, weight), "float32")


def test_sizes_may_be_lists_and_numpy_integers():
    case = CONV_CASES["asymmetric padding"]
    x, weight, bias, grad_y = arrays(case, cases.integers)
    options = {
        "stride": [2, np.int64(1)],
        "padding": [[0, 2], (np.uint8(3), 1)],
        "dilation": np.int32(1),
        "groups": np.int16(1),
    }
    plain = {"stride": (2, 1), "padding": ((0, 2), (3, 1))}
    y = F.conv2d(x, weight, bias, **options)
    assert_same_bits(y, F.conv2d(x, weight, bias, **plain))
    grad_y = cases.integers(np.random.default_rng(0), y.shape, np.float32)
    for ours, theirs in (
        (
            F.conv2d_backward_input(grad_y, weight, list(x.shape), **options),
            F.conv2d_backward_input(grad_y, weight, x.shape, **plain),
        ),
        (
            F.conv2d_backward_weight(grad_y, x, list(weight.shape), **options),
            F.conv2d_backward_weight(grad_y, x, weight.shape, **plain),
        ),
    ):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_large_results_begin_a_cache_line(order):
    x = lay_out(np.zeros((1, 16, 64, 65), np.float32), order)
    weight = np.zeros((16, 16, 1, 1), np.float32)
    kept = [F.conv2d(x, weight) for _ in range(5)]
    assert all(y.ctypes.data % 64 == 0 for y in kept)
    assert all(y.strides == x.strides and y.flags.writeable for y in kept)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_depthwise_gradient_leaves_out_what_taps_do_not_reach(order, dtype, kernel_set):
    """Infinite pixels beyond a tap's reach must not meet zeros of unused lanes."""
    x, grad_y = np.ones((2, 3, 11, 21), dtype), np.ones((2, 3, 9, 19), dtype)
    x[..., -1], x[..., -1, :] = np.inf, np.inf
    grad_weight = F.conv2d_backward_weight(
        lay_out(grad_y, order), lay_out(x, order), (3, 1, 3, 3), groups=3
    )
    expected = np.full((3, 1, 3, 3), np.inf, dtype)
    expected[..., :2, :2] = grad_y[:, 0].size
    np.testing.assert_array_equal(grad_weight, expected)
