"""Losses: formulas, gradients, agreement with PyTorch, labels that cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnn_ext.gradcheck import gradcheck
from cnn_ext.losses import CrossEntropy, SquaredError

Y = np.random.default_rng(0).standard_normal((5, 4))
LABELS = np.array([0, 3, 1, 1, 2])
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])

CROSS_ENTROPIES = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weight": WEIGHT},
    {"weight": WEIGHT, "reduction": "sum"},
    {"weight": WEIGHT, "label_smoothing": 0.3},
    {"ignore_index": 1},
    {"ignore_index": 1, "weight": WEIGHT, "label_smoothing": 0.2},
    {"ignore_index": 1, "label_smoothing": 0.2, "reduction": "sum"},
]


def _gradcheck(loss, y, target):
    def through(value):
        result, grad = loss(value, target)
        return np.asarray(result), lambda g: grad * g

    gradcheck(through, y)


@pytest.mark.parametrize("options", CROSS_ENTROPIES, ids=str)
def test_cross_entropy_gradient(options):
    _gradcheck(CrossEntropy(**options), Y, LABELS)


@pytest.mark.parametrize("options", [*CROSS_ENTROPIES, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_against_pytorch(options, spatial, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    y = rng.normal(0, 3, (6, 4, 2, 3) if spatial else (6, 4)).astype(dtype)
    labels = rng.integers(0, 4, (6, 2, 3) if spatial else 6)
    value, grad = CrossEntropy(**options)(y, labels)
    ty = torch.from_numpy(y.copy()).requires_grad_()
    keywords = dict(options)
    if "weight" in keywords:
        keywords["weight"] = torch.from_numpy(WEIGHT.astype(dtype))
    expected = torch.nn.functional.cross_entropy(
        ty, torch.from_numpy(labels), **keywords
    )
    expected.sum().backward()
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(
        value, expected.detach().numpy(), rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(grad, ty.grad.numpy(), rtol=tolerance, atol=tolerance)
    assert grad.dtype == dtype


def test_cross_entropy_by_hand():
    value, grad = CrossEntropy()(np.zeros((2, 4), np.float32), np.array([0, 3]))
    assert value == pytest.approx(math.log(4), rel=1e-6)
    assert isinstance(value, float)
    np.testing.assert_allclose(
        grad, [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]]
    )


def test_cross_entropy_is_stable():
    y = np.array([[1e4, 0, -1e4], [-1e4, 1e4, 0]], dtype=np.float32)
    value, grad = CrossEntropy()(y, np.array([0, 0]))
    assert value == pytest.approx(1e4)
    np.testing.assert_allclose(grad, [[0, 0, 0], [-0.5, 0.5, 0]], atol=1e-30)
    value, grad = CrossEntropy()(np.array([[-np.inf, 0.0, 0.0]]), np.array([1]))
    assert value == pytest.approx(math.log(2))
    np.testing.assert_allclose(grad, [[0, -0.5, 0.5]])
    for bad in (np.nan, np.inf):
        value, _ = CrossEntropy()(np.array([[bad, 0.0, 0.0]]), np.array([1]))
        assert math.isnan(value)


def test_ignored_samples_do_not_matter_even_with_nan():
    y = Y.copy()
    labels = LABELS.copy()
    labels[1] = -100
    for options in ({}, {"label_smoothing": 0.1}, {"weight": WEIGHT}):
        expected, grad = CrossEntropy(**options)(y[[0, 2, 3, 4]], labels[[0, 2, 3, 4]])
        y[1] = np.nan
        value, grad_y = CrossEntropy(**options)(y, labels)
        assert value == pytest.approx(expected, rel=1e-14)
        np.testing.assert_array_equal(grad_y[1], 0)
        np.testing.assert_allclose(grad_y[[0, 2, 3, 4]], grad, rtol=1e-14)


def test_mean_over_nothing():
    for y, labels in ((Y, np.full(5, -100)), (Y[:0], LABELS[:0])):
        value, grad = CrossEntropy()(y, labels)
        assert math.isnan(value)
        np.testing.assert_array_equal(grad, np.zeros_like(y))
    value, grad = SquaredError()(Y[:0], Y[:0])
    assert math.isnan(value)
    assert grad.shape == (0, 4)


def test_batches_combine_by_their_divisors():
    for loss in (
        CrossEntropy(weight=WEIGHT, ignore_index=1),
        CrossEntropy(label_smoothing=0.1),
        SquaredError(),
        SquaredError("mean"),
    ):
        whole, _ = loss(Y, LABELS)
        parts = [(Y[:2], LABELS[:2]), (Y[2:], LABELS[2:])]
        sums = [loss(y, t)[0] * loss.divisor(y.shape, t) for y, t in parts]
        total = sum(loss.divisor(y.shape, t) for y, t in parts)
        assert sum(sums) / total == pytest.approx(whole, rel=1e-13)


# -- squared error -------------------------------------------------------------------


def test_squared_error_by_hand():
    y, t = np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([[0.0, 2.0], [3.0, 4.0]])
    value, grad = SquaredError()(y, t)
    assert value == 0.5 * (1 + 9) / 2
    np.testing.assert_array_equal(grad, (y - t) / 2)
    assert SquaredError("mean")(y, t)[0] == 0.5 * 10 / 4
    assert SquaredError("sum")(y, t)[0] == 5
    np.testing.assert_array_equal(SquaredError("none")(y, t)[0], 0.5 * (y - t) ** 2)


@pytest.mark.parametrize("reduction", ["batch", "mean", "sum", "none"])
def test_squared_error_against_pytorch(reduction):
    torch = pytest.importorskip("torch")
    t = np.random.default_rng(2).standard_normal(Y.shape)
    value, grad = SquaredError(reduction)(Y, t)
    ty = torch.from_numpy(Y.copy()).requires_grad_()
    expected = 0.5 * torch.nn.functional.mse_loss(
        ty, torch.from_numpy(t), reduction="sum" if reduction == "batch" else reduction
    )
    if reduction == "batch":
        expected = expected / len(Y)
    expected.sum().backward()
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(grad, ty.grad.numpy(), rtol=1e-14)


def test_squared_error_codes_labels():
    loss = SquaredError(on=1, off=-1)
    codes = np.full(Y.shape, -1.0)
    codes[np.arange(5), LABELS] = 1
    for a, b in zip(loss(Y, LABELS), loss(Y, codes), strict=True):
        np.testing.assert_array_equal(a, b)
    _gradcheck(loss, Y, LABELS)


def test_inputs_are_not_changed():
    for loss, target in (
        (CrossEntropy(label_smoothing=0.1), LABELS),
        (SquaredError(), LABELS),
        (SquaredError(), np.ones_like(Y)),
    ):
        y, t = Y.copy(), target.copy()
        y.flags.writeable = t.flags.writeable = False
        loss(y, t)
        np.testing.assert_array_equal(y, Y)


def test_narrow_and_unsigned_labels():
    expected = CrossEntropy()(Y, LABELS)[0]
    for dtype in (np.uint8, np.int8, np.uint64, np.int32):
        assert CrossEntropy()(Y, LABELS.astype(dtype))[0] == expected


def test_repr():
    assert repr(SquaredError()) == "SquaredError(reduction='batch', on=1.0, off=0.0)"


# -- bad targets ---------------------------------------------------------------------

BAD = [
    (lambda: CrossEntropy(reduction="avg"), ValueError, "one of mean, sum, none, got"),
    (lambda: CrossEntropy(label_smoothing=1.5), ValueError, "lie in 0..1, got 1.5"),
    (
        lambda: CrossEntropy(label_smoothing=math.nan),
        ValueError,
        "lie in 0..1, got nan",
    ),
    (lambda: CrossEntropy(weight=[1, -1]), ValueError, "non-negative number a class"),
    (lambda: CrossEntropy(weight=[[1.0]]), ValueError, "non-negative number a class"),
    (lambda: CrossEntropy(weight=[1.0])(Y, LABELS), ValueError, "weight has 1 classes"),
    (lambda: CrossEntropy()(Y, LABELS + 1), ValueError, "label 4 at index 1 is out of"),
    (lambda: CrossEntropy()(Y, LABELS - 1), ValueError, r"label -1 at index 0.*0\.\.3"),
    (
        lambda: CrossEntropy()(Y, np.where(LABELS == 2, np.nan, LABELS)),
        ValueError,
        "labels contain NaN, first at index 4",
    ),
    (
        lambda: CrossEntropy()(Y, LABELS.astype(float)),
        TypeError,
        r"labels must be integers, got float64; convert with labels.astype",
    ),
    (lambda: CrossEntropy()(Y, LABELS > 1), TypeError, "integers, got bool"),
    (lambda: CrossEntropy()(Y, LABELS.astype(str)), TypeError, "integers, got <U"),
    (lambda: CrossEntropy()(Y, LABELS.tolist()), TypeError, "numpy array, got list"),
    (lambda: CrossEntropy()(Y, LABELS[:4]), ValueError, r"shape \(5,\), got \(4,\)"),
    (
        lambda: CrossEntropy()(Y, np.eye(4, dtype=int)[LABELS]),
        ValueError,
        "not one-hot: labels.argmax",
    ),
    (
        lambda: CrossEntropy()(np.zeros((2, 3, 2, 2)), np.full((2, 2, 2), 7)),
        ValueError,
        r"label 7 at index \(0, 0, 0\) is out of range",
    ),
    (lambda: CrossEntropy()(Y[0], LABELS), ValueError, r"must have shape \(N, classes"),
    (lambda: CrossEntropy()(Y.astype(int), LABELS), TypeError, "array, got int64"),
    (lambda: CrossEntropy()(Y.tolist(), LABELS), TypeError, "array, got list"),
    (lambda: SquaredError("all"), ValueError, "one of batch, mean, sum, none"),
    (lambda: SquaredError()(Y, Y[:, :3]), ValueError, r"target has shape \(5, 3\)"),
    (lambda: SquaredError()(Y, Y.astype(np.float32)), TypeError, "target is float32"),
    (
        lambda: SquaredError()(Y, Y.astype(int)),
        TypeError,
        "must be float, like the out",
    ),
    (lambda: SquaredError()(Y, Y.tolist()), TypeError, "numpy array, got list"),
    (lambda: SquaredError()(Y, Y * np.nan), ValueError, "target contains nan at index"),
    (lambda: SquaredError()(Y, LABELS + 2), ValueError, "label 5 at index 1 is out"),
    (lambda: SquaredError()(np.float64(1), Y), TypeError, "float32 or float64 array"),
    (lambda: SquaredError()(np.array(1.0), Y), ValueError, "must have a batch axis"),
]


@pytest.mark.parametrize("make, kind, message", BAD)
def test_bad_targets(make, kind, message):
    with pytest.raises(kind, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
