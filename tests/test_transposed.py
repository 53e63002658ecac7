"""conv_transpose2d and its backwards agree with the definition and with PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import ORDERS, integers, lay_out, machine
from checks import assert_equal, assert_near, frozen, rounding_bound, torch

from cnn_ext import functional as F
from cnn_ext import reference
from cnn_ext._geometry import TransposedGeometry


class Case(NamedTuple):
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any]

    @property
    def y_shape(self) -> tuple[int, ...]:
        return TransposedGeometry.of(
            self.x_shape, self.weight_shape, **self.options
        ).y_shape


CASES = {
    "plain": Case((2, 3, 5, 4), (3, 2, 3, 3), {}),
    "stride": Case((2, 3, 5, 4), (3, 2, 3, 3), {"stride": (2, 3)}),
    "stride beyond the filter": Case((1, 2, 3, 4), (2, 3, 2, 2), {"stride": 3}),
    "padding": Case((2, 3, 5, 6), (3, 4, 3, 5), {"padding": (1, 2)}),
    "four paddings": Case((2, 3, 5, 6), (3, 4, 3, 5), {"padding": ((0, 2), (3, 1))}),
    "dilation": Case((2, 3, 5, 6), (3, 4, 3, 2), {"dilation": (2, 3), "padding": 1}),
    "output_padding that takes back": Case(
        (2, 3, 5, 6),
        (3, 4, 3, 3),
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    "output_padding beyond": Case(
        (2, 3, 4, 4), (3, 4, 2, 2), {"stride": 3, "output_padding": (2, 1)}
    ),
    "half taken back": Case(
        (1, 2, 4, 5),
        (2, 2, 3, 3),
        {"stride": (3, 4), "padding": ((0, 1), (2, 0)), "output_padding": (2, 3)},
    ),
    "groups": Case((2, 6, 5, 4), (6, 2, 3, 3), {"groups": 3, "stride": 2}),
    "depthwise": Case((2, 5, 6, 4), (5, 1, 4, 4), {"groups": 5, "padding": 1}),
    "many channels": Case((2, 32, 9, 8), (32, 24, 3, 3), {"padding": 1}),
    "empty batch": Case((0, 3, 5, 4), (3, 2, 3, 3), {"stride": 2}),
}


def arrays(case: Case, dtype: str, draw: Any = integers) -> tuple[np.ndarray, ...]:
    """x, weight, bias and grad_y."""
    rng = np.random.default_rng(0)
    y_shape = case.y_shape
    shapes = case.x_shape, case.weight_shape, y_shape[1:2], y_shape
    return tuple(draw(rng, shape, dtype) for shape in shapes)


def passes(operators: Any, case: Case, x: Any, weight: Any, bias: Any, grad_y: Any):
    o = case.options
    return (
        frozen(operators.conv_transpose2d, x, weight, bias, **o),
        frozen(operators.conv_transpose2d_backward_input, grad_y, weight, x.shape, **o),
        frozen(
            operators.conv_transpose2d_backward_weight, grad_y, x, weight.shape, **o
        ),
        frozen(operators.conv_transpose2d_backward_bias, grad_y),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_whole_numbers_are_exact(name, dtype, kernel_set):
    case = CASES[name]
    plain = arrays(case, dtype)
    expected = passes(reference, case, *plain)
    with machine(kernel_set, strict=True):
        actual = passes(F, case, *plain)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_equal(ours, theirs, dtype)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["half taken back", "groups", "many channels"])
def test_any_memory_order(name, order):
    case = CASES[name]
    x, weight, bias, grad_y = arrays(case, "float32")
    expected = passes(reference, case, x, weight, bias, grad_y)
    with machine(strict=True):
        actual = passes(
            F, case, lay_out(x, order), lay_out(weight, order), bias,
            lay_out(grad_y, order),
        )  # fmt: skip
    for ours, theirs in zip(actual, expected, strict=True):
        assert_equal(ours, theirs, "float32")
    if order in ("contiguous", "channels_last"):
        axes = (0, 2, 3, 1) if order == "channels_last" else (0, 1, 2, 3)
        assert actual[0].transpose(axes).flags.c_contiguous


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_within_rounding(name):
    case = CASES[name]
    plain = arrays(case, "float32", lambda rng, shape, d: rng.standard_normal(shape, d))
    expected = passes(reference, case, *plain)
    magnitudes = passes(reference, case, *map(np.abs, plain))
    terms = np.prod(case.weight_shape), np.prod(case.weight_shape)
    pixels = np.prod(case.y_shape)
    for i, ours in enumerate(passes(F, case, *plain)):
        # minimal filtering adds and subtracts neighbours, whose error spreads
        magnitude = 8 * magnitudes[i].max(initial=0.0)
        bound = rounding_bound((*terms, pixels, pixels)[i], magnitude, "float32")
        assert_near(ours, expected[i], bound)


@pytest.mark.skipif(torch is None, reason="torch is not installed")
@pytest.mark.parametrize("name", sorted(set(CASES) - {"empty batch"}))
def test_the_definition_is_pytorchs(name):
    case = CASES[name]
    conv = TransposedGeometry.of(case.x_shape, case.weight_shape, **case.options).conv
    x, weight, bias, grad_y = (
        torch.from_numpy(a).requires_grad_(i < 3)
        for i, a in enumerate(arrays(case, "float64"))
    )
    options = case.options
    # PyTorch pads both sides alike and takes no more back: cut its whole result
    y = torch.nn.functional.conv_transpose2d(
        x,
        weight,
        stride=(conv.stride_h, conv.stride_w),
        dilation=(conv.dilation_h, conv.dilation_w),
        groups=conv.groups,
    )
    height, width = case.y_shape[2:]
    y = torch.nn.functional.pad(y, (0, width, 0, height))  # more than is needed
    y = y[:, :, conv.top : conv.top + height, conv.left : conv.left + width]
    y = y + bias[:, None, None]
    y.backward(grad_y)
    plain = (a.detach().numpy() for a in (x, weight, bias, grad_y))
    expected = passes(reference, case, *plain)
    for ours, theirs in zip(expected, (y, x.grad, weight.grad, bias.grad), strict=True):
        np.testing.assert_array_equal(ours, theirs.detach().numpy())
    if isinstance(options.get("padding", 0), int) and "output_padding" in options:
        theirs = torch.nn.functional.conv_transpose2d(x, weight, bias, **options)
        np.testing.assert_array_equal(expected[0], theirs.detach().numpy())


@pytest.mark.parametrize("operators", [F, reference])
def test_one_image_and_adjoint(operators):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 5, 4)), rng.standard_normal((3, 2, 3, 3))
    bias = np.array([1.0, 2.0])
    options = {"stride": 2, "padding": 1, "output_padding": 1}
    y = operators.conv_transpose2d(x, weight, bias, **options)
    assert y.shape == (2, 10, 8)
    batch = operators.conv_transpose2d(x[np.newaxis], weight, bias, **options)
    np.testing.assert_array_equal(batch[0], y)
    g = rng.standard_normal(y.shape)
    plain = operators.conv_transpose2d(x, weight, **options)
    grad_x = operators.conv_transpose2d_backward_input(g, weight, x.shape, **options)
    grad_weight = operators.conv_transpose2d_backward_weight(
        g, x, weight.shape, **options
    )
    assert (plain * g).sum() == pytest.approx((x * grad_x).sum(), rel=1e-12)
    assert (plain * g).sum() == pytest.approx((weight * grad_weight).sum(), rel=1e-12)


def test_by_hand():
    x, weight = np.array([[[1.0, 2.0]]]), np.array([[[[1.0, 10, 100]]]])
    for operators in (F, reference):
        y = operators.conv_transpose2d(x, weight, np.array([0.5]), stride=(1, 2))
        assert y.tolist() == [[[1.5, 10.5, 102.5, 20.5, 200.5]]]


ONES = np.ones((2, 3, 4, 4), np.float32)
BAD = {
    "dtype": (
        lambda: F.conv_transpose2d(ONES, np.ones((3, 1, 2, 2))),
        TypeError,
        "weight is float64 but x is float32",
    ),
    "channels": (
        lambda: F.conv_transpose2d_backward_input(
            ONES, ONES[:, :, :2, :2], (2, 3, 9, 9)
        ),
        ValueError,
        "weight has 2 input channels, x has 3",
    ),
    "shape of grad_y": (
        lambda: F.conv_transpose2d_backward_weight(ONES, ONES, (3, 3, 2, 2)),
        ValueError,
        r"grad_y must have shape \(2, 3, 5, 5\), got \(2, 3, 4, 4\)",
    ),
    "axes of x_shape": (
        lambda: F.conv_transpose2d_backward_input(ONES, ONES, (3, 4, 4)),
        ValueError,
        "x_shape must have 4 axes",
    ),
    "batch and single image": (
        lambda: F.conv_transpose2d_backward_weight(ONES[0], ONES[:1], (3, 3, 1, 1)),
        ValueError,
        "both be batches or both single images",
    ),
    "bias": (
        lambda: F.conv_transpose2d(ONES, ONES[:1].reshape(3, 1, 4, 4), ONES[0, 0, 0]),
        ValueError,
        "bias has 4 values, y has 1 channels",
    ),
    "text": (
        lambda: F.conv_transpose2d(ONES, ONES[0][:, None], padding="same"),
        ValueError,
        "padding of a transposed convolution must be an int",
    ),
    "size": (
        lambda: F.conv_transpose2d(ONES, ONES[0][:, None], stride=2**57),
        ValueError,
        "the output is too large",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_lists_are_sizes_too():
    y = F.conv_transpose2d(ONES, ONES[0][:, None], stride=[2, 2], padding=[[1, 0], 1])
    np.testing.assert_array_equal(
        y,
        F.conv_transpose2d(ONES, ONES[0][:, None], stride=2, padding=((1, 0), (1, 1))),
    )
