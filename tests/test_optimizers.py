"""SGD: the formulas, PyTorch's steps, state, no allocation."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from cnn_ext.layers import Linear, Parameter, ReLU
from cnn_ext.optimizers import SGD, Adam, RMSprop
from cnn_ext.sequential import Sequential

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]


def _parameters(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal(s).astype(dtype)) for s in ((3, 4), (4,), ())]


def _gradients(step, dtype=np.float64):
    rng = np.random.default_rng(100 + step)
    return [rng.standard_normal(s).astype(dtype) for s in ((3, 4), (4,), ())]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_formulas(options):
    momentum, decay = options.get("momentum", 0), options.get("weight_decay", 0)
    parameters, optimizer = _parameters(), SGD(0.1, **options)
    expected = [p.value.copy() for p in parameters]
    velocity = [None] * 3
    for step in range(4):
        for i, gradient in enumerate(_gradients(step)):
            parameters[i].grad = gradient
            g = gradient + decay * expected[i]
            v = velocity[i]
            velocity[i] = v = g if v is None else momentum * v + g
            expected[i] = expected[i] - 0.1 * (
                g + momentum * v if options.get("nesterov") else v if momentum else g
            )
        optimizer.step(parameters)
        for parameter, value in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.value, value, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_pytorch(options, dtype):
    torch = pytest.importorskip("torch")
    ours, optimizer = _parameters(dtype=dtype), SGD(0.05, **options)
    theirs = [torch.from_numpy(np.array(p.value)).requires_grad_() for p in ours]
    other = torch.optim.SGD(theirs, lr=0.05, **options)
    for step in range(5):
        for p, t, g in zip(ours, theirs, _gradients(step, dtype), strict=True):
            p.grad, t.grad = g, torch.from_numpy(np.array(g))
        optimizer.step(ours)
        other.step()
    for p, t in zip(ours, theirs, strict=True):
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(p.value, t.detach().numpy(), rtol=tolerance)
        assert p.value.dtype == dtype


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_change_in_place_and_gradients_do_not(options):
    parameters, optimizer = _parameters(), SGD(0.1, **options)
    values = [p.value for p in parameters]
    for step in range(2):
        gradients = _gradients(step)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
            gradient.flags.writeable = False
        optimizer.step(parameters)
    for parameter, value in zip(parameters, values, strict=True):
        assert parameter.value is value


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_is_allocated_after_the_first_step(options):
    parameter = Parameter(np.zeros((256, 256), np.float32))
    parameter.grad = np.ones((256, 256), np.float32)
    optimizer = SGD(0.1, **options)
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


def test_lr_may_change():
    parameter, optimizer = Parameter(np.zeros(1)), SGD(1.0)
    parameter.grad = np.ones(1)
    optimizer.step([parameter])
    optimizer.lr = 0.5
    optimizer.step([parameter])
    assert parameter.value[0] == -1.5


def test_velocities_belong_to_parameters():
    optimizer = SGD(0.1, momentum=0.9)
    results = []
    for _ in range(2):  # a second model starts anew
        parameters = _parameters()
        for step in range(2):
            for parameter, gradient in zip(parameters, _gradients(step), strict=True):
                parameter.grad = gradient
            optimizer.step(parameters)
        results.append([p.value for p in parameters])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def _model():
    return Sequential(Linear(3, 2, seed=0), ReLU(), Linear(2, 2, name="last", seed=1))


def _run(model, optimizer, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        for parameter in model.parameters():
            parameter.grad = rng.standard_normal(parameter.shape).astype(np.float32)
        optimizer.step(model.parameters())


def test_state_goes_on_bit_for_bit():
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    model, optimizer = _model(), SGD(0.1, **options)
    _run(model, optimizer, range(3))
    twin, other = model.copy(), SGD(0.1, **options)
    state = optimizer.state_dict(model)
    assert list(state) == ["0.weight", "0.bias", "last.weight", "last.bias"]
    other.load_state_dict(twin, state)
    for array in state.values():
        array.fill(np.nan)  # both keep copies
    _run(model, optimizer, range(3, 6))
    _run(twin, other, range(3, 6))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.value.tobytes() == q.value.tobytes()
    other.load_state_dict(twin, {})
    assert other.state_dict(twin) == {}


@pytest.mark.parametrize(
    "state, message",
    [
        ({"9.weight": np.zeros((2, 3), np.float32)}, "state has '9.weight', the model"),
        ({"0.weight": np.zeros((3, 3), np.float32)}, r"float32 of shape \(3, 3\), the"),
        ({"0.weight": np.zeros((2, 3))}, "is float64 of shape"),
    ],
)
def test_bad_state(state, message):
    model, optimizer = _model(), SGD(0.1, momentum=0.5)
    _run(model, optimizer, range(1))
    before = optimizer.state_dict(model)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(model, state)
    assert optimizer.state_dict(model).keys() == before.keys()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "lr must be above 0 and finite, got 0"),
        ((-1,), "lr must be above 0"),
        ((float("nan"),), "lr must be above 0 and finite, got nan"),
        ((float("inf"),), "lr must be above 0 and finite"),
        ((0.1, 1.0), "momentum must be in 0 <= m < 1, got 1.0"),
        ((0.1, -0.1), "momentum must be in"),
        ((0.1, 0.0, True), "nesterov needs a momentum"),
        ((0.1, 0.9, False, -1), "weight_decay must not be negative"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGD(*arguments)


def test_no_gradient():
    parameters = _parameters()
    parameters[0].grad = np.ones((3, 4))
    before = parameters[0].value.copy()
    with pytest.raises(ValueError, match=r"parameter 1, of shape \(4,\), has no grad"):
        SGD(0.1).step(parameters)
    np.testing.assert_array_equal(parameters[0].value, before)


def test_repr():
    assert repr(SGD(0.1, 0.9)) == (
        "SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1, momentum=0.5),
        Adam(0.1, betas=(0.5, 0.5)),
        RMSprop(0.1, alpha=0.5, momentum=0.5, centered=True),
    ],
    ids=repr,
)
def test_what_is_kept_is_never_subnormal(optimizer, dtype, kernel_set):
    # subnormal numbers take a hundred times as long, and a unit that died keeps them
    limits = np.finfo(dtype)
    parameter = Parameter(np.ones(37, dtype))
    parameter.grad = np.full(37, -0.5, dtype)
    parameter.grad[1] = np.nan
    optimizer.step([parameter])
    parameter.grad[0] = parameter.grad[2:] = 0
    for _ in range(int(-np.log2(float(limits.tiny))) + 60):
        optimizer.step([parameter])
        kept = [v for k, v in optimizer._state[parameter].items() if k != "steps"]
        for array in kept:
            of = array[[0, *range(2, 37)]]
            assert np.isfinite(of).all()
            assert ((of == 0) | (abs(of) >= limits.tiny)).all()
            assert np.isnan(array[1])
    assert not any(array[[0, *range(2, 37)]].any() for array in kept)
