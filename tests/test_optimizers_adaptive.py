"""Adam, AdamW, RMSprop, clipping, rates of single layers: PyTorch's steps, state."""

from __future__ import annotations

import gc
import math
import tracemalloc

import numpy as np
import pytest

from cnn_ext.clipping import clip_grad_norm, clip_grad_value
from cnn_ext.layers import Linear, Parameter, ReLU
from cnn_ext.optimizers import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
)
from cnn_ext.sequential import Sequential

KINDS = {"Adam": Adam, "AdamW": AdamW, "RMSprop": RMSprop}
CASES = pytest.mark.parametrize(
    "kind, options",
    [
        ("Adam", {}),
        ("Adam", {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3}),
        ("Adam", {"betas": (0.0, 0.9), "weight_decay": 0.1}),
        ("AdamW", {}),
        ("AdamW", {"lr": 0.1, "weight_decay": 0.3}),
        ("RMSprop", {}),
        ("RMSprop", {"alpha": 0.5, "eps": 0.1, "weight_decay": 0.2}),
        ("RMSprop", {"momentum": 0.9}),
        ("RMSprop", {"centered": True}),
        ("RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
    ],
    ids=str,
)


def _parameters(dtype):
    rng = np.random.default_rng(0)
    return [Parameter(rng.standard_normal(s).astype(dtype)) for s in ((3, 4), (4,), ())]


@CASES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_pytorch(kind, options, dtype):
    torch = pytest.importorskip("torch")
    ours, optimizer = _parameters(dtype), KINDS[kind](**options)
    theirs = [torch.from_numpy(np.array(p.value)).requires_grad_() for p in ours]
    other = getattr(torch.optim, kind)(theirs, **options)
    values = [p.value for p in ours]
    for step in range(6):
        rng = np.random.default_rng(step)
        for p, t in zip(ours, theirs, strict=True):
            p.grad = np.asarray(rng.standard_normal(p.shape).astype(dtype))
            t.grad = torch.from_numpy(p.grad.copy())
            p.grad.flags.writeable = False
        optimizer.step(ours)
        other.step()
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for p, t, value in zip(ours, theirs, values, strict=True):
        assert p.value is value
        np.testing.assert_allclose(p.value, t.detach().numpy(), rtol=tolerance)


@CASES
def test_nothing_is_allocated_after_the_first_step(kind, options):
    parameter = Parameter(np.zeros((256, 256), np.float32))
    parameter.grad = np.ones((256, 256), np.float32)
    optimizer = KINDS[kind](**options)
    optimizer.step([parameter])
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(3):
            optimizer.step([parameter])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < parameter.value.nbytes / 4


def _model():
    return Sequential(Linear(3, 2, seed=0), ReLU(), Linear(2, 2, name="last", seed=1))


def _run(model, optimizer, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        for parameter in model.parameters():
            parameter.grad = rng.standard_normal(parameter.shape).astype(np.float32)
        optimizer.step(model.parameters())


@CASES
def test_state_goes_on_bit_for_bit(kind, options):
    model, optimizer = _model(), KINDS[kind](**options)
    _run(model, optimizer, range(3))
    twin, other = model.copy(), KINDS[kind](**options)
    state = optimizer.state_dict(model)
    other.load_state_dict(twin, state)
    for array in state.values():
        array.fill(-1)  # both keep copies
    _run(model, optimizer, range(3, 6))
    _run(twin, other, range(3, 6))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.value.tobytes() == q.value.tobytes()
    other.load_state_dict(twin, {})
    assert other.state_dict(twin) == {}


def test_names_of_the_state():
    model, optimizer = _model(), Adam()
    assert optimizer.state_dict(model) == {}
    _run(model, optimizer, range(2))
    state = optimizer.state_dict(model)
    assert list(state)[:3] == ["0.weight/first", "0.weight/second", "0.weight/steps"]
    assert state["0.weight/steps"] == 2
    before = model.parameters()[0].value.copy()
    for bad, message in (
        ({"0.weight/first": state["0.weight/first"]}, "'0.weight/second' is missing"),
        (state | {"0.weight": before}, "state has '0.weight', the model has no such"),
        (state | {"0.weight/steps": np.zeros(2)}, "'0.weight/steps' is float64"),
        (state | {"0.weight/first": np.zeros((2, 3))}, "is float64 of shape"),
        (state | {"0.weight/steps": np.array(-3)}, "'0.weight/steps' is -3, no count"),
        (state | {"0.weight/steps": np.array(2**63 - 1)}, "is 9223372036854775807"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(model, bad)
    assert optimizer.state_dict(model).keys() == state.keys()


def test_layers_may_have_rates_of_their_own():
    model, plain = _model(), _model()
    assert model.set_lr_scale({"0": 0.0, "last.bias": 3.0, "last": 2.0}) is model
    _run(model, SGD(0.1), range(1))
    _run(plain, SGD(0.1), range(1))
    start = dict(_model().named_parameters())
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        scale = {"last.weight": 2, "last.bias": 3}.get(name, 0)
        moved, as_usual = p.value - start[name].value, q.value - start[name].value
        np.testing.assert_allclose(moved, scale * as_usual, rtol=1e-4, atol=1e-7)
    assert model.copy().parameters()[-1].lr_scale == 3
    for scales, kind, message in (
        ({"1": 2.0}, ValueError, "no layer with parameters and no parameter '1'"),
        ({"last": -1.0}, ValueError, "scale of 'last' must be at least 0"),
        ({"0": 9.0, "last": "x"}, TypeError, "scale of 'last' must be a number"),
    ):
        with pytest.raises(kind, match=message):
            model.set_lr_scale(scales)
    assert model.parameters()[0].lr_scale == 0


def test_clipping_the_norm():
    torch = pytest.importorskip("torch")
    for limit in (0.5, 100.0):
        ours = _parameters(np.float32)
        for p in ours:
            p.grad = p.value.copy()
        theirs = [torch.from_numpy(p.grad.copy()).requires_grad_() for p in ours]
        for t in theirs:
            t.grad = t.detach().clone()
        norm = clip_grad_norm(ours, limit)
        expected = torch.nn.utils.clip_grad_norm_(theirs, limit)
        assert norm == pytest.approx(float(expected), rel=1e-6)
        for p, t in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.grad, t.grad.numpy(), rtol=1e-5)


def test_clipping():
    first, second, none = (Parameter(np.zeros(3)) for _ in range(3))
    shared = np.array([3.0, 0.0, -4.0])
    shared_view = first.grad = shared
    second.grad = shared  # one array for two: shortened once
    assert clip_grad_norm([first, second, none], 1.0) == pytest.approx(5)
    assert np.linalg.norm(shared_view) == pytest.approx(1, rel=1e-5)
    fixed = np.array([2.0, -3.0, 0.5])
    fixed.flags.writeable = False
    first.grad = fixed
    clip_grad_value([first], 1)
    np.testing.assert_array_equal(first.grad, [1, -1, 0.5])
    np.testing.assert_array_equal(fixed, [2, -3, 0.5])
    first.grad = np.array([np.nan, 1.0, 1.0])
    assert math.isnan(clip_grad_norm([first], 1.0))
    assert first.grad[1] == 1
    for clip, name in ((clip_grad_norm, "max_norm"), (clip_grad_value, "limit")):
        for bad in (0, -1, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be above 0 and finite"):
                clip([first], bad)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Adam(0), "lr must be above 0"),
        (lambda: Adam(betas=(0.9, 1.0)), r"betas\[1\] must be in 0 <= b < 1, got 1.0"),
        (lambda: Adam(betas=0.9), "betas must be two numbers"),
        (lambda: Adam(eps=-1), "eps must not be negative"),
        (lambda: AdamW(weight_decay=-1), "weight_decay must not be negative"),
        (lambda: RMSprop(alpha=2), "alpha must be in 0 <= a <= 1, got 2"),
        (lambda: RMSprop(eps=math.nan), "eps must not be negative"),
        (lambda: RMSprop(momentum=1), "momentum must be in 0 <= m < 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_repr():
    assert repr(AdamW()) == (
        "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)"
    )
