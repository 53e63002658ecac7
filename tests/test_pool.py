"""Max and average pooling and their backward passes, against definition and PyTorch."""

from dataclasses import replace

import cases
import numpy as np
import pytest
from cases import CONTENTS, ORDERS, POOL_CASES, PoolCase, lay_out, machine, pool_cases
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
from torch_operators import avg_pool2d_and_gradient, max_pool2d_and_gradient

from cnn_ext import functional as F
from cnn_ext import reference


def arrays(case: PoolCase, y_shape, content=None):
    """Return x and grad_y of a case, plain, and the two in the case's orders."""
    setting = case.setting
    rng = np.random.default_rng(setting.seed)
    x = CONTENTS[content or case.content](rng, case.x_shape, setting.dtype)
    grad_y = cases.integers(rng, y_shape, setting.dtype)
    laid_out = [lay_out(x, setting.orders[0]), lay_out(grad_y, setting.orders[1])]
    if setting.single:
        laid_out = [array[0] for array in laid_out]
    return x, grad_y, *laid_out


def out_order(case: PoolCase) -> str:
    return OUT_ORDERS[case.setting.seed % len(OUT_ORDERS)]


def winners(x, indices):
    """Return the pixels at flat positions in their planes, bit for bit."""
    planes = np.ascontiguousarray(x).reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    flat = indices.reshape(*indices.shape[:-2], indices.shape[-2] * indices.shape[-1])
    return np.take_along_axis(planes, flat, axis=-1).reshape(indices.shape)


def check_max(case: PoolCase) -> None:
    """Winners are exact, and each is the pixel itself, whatever its bits."""
    setting, options, k = case.setting, case.max_options, case.kernel_size
    x, grad_y, x_view, grad_view = arrays(case, case.geometry.y_shape)
    back = {name: value for name, value in options.items() if name != "ceil_mode"}
    y, indices = reference.max_pool2d(x, k, return_indices=True, **options)
    _, argmax = reference.max_pool2d(x, k, return_argmax=True, **options)
    grad_x = reference.max_pool2d_backward(grad_y, indices, x.shape, k, **back)
    if torch is not None:
        by_torch = max_pool2d_and_gradient(x, k, grad_y, **options)
        if by_torch is not None:
            assert_same_bits(by_torch[0], winners(x, indices))
            np.testing.assert_array_equal(by_torch[1], indices)
            np.testing.assert_array_equal(by_torch[2], grad_x)
    if setting.single:
        x, y, indices, argmax, grad_x = (a[0] for a in (x, y, indices, argmax, grad_x))
    order = out_order(case)
    with machine(setting.kernel_set, setting.threads):
        for name, expected in (("return_argmax", argmax), ("return_indices", indices)):
            ours, position = overwrites(
                F.max_pool2d, x_view, k, order=order, **{name: True}, **options
            )
            assert position.dtype == expected.dtype
            np.testing.assert_array_equal(position, expected)
            assert_same_bits(ours, winners(x, indices))
            np.testing.assert_array_equal(ours, y)
            ours = overwrites(
                F.max_pool2d_backward,
                grad_view,
                expected,
                x.shape,
                k,
                order=order,
                **back,
            )
            assert_equal(ours, grad_x, setting.dtype)
        plain = overwrites(F.max_pool2d, x_view, k, order=order, **options)
        assert_same_bits(plain, winners(x, indices))


def check_average(case: PoolCase) -> None:
    """Sums of whole numbers are exact; others are within their rounding."""
    setting, options, k = case.setting, case.average_options, case.kernel_size
    dtype = setting.dtype
    g = replace(case, dilation=1).geometry
    x, grad_y, x_view, grad_view = arrays(case, g.y_shape, "integers")
    y = reference.avg_pool2d(x, k, **options)
    grad_x = reference.avg_pool2d_backward(grad_y, x.shape, k, **options)
    magnitudes = (
        reference.avg_pool2d(np.abs(x), k, **options),
        reference.avg_pool2d_backward(np.abs(grad_y), x.shape, k, **options),
    )
    if torch is not None:
        doubles = x.astype(np.float64), grad_y.astype(np.float64)
        by_torch = avg_pool2d_and_gradient(doubles[0], k, doubles[1], **options)
        if by_torch is not None:
            bounds = [rounding_bound(g.r * g.s, m, np.float64) for m in magnitudes]
            assert_near(by_torch[0], y, bounds[0])
            assert_near(by_torch[1], grad_x, bounds[1])
    exact = {**options, "divisor_override": 1}
    sums = reference.avg_pool2d(x, k, **exact)
    shares = reference.avg_pool2d_backward(grad_y, x.shape, k, **exact)
    expected = [y, grad_x, *magnitudes, sums, shares]
    if setting.single:
        expected = [array[0] for array in expected]
    y, grad_x, *magnitudes, sums, shares = expected
    order, x_shape = out_order(case), grad_x.shape
    bounds = [rounding_bound(g.r * g.s, magnitude, dtype) for magnitude in magnitudes]
    with machine(setting.kernel_set, setting.threads):
        ours = overwrites(
            F.avg_pool2d, x_view, k, order=order, bound=2 * bounds[0], **options
        )
        assert_near(ours, y, bounds[0])
        ours = overwrites(
            F.avg_pool2d_backward,
            grad_view,
            x_shape,
            k,
            order=order,
            bound=2 * bounds[1],
            **options,
        )
        assert_near(ours, grad_x, bounds[1])
        assert_equal(F.avg_pool2d(x_view, k, **exact), sums, dtype)
        ours = F.avg_pool2d_backward(grad_view, x_shape, k, **exact)
        assert_equal(ours, shares, dtype)


@given(pool_cases())
def test_random_cases_of_max(case):
    check_max(case)


@given(pool_cases())
def test_random_cases_of_average(case):
    check_average(case)


@pytest.mark.slow
@settings(settings.get_profile("thorough"))
@given(pool_cases())
def test_2000_random_cases_of_max(case):
    check_max(case)


@pytest.mark.slow
@settings(settings.get_profile("thorough"))
@given(pool_cases())
def test_2000_random_cases_of_average(case):
    check_average(case)


@pytest.mark.skipif(torch is None, reason="torch is not installed")
def test_random_cases_were_compared_with_torch():
    """Says in the report of a test run whether PyTorch stood beside the checks."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", POOL_CASES)
def test_named_cases(name, content, dtype, kernel_set):
    setting = cases.Setting(dtype, ("contiguous", "channels_last"), False, kernel_set)
    case = replace(POOL_CASES[name], content=content, setting=setting)
    check_max(case)
    if content == "integers":
        check_average(case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["3x3 stride 2 as AlexNet", "pad 1 ceil"])
def test_memory_orders(name, order, dtype, kernel_set):
    setting = cases.Setting(dtype, (order, order), False, kernel_set)
    case = replace(POOL_CASES[name], content="normals", setting=setting)
    check_max(case)
    check_average(case)


def test_results_have_the_memory_order_of_the_first_argument():
    x = cases.normals(np.random.default_rng(0), (2, 5, 8, 8), np.float32)
    for order, axes in (("contiguous", (0, 1, 2, 3)), ("channels_last", (0, 2, 3, 1))):
        image = lay_out(x, order)
        y, argmax = F.max_pool2d(image, 2, return_argmax=True)
        results = (
            y,
            F.avg_pool2d(image, 2),
            F.max_pool2d_backward(y, argmax, x.shape, 2),
            F.avg_pool2d_backward(y, x.shape, 2),
        )
        for result in results:
            assert result.transpose(axes).flags.c_contiguous


@pytest.mark.parametrize("name", ["2x2", "pad 1 ceil", "asymmetric padding"])
def test_single_image_is_a_batch_of_one(name):
    case = replace(POOL_CASES[name], n=1, content="normals")
    single = replace(case, setting=cases.Setting(single=True))
    for variant in (case, single):
        check_max(variant)
        check_average(variant)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [((1, 1), np.uint8), ((16, 16), np.uint8), ((1, 257), np.uint16)],
)
def test_positions_have_the_smallest_dtype_that_holds_them(kernel, dtype):
    x = np.zeros((1, 1, *kernel), np.float32)
    x[0, 0, -1, -1] = 1
    y, argmax = F.max_pool2d(x, kernel, return_argmax=True)
    assert argmax.dtype == dtype
    assert argmax.item() == kernel[0] * kernel[1] - 1
    back = F.max_pool2d_backward(y, argmax, x.shape, kernel)
    np.testing.assert_array_equal(back, x)


def test_largest_window_that_has_positions():
    x = np.zeros((1, 1, 256, 256), np.float32)
    x[0, 0, -1, -1] = 1
    y, argmax = F.max_pool2d(x, 256, return_argmax=True)
    assert (argmax.dtype, argmax.item()) == (np.uint16, 65535)
    np.testing.assert_array_equal(F.max_pool2d_backward(y, argmax, x.shape, 256), x)
    with pytest.raises(ValueError, match="65536"):
        F.max_pool2d(
            np.zeros((1, 1, 1, 65537), np.float32), (1, 65537), return_argmax=1
        )


def test_backward_takes_foreign_positions_in_any_order():
    """PyTorch's indices, and views of positions, mean the same."""
    rng = np.random.default_rng(1)
    x = cases.normals(rng, (2, 5, 9, 8), np.float64)
    options = {"stride": 2, "padding": 1}
    y, argmax = F.max_pool2d(x, 3, return_argmax=True, **options)
    _, indices = F.max_pool2d(x, 3, return_indices=True, **options)
    grad_y = cases.integers(rng, y.shape, np.float64)
    expected = reference.max_pool2d_backward(grad_y, indices, x.shape, 3, **options)
    for positions in (argmax, indices):
        for order in ("channels_last", "negative", "reversed"):
            axes = cases._axes_of(order)
            view = np.array(positions.transpose(axes), order="C")
            view = view.transpose(np.argsort(axes))
            for grad_order in ("contiguous", "channels_last", "gaps"):
                grad_x = frozen(
                    F.max_pool2d_backward,
                    lay_out(grad_y, grad_order),
                    view,
                    x.shape,
                    3,
                    **options,
                )
                np.testing.assert_array_equal(grad_x, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [3, 7, 17])
def test_foreign_positions_without_a_pixel_are_dropped(
    kernel, order, dtype, kernel_set
):
    """Any position in the window is taken, also one in the padding."""
    rng = np.random.default_rng(0)
    x_shape, pad = (2, 18, 19, 20), kernel // 2
    options = {"stride": 1, "padding": pad}
    wide = np.uint8 if kernel < 16 else np.uint16
    argmax = rng.integers(0, kernel**2, x_shape).astype(wide)
    grad_y = cases.integers(rng, x_shape, dtype)
    n, c, i, j = np.indices(x_shape)
    padded = np.zeros((2, 18, 19 + 2 * pad, 20 + 2 * pad))
    np.add.at(padded, (n, c, i + argmax // kernel, j + argmax % kernel), grad_y)
    with machine(kernel_set, 1):
        grad_x = F.max_pool2d_backward(
            lay_out(grad_y, order), argmax, x_shape, kernel, **options
        )
    np.testing.assert_array_equal(grad_x, padded[:, :, pad:-pad, pad:-pad])


def test_indices_need_not_lie_in_their_windows():
    """As in PyTorch, any pixel of the plane may be named, by any number of windows."""
    grad_y = np.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    indices = np.full((1, 1, 2, 2), 15, np.int64)
    grad_x = F.max_pool2d_backward(grad_y, indices, (1, 1, 4, 4), 2)
    assert grad_x[0, 0, 3, 3] == 10
    assert np.count_nonzero(grad_x) == 1


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "floor", "ceil"),
    [  # by the formula of the documentation, by hand
        (5, 2, 2, 0, 2, 3),
        (6, 3, 2, 0, 2, 3),
        (4, 2, 3, 1, 2, 2),  # the third window would start at 5, beyond 4 + 1
        (5, 1, 5, 0, 1, 1),
        (7, 3, 2, 1, 4, 4),
        (8, 3, 2, 1, 4, 5),
        (1, 2, 2, 1, 1, 1),
        (3, 2, 1, 0, 2, 2),
    ],
)
def test_number_of_windows(size, kernel, stride, padding, floor, ceil):
    x = np.zeros((1, 1, size, size), np.float32)
    for operator in (F.max_pool2d, F.avg_pool2d):
        for ceil_mode, windows in ((False, floor), (True, ceil)):
            y = operator(x, kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)
            assert y.shape == (1, 1, windows, windows)


def test_divisors():
    """Ones make the quotient of pixels that are summed and pixels that are counted."""
    x = np.ones((1, 1, 4, 4))
    options = {"stride": 2, "padding": 1, "ceil_mode": True}
    padded = F.avg_pool2d(x, 3, **options)
    # windows start at -1, 1, 3; the last one covers 3, 4 (padding) and overhangs at 5
    per_axis = np.array([2 / 3, 3 / 3, 1 / 2])
    np.testing.assert_allclose(padded[0, 0], np.outer(per_axis, per_axis), rtol=1e-15)
    real = F.avg_pool2d(x, 3, count_include_pad=False, **options)
    np.testing.assert_array_equal(real, np.ones((1, 1, 3, 3)))
    sums = F.avg_pool2d(x, 3, divisor_override=1, **options)
    np.testing.assert_array_equal(sums[0, 0], np.outer([2, 3, 1], [2, 3, 1]))
    both = F.avg_pool2d(x, 3, divisor_override=2, count_include_pad=False, **options)
    np.testing.assert_array_equal(both, sums / 2)


def test_only_windows_that_exist_must_hold_a_pixel():
    """One window of two pixels, four apart, over an image of three: it holds one."""
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    options = {"stride": 1, "padding": ((2, 0), (2, 0)), "dilation": 4}
    y, argmax = F.max_pool2d(x, 2, return_argmax=True, **options)
    assert y.tolist() == [[[[8]]]]
    assert argmax.tolist() == [[[[3]]]]
    grad_x = F.max_pool2d_backward(y, argmax, x.shape, 2, **options)
    assert np.flatnonzero(grad_x).tolist() == [8]


@pytest.mark.parametrize("stride", [2**31, 2**58 + 1])
def test_a_stride_beyond_the_image_costs_nothing(stride):
    """One window: a stride that no other window needs is not counted through."""
    x = np.arange(36.0).reshape(2, 2, 9, 1)
    window = {"kernel_size": (3, 1), "stride": stride}
    y, argmax = F.max_pool2d(x, return_argmax=True, **window)
    np.testing.assert_array_equal(y[..., 0, 0], x[:, :, 2, 0])
    grad_x = F.max_pool2d_backward(y, argmax, x.shape, **window)
    np.testing.assert_array_equal(grad_x[:, :, 2], y[:, :, 0])
    y = F.avg_pool2d(x, **window)
    grad_x = F.avg_pool2d_backward(y, x.shape, **window)
    np.testing.assert_allclose(grad_x[:, :, :3, 0], np.repeat(y[..., 0] / 3, 3, 2))
    assert not grad_x[:, :, 3:].any()
    weight = np.ones((2, 2, 3, 1))
    y = F.conv2d(x, weight, stride=stride)
    assert F.conv2d_backward_input(y, weight, x.shape, stride=stride)[:, :, :3].all()
    assert F.conv2d_backward_weight(y, x, weight.shape, stride=stride).all()


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("k", [1, 3])
def test_results_that_pass_the_caches_by(k, order, kernel_set):
    """32 MB and more in memory in use go another way than in new memory."""
    rng = np.random.default_rng(0)
    x = lay_out(cases.integers(rng, (1, 3, 1700, 1700), "float32"), order)
    options = {"stride": 1, "padding": k // 2}
    with machine(kernel_set, 2):
        y, argmax = F.max_pool2d(x, k, return_argmax=True, **options)
        out = np.full_like(y, np.nan)
        again = F.max_pool2d(x, k, return_argmax=True, out=out, **options)
        assert_same_bits(out, y)
        np.testing.assert_array_equal(again[1], argmax)
        for run, inputs in (
            (F.avg_pool2d, (x,)),
            (F.max_pool2d_backward, (y, argmax, x.shape)),
            (F.avg_pool2d_backward, (y, x.shape)),
        ):
            out[...] = np.nan
            run(*inputs, k, out=out, **options)
            assert_same_bits(out, run(*inputs, k, **options))


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3, 3), (1, 1), (1, 1)), ((4, 3), (2, 2), (1, 1)), ((3, 2), (2, 1), (3, 2))],
)
def test_wide_images(kernel, stride, dilation, order, kernel_set):
    """Rows of a plane are kept for several batches of results."""
    rng = np.random.default_rng(0)
    plain = cases.integers(rng, (1, 2, 40, 601), "float32")
    padded = np.pad(plain, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    windows = windows.reshape(*windows.shape[:4], -1)
    options = {"stride": stride, "padding": 1}
    x = lay_out(plain, order)
    with machine(kernel_set, 1):
        y, argmax = F.max_pool2d(
            x, kernel, dilation=dilation, return_argmax=True, **options
        )
        only = F.max_pool2d(x, kernel, dilation=dilation, **options)
    np.testing.assert_array_equal(y, windows.max(-1))
    np.testing.assert_array_equal(only, y)
    np.testing.assert_array_equal(argmax, windows.argmax(-1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("content", ["integers", "specials"])
@pytest.mark.parametrize(
    "shape",
    [(2, 19, 7, 7), (1, 70, 3, 5), (2, 3, 40, 30), (1, 2, 1, 600), (1, 1, 23, 23)],
)
def test_maxima_of_whole_planes(shape, content, dtype):
    """Small planes are turned, large ones compared lane by lane."""
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, shape).astype(dtype)
    if content == "specials":
        x[rng.random(shape) < 0.02] = np.nan
        x[:, -1] = -np.inf
        x[0, 0] = np.where(x[0, 0] > 0, 0.0, -0.0)
    size = shape[2] + 1, shape[3] + 2  # windows may end beyond the plane
    for k, options in (shape[2:], {}), (size, {"ceil_mode": True}):
        y, indices = reference.max_pool2d(x, k, return_indices=True, **options)
        if y.shape[2:] != (1, 1):
            continue
        _, argmax = reference.max_pool2d(x, k, return_argmax=True, **options)
        for kernel_set in cases.KERNEL_SETS:
            with machine(kernel_set, 1):
                ours, position = F.max_pool2d(x, k, return_argmax=True, **options)
                plain = F.max_pool2d(x, k, **options)
                _, flat = F.max_pool2d(x, k, return_indices=True, **options)
            np.testing.assert_array_equal(position, argmax)
            np.testing.assert_array_equal(flat, indices)
            assert_same_bits(ours, winners(x, indices))
            assert_same_bits(plain, winners(x, indices))
