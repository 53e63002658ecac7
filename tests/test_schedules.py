"""Schedules: the formulas, PyTorch's rates, bad arguments."""

from __future__ import annotations

import math
import warnings

import pytest

from cnn_ext.schedules import (
    Cosine,
    OneCycle,
    Plateau,
    Schedule,
    Step,
    WarmUp,
    rate_factor,
)


def test_steps():
    schedule = Step(3, 0.5)
    assert [schedule.factor(k) for k in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    schedule = Step((2, 3), 0.1)
    expected = [1, 1, 0.1, 0.01, 0.01]
    assert [schedule.factor(k) for k in range(5)] == pytest.approx(expected)


def test_cosine_and_warm_up():
    schedule = Cosine(10, 0.2)
    assert schedule.factor(0) == 1
    assert schedule.factor(5) == pytest.approx(0.6)
    assert schedule.factor(10) == schedule.factor(99) == pytest.approx(0.2)
    rise = WarmUp(4, Cosine(10), start=0.2)
    rates = [rate_factor(rise, k, 0) for k in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == [Cosine(10).factor(k) for k in range(11)]
    assert rate_factor(WarmUp(4), 100, 3) == 1
    by_epoch = WarmUp(4, Step(2, 0.5))
    assert [rate_factor(by_epoch, 5, e) for e in (1, 2, 4)] == [1, 0.5, 0.25]
    assert rate_factor(None, 3, 1) == 1


@pytest.mark.parametrize(
    "ours, theirs, steps",
    [
        (Step(3, 0.5), "StepLR(o, 3, 0.5)", 9),
        (Step([2, 5], 0.3), "MultiStepLR(o, [2, 5], 0.3)", 9),
        (Cosine(20), "CosineAnnealingLR(o, 20)", 20),
        (Cosine(20, 0.1), "CosineAnnealingLR(o, 20, eta_min=0.07)", 20),
        (OneCycle(50), "OneCycleLR(o, 0.7, 50)", 49),
        (OneCycle(37, 0.2, 10, 100), "OneCycleLR(o, 0.7, 37, None, None, 0.2, 'cos', "
         "True, 0.85, 0.95, 10, 100)", 36),
        (WarmUp(6, start=0.25), "LinearLR(o, 0.25, 1.0, 6)", 9),
    ],
    ids=repr,
)  # fmt: skip
def test_against_pytorch(ours, theirs, steps):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.7, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = eval(f"s.{theirs}", {"s": torch.optim.lr_scheduler, "o": optimizer})
        for k in range(steps + 1):
            rate = optimizer.param_groups[0]["lr"]
            assert 0.7 * ours.factor(k) == pytest.approx(rate, rel=1e-9, abs=1e-12), k
            optimizer.step()
            if k < steps:
                scheduler.step()


VALUES = [1.0, 0.5, 0.6, 0.50001, 0.55, 0.4, 0.4, 0.4, 0.4, 0.4, 0.39999, 0.4, 0.1]


def test_plateau_against_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    ours = Plateau(patience=1)
    for value in VALUES:
        ours.after_epoch({"validation_loss": value})
        theirs.step(value)
        assert ours.factor(0) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_remembers():
    ours, again = Plateau(0.5, 1), Plateau(0.5, 1)
    assert again.state_dict() == {"factor": 1.0, "best": None, "waited": 0}
    for i, value in enumerate(VALUES):
        again.load_state_dict(ours.state_dict())
        ours.after_epoch({"validation_loss": value})
        again.after_epoch({"validation_loss": value})
        assert again.state_dict() == ours.state_dict(), i
    inner = Plateau()
    chained = WarmUp(3, inner)
    chained.after_epoch({"validation_loss": 1.0})
    assert chained.state_dict()["best"] == 1.0
    chained.load_state_dict({"factor": 0.5, "best": 0.1, "waited": 2})
    assert rate_factor(chained, 10, 1) == 0.5
    with pytest.raises(ValueError, match="not the state of Plateau"):
        inner.load_state_dict({"factor": "x"})
    with pytest.raises(ValueError, match="remembers nothing"):
        Cosine(3).load_state_dict({"factor": 1.0})


def test_plateau_of_accuracy_and_nan():
    schedule = Plateau(0.5, 0, "validation_accuracy", minimum=0.3)
    factors = []
    for value in (0.5, 0.7, 0.7, math.nan, 0.9, 0.1):
        schedule.after_epoch({"validation_accuracy": value})
        factors.append(schedule.factor(0))
    assert factors == [1, 1, 0.5, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: Step(0), ValueError, "every must be at least 1, got 0"),
        (lambda: Step([3, 2]), ValueError, "every must rise"),
        (lambda: Step(3, 0), ValueError, "gamma must be above 0"),
        (lambda: Step(3, per="batch"), ValueError, "'step' or 'epoch', got 'batch'"),
        (lambda: Cosine(0), ValueError, "length must be at least 1"),
        (lambda: Cosine(3, 2), ValueError, "minimum must be at least 0 and at most 1"),
        (lambda: OneCycle(1), ValueError, "length must be at least 2"),
        (lambda: OneCycle(9, 0), ValueError, "rise must be above 0"),
        (lambda: WarmUp(3, 0.1), TypeError, "then must be a Schedule, got float"),
        (lambda: WarmUp(3, WarmUp(3)), TypeError, "another kind of schedule"),
        (lambda: WarmUp(3, start=0), ValueError, "start must be above 0"),
        (lambda: Plateau(1.0), ValueError, "gamma must be below 1"),
        (lambda: Plateau(monitor="loss"), ValueError, "must be one of train_loss"),
        (lambda: Plateau().after_epoch({}), ValueError, "give validation data"),
        (lambda: Schedule(), TypeError, "abstract"),
    ],
)
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_repr():
    assert repr(Step(3)) == "Step(every=3, gamma=0.1, per='epoch')"
