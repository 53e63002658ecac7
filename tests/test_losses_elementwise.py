"""Huber and binary cross-entropy: the formulas, PyTorch's values, gradients, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnn_ext.gradcheck import gradcheck
from cnn_ext.losses import BCEWithLogits, Huber

CASES = pytest.mark.parametrize(
    "loss, theirs",
    [
        (Huber(), "HuberLoss()"),
        (Huber(0.3, "sum"), "HuberLoss(delta=0.3, reduction='sum')"),
        (Huber(2, "none"), "HuberLoss(delta=2., reduction='none')"),
        (BCEWithLogits(), "BCEWithLogitsLoss()"),
        (BCEWithLogits(reduction="none"), "BCEWithLogitsLoss(reduction='none')"),
        (BCEWithLogits(2.5, "sum"), "BCEWithLogitsLoss(None, None, None, 'sum', "
         "torch.tensor(2.5))"),
        (BCEWithLogits([0.5, 2, 0]), "BCEWithLogitsLoss(pos_weight=torch.tensor("
         "[0.5, 2, 0]))"),
    ],
    ids=repr,
)  # fmt: skip


def _data(dtype=np.float64):
    rng = np.random.default_rng(0)
    y, target = 3 * rng.standard_normal((5, 3)), rng.random((5, 3))
    target[0], target[1] = 0, 1
    y[2, 0] = target[2, 0] + 0.3
    return y.astype(dtype), target.astype(dtype)


@CASES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_pytorch(loss, theirs, dtype):
    torch = pytest.importorskip("torch")
    y, target = _data(dtype)
    other = eval(f"torch.nn.{theirs}", {"torch": torch})
    ty = torch.from_numpy(y.copy()).requires_grad_()
    expected = other(ty, torch.from_numpy(target))
    expected.sum().backward()
    value, grad_y = loss(y, target)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    close = {"rtol": tolerance, "atol": tolerance / 10}
    np.testing.assert_allclose(value, expected.detach().numpy(), **close)
    np.testing.assert_allclose(grad_y, ty.grad.numpy(), **close)
    assert grad_y.dtype == dtype


@CASES
def test_gradients_and_nothing_is_changed(loss, theirs):
    y, target = _data()
    y[2, 0] += 0.05  # away from the corner of the second derivative
    kept = y.copy(), target.copy()

    def value(y):
        return np.asarray(np.sum(loss(y, target)[0]))[np.newaxis]

    def vjp(grad, y):
        return grad[0] * loss(y, target)[1]

    gradcheck(value, y, vjp=vjp)
    np.testing.assert_array_equal(y, kept[0])
    np.testing.assert_array_equal(target, kept[1])


@pytest.mark.parametrize("loss", [BCEWithLogits(), BCEWithLogits(3.0)])
def test_large_logits_do_not_overflow(loss):
    weight = 1 if loss.pos_weight is None else 3
    y = np.array([[1e4, -1e4, 1e4, -1e4]], np.float32)
    target = np.array([[1, 0, 0, 1]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        value, grad_y = loss(y, target)
    assert value == pytest.approx((1e4 + weight * 1e4) / 4)
    np.testing.assert_allclose(grad_y * 4, [[0, 0, 1, -weight]])


@pytest.mark.parametrize("loss", [Huber(), BCEWithLogits()])
def test_labels_stand_for_codes(loss):
    y, _ = _data()
    labels = np.array([0, 2, 1, 1, 0])
    by_labels, by_codes = loss(y, labels), loss(y, np.eye(3)[labels])
    assert by_labels[0] == by_codes[0]
    np.testing.assert_array_equal(by_labels[1], by_codes[1])
    assert loss.divisor(y.shape, labels) == 15
    value, grad_y = loss(y[:0], labels[:0])
    assert math.isnan(value) and grad_y.shape == (0, 3)


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: Huber(0), ValueError, "delta must be above 0 and finite, got 0"),
        (lambda: Huber(reduction="batch"), ValueError, "reduction must be one of mean"),
        (lambda: BCEWithLogits(-1), ValueError, "pos_weight must be finite and not"),
        (lambda: BCEWithLogits()(_data()[0], _data()[1] + 1), ValueError, "in 0..1"),
        (lambda: BCEWithLogits([1, 2])(*_data()), ValueError, r"broadcast to the outp"),
        (lambda: Huber()(_data()[0], _data()[1][:2]), ValueError, "target has shape"),
        (lambda: Huber()(_data(np.float32)[0], _data()[1]), TypeError, "target is flo"),
        (lambda: Huber()(_data()[0], np.arange(5) + 1), ValueError, "out of range"),
    ],
)
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
