"""Layers: shapes, initial values, gradients, agreement with PyTorch, bad arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnn_ext import reference
from cnn_ext.gradcheck import gradcheck
from cnn_ext.initializers import INITIALIZERS
from cnn_ext.layers import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Input,
    Layer,
    Linear,
    MaxPool2d,
    Node,
    Parameter,
    ReLU,
    ScaledTanh,
    Sigmoid,
    Softmax,
    Subsample2d,
    Tanh,
)

F64 = {"dtype": np.float64, "seed": 1}

# layer in float64, shape of a batch of inputs (several for a layer that joins)
LAYERS = [
    (Conv2d(3, 4, 3, **F64), (2, 3, 7, 6)),
    (Conv2d(4, 6, (3, 2), (2, 1), 1, (1, 2), 2, False, **F64), (2, 4, 9, 8)),
    (Conv2d(4, 4, 3, padding="same", stride=2, groups=4, **F64), (2, 4, 7, 8)),
    (Conv2d(2, 3, 3, padding=((1, 0), (0, 2)), **F64), (1, 2, 5, 5)),
    (MaxPool2d(2), (2, 3, 6, 7)),
    (MaxPool2d(3, 2, 1, ceil_mode=True), (2, 3, 6, 7)),
    (MaxPool2d(2, 1, dilation=2), (2, 3, 6, 7)),
    (AvgPool2d(2), (2, 3, 6, 7)),
    (AvgPool2d(3, 2, 1, True, False), (2, 3, 6, 8)),
    (AvgPool2d(2, divisor_override=3), (2, 3, 6, 7)),
    (Subsample2d(3, dtype=np.float64, bias_init="ones"), (2, 3, 6, 8)),
    (Subsample2d(3, 3, 2, gain_init="default", **F64), (2, 3, 7, 9)),
    (Linear(5, 4, **F64), (3, 5)),
    (Linear(5, 4, bias=False, **F64), (3, 5)),
    (Flatten(), (2, 3, 4, 5)),
    (ReLU(), (2, 3, 4)),
    (Sigmoid(), (2, 3, 4)),
    (Tanh(), (2, 3, 4)),
    (ScaledTanh(), (2, 3, 4)),
    (Softmax(), (3, 5)),
    (Softmax(), (3, 5, 2)),
    (Add(), [(2, 3, 4)] * 3),
    (Concat(), [(2, 3, 4), (2, 1, 4), (2, 2, 4)]),
    (Concat(2), [(2, 3, 4), (2, 3, 1)]),
]


def _inputs(shapes, rng):
    several = isinstance(shapes, list)
    arrays = tuple(rng.standard_normal(s) for s in (shapes if several else [shapes]))
    return arrays, tuple(a.shape[1:] for a in arrays) if several else arrays[0].shape[
        1:
    ]


@pytest.mark.parametrize("layer, shapes", LAYERS, ids=lambda v: repr(v))
def test_gradients_and_shape(layer, shapes):
    inputs, shape = _inputs(shapes, np.random.default_rng(0))
    gradcheck(layer, inputs)
    y, saved = layer.forward(inputs if layer.joins else inputs[0], train=True)
    assert y.shape[1:] == layer.output_shape(shape)
    assert y.dtype == np.float64
    # inference gives the same, and so does the shorter way back
    np.testing.assert_array_equal(layer(*inputs), y)
    grad_y = np.random.default_rng(1).standard_normal(y.shape)
    _, grads = layer.backward(grad_y, saved)
    alone = layer.backward_parameters(grad_y, saved)
    assert list(grads) == list(alone) == list(layer.parameters)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, alone[name])
        assert grad.shape == layer.parameters[name].shape


@pytest.mark.parametrize("layer, shapes", LAYERS, ids=lambda v: repr(v))
def test_float32_stays_float32_and_saved_is_not_changed(layer, shapes):
    inputs, _ = _inputs(shapes, np.random.default_rng(0))
    inputs = tuple(a.astype(np.float32) for a in inputs)
    values = {k: p.value for k, p in layer.parameters.items()}
    for parameter in layer.parameters.values():
        parameter.value = parameter.value.astype(np.float32)
    try:
        y, pullback = layer.vjp(*inputs)
        grad_y = np.ones_like(y)
        first, second = pullback(grad_y), pullback(grad_y)
        np.testing.assert_array_equal(grad_y, 1)
    finally:
        for k, p in layer.parameters.items():
            p.value = values[k]
    for a, b in zip(_flat(first), _flat(second), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert y.dtype == np.float32


def _flat(pulled):
    grad_x, grads = pulled
    return [*(grad_x if isinstance(grad_x, tuple) else (grad_x,)), *grads.values()]


def test_a_layer_built_from_its_config_is_the_same():
    for layer, _ in LAYERS:
        again = type(layer)(**layer.config())
        assert repr(again) == repr(layer)
        assert {k: p.shape for k, p in again.parameters.items()} == {
            k: p.shape for k, p in layer.parameters.items()
        }


def test_repr_shows_what_is_not_default():
    assert repr(Conv2d(1, 6, 5, padding=2)) == "Conv2d(1, 6, 5, padding=2)"
    assert repr(Conv2d(1, 6, (5, 3), bias=False)) == "Conv2d(1, 6, (5, 3), bias=False)"
    assert repr(MaxPool2d(2, 2)) == "MaxPool2d(2, stride=2)"
    assert repr(ReLU(name="squash")) == "ReLU()"
    assert repr(Parameter(np.zeros((2, 3)))) == "Parameter(float64, shape (2, 3))"


# -- meaning -------------------------------------------------------------------------


def test_conv_and_subsampling_against_the_reference():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 8))
    conv = Conv2d(4, 6, 3, 2, 1, 1, 2, **F64)
    expected = reference.conv2d(
        x, conv.weight.value, conv.bias.value, stride=2, padding=1, groups=2
    )
    np.testing.assert_allclose(conv(x), expected, rtol=1e-12)
    halve = Subsample2d(4, dtype=np.float64)
    # it starts as average pooling
    np.testing.assert_allclose(
        halve(x), reference.avg_pool2d(x, 2), rtol=1e-12, atol=1e-15
    )


def test_the_winner_gets_the_whole_error():
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.float32)[None, None]
    _, pullback = MaxPool2d(3).vjp(x)
    grad_x, grads = pullback(np.full((1, 1, 1, 1), 0.5, dtype=np.float32))
    expected = np.zeros((3, 3), dtype=np.float32)
    expected[2, 2] = 0.5
    np.testing.assert_array_equal(grad_x[0, 0], expected)
    assert grads == {}


def test_sigmoid_delta_and_extremes():
    x = np.array([[-1e4, -30, 0, 30, 1e4, np.nan]], dtype=np.float32)
    y, pullback = Sigmoid().vjp(x)
    np.testing.assert_allclose(
        y[0, :5], [0, 1 / (1 + math.exp(30)), 0.5, 1, 1], rtol=1e-6
    )
    assert np.isnan(y[0, 5])
    grad_x, _ = pullback(np.full_like(y, 2))
    np.testing.assert_allclose(grad_x, 2 * y * (1 - y))


def test_scaled_tanh():
    x = np.array([[-1.0, 0.0, 1.0, 50.0]])
    y = ScaledTanh()(x)
    np.testing.assert_allclose(y[0], 1.7159 * np.tanh(2 * x[0] / 3), rtol=1e-15)
    assert abs(y[0, 2] - 1) < 1e-4


def test_relu_special_values():
    x = np.array([[-np.inf, -1, -0.0, 0.0, 1, np.inf, np.nan]], dtype=np.float32)
    y, pullback = ReLU().vjp(x)
    np.testing.assert_array_equal(y, [[0, 0, 0, 0, 1, np.inf, np.nan]])
    grad_x, _ = pullback(np.full_like(y, np.inf))
    np.testing.assert_array_equal(
        grad_x, [[0, 0, 0, 0, np.inf, np.inf, np.inf]]
    )  # NaN passes, as in PyTorch


def test_softmax_is_stable_and_sums_to_one():
    x = np.array([[1e4, 1e4 - 1, 0.0], [-1e4, 0.0, 0.0]], dtype=np.float32)
    y = Softmax()(x)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(y[0, :2], [0.73105858, 0.26894142], rtol=1e-5)


def test_memory_order_is_kept():
    nhwc = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
    x = nhwc.transpose(0, 3, 1, 2)
    for layer in (Conv2d(3, 4, 3, seed=0), MaxPool2d(2), ReLU(), Tanh(), Sigmoid()):
        y, pullback = layer.vjp(x)
        grad_x, _ = pullback(y.copy(order="K"))
        for array in (y, grad_x):
            assert array.transpose(0, 2, 3, 1).flags.c_contiguous, layer
        np.testing.assert_allclose(
            y, layer(np.ascontiguousarray(x)), rtol=1e-5, atol=1e-6
        )


def test_flatten_is_in_logical_order():
    x = np.arange(24, dtype=np.float32).reshape(1, 3, 4, 2).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(Flatten()(x), np.ascontiguousarray(x).reshape(1, 24))


def test_empty_batch():
    for layer, shapes in LAYERS:
        if isinstance(shapes, tuple):
            y, pullback = layer.vjp(np.empty((0, *shapes[1:])))
            assert y.shape == (0, *layer.output_shape(shapes[1:]))
            grad_x, grads = pullback(np.empty_like(y))
            assert grad_x.shape == (0, *shapes[1:])
            for grad in grads.values():
                np.testing.assert_array_equal(grad, 0)


# -- initial values ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, deviation",
    [
        ("default", 1 / math.sqrt(3 * 72)),
        ("glorot_uniform", math.sqrt(2 / (72 + 288))),
        ("glorot_normal", math.sqrt(2 / (72 + 288))),
        ("he_uniform", math.sqrt(2 / 72)),
        ("he_normal", math.sqrt(2 / 72)),
        ("lecun_uniform", math.sqrt(1 / 72)),
        ("lecun_normal", math.sqrt(1 / 72)),
        ("lenet", 2.4 / 72 / math.sqrt(3)),
        ("zeros", 0),
    ],
)
def test_initialisers(name, deviation):
    weight = Conv2d(8, 32, 3, weight_init=name, **F64).weight.value
    assert weight.std() == pytest.approx(deviation, rel=0.05)
    assert abs(weight.mean()) <= 4 * deviation / math.sqrt(weight.size)
    if name.endswith("uniform"):
        assert abs(weight).max() <= deviation * math.sqrt(3)


def test_default_bounds_are_those_of_pytorch():
    conv = Conv2d(8, 64, 3, seed=0)
    linear = Linear(50, 400, seed=0)
    for layer, fan_in in ((conv, 72), (linear, 50)):
        for parameter in layer.parameters.values():
            largest = abs(parameter.value).max()
            assert 0.9 / math.sqrt(fan_in) < largest <= 1 / math.sqrt(fan_in)


def test_fan_of_groups():
    narrow = Conv2d(8, 8, 3, groups=8, weight_init="lenet", seed=0)
    assert 2.0 / 9 < abs(narrow.weight.value).max() <= 2.4 / 9


def test_seeds():
    first, again = Conv2d(1, 6, 5, seed=3), Conv2d(1, 6, 5, seed=3)
    np.testing.assert_array_equal(first.weight.value, again.weight.value)
    assert not np.array_equal(first.weight.value, Conv2d(1, 6, 5).weight.value)
    rng = np.random.default_rng(3)
    one, two = Conv2d(1, 6, 5, seed=rng), Conv2d(1, 6, 5, seed=rng)
    np.testing.assert_array_equal(one.weight.value, first.weight.value)
    assert not np.array_equal(one.weight.value, two.weight.value)
    # the same numbers whatever the dtype
    wide = Conv2d(1, 6, 5, seed=3, dtype=np.float64)
    np.testing.assert_array_equal(
        wide.weight.value.astype(np.float32), first.weight.value
    )
    assert first.weight.value.dtype == np.float32


def test_own_initialiser_is_copied():
    mine = np.ones((2, 3), dtype=np.float32)
    linear = Linear(3, 2, weight_init=lambda shape, i, o, rng: mine)
    linear.weight.value += 1
    np.testing.assert_array_equal(mine, 1)


# -- PyTorch -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (Softmax(), "Softmax(dim=1)"),
        (Tanh(), "Tanh()"),
        (Sigmoid(), "Sigmoid()"),
        (ReLU(), "ReLU()"),
        (Flatten(), "Flatten()"),
        (MaxPool2d(3, 2, 1, 1, True), "MaxPool2d(3, 2, 1, 1, ceil_mode=True)"),
        (AvgPool2d(3, 2, 1, True), "AvgPool2d(3, 2, 1, True)"),
        (Conv2d(4, 6, 3, 2, 1, 2, 2, **F64), "Conv2d(4, 6, 3, 2, 1, 2, 2)"),
    ],
    ids=repr,
)
def test_against_pytorch(ours, theirs):
    torch = pytest.importorskip("torch")
    layer = eval(f"torch.nn.{theirs}", {"torch": torch}).double()
    for name, parameter in ours.parameters.items():
        with torch.no_grad():
            getattr(layer, name).copy_(torch.from_numpy(parameter.value.copy()))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 11, 10))
    tx = torch.from_numpy(x.copy()).requires_grad_()
    ty = layer(tx)
    y, pullback = ours.vjp(x)
    grad_y = rng.standard_normal(y.shape)
    ty.backward(torch.from_numpy(grad_y))
    grad_x, grads = pullback(grad_y)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(grad_x, tx.grad.numpy(), rtol=1e-10, atol=1e-13)
    for name, grad in grads.items():
        np.testing.assert_allclose(
            grad, getattr(layer, name).grad.numpy(), rtol=1e-10, atol=1e-12
        )


def test_linear_against_pytorch():
    torch = pytest.importorskip("torch")
    ours = Linear(7, 5, **F64)
    rng = np.random.default_rng(0)
    x, grad_y = rng.standard_normal((4, 7)), rng.standard_normal((4, 5))
    tx, tw, tb = (
        torch.from_numpy(a.copy()).requires_grad_()
        for a in (x, ours.weight.value, ours.bias.value)
    )
    torch.nn.functional.linear(tx, tw, tb).backward(torch.from_numpy(grad_y))
    _, pullback = ours.vjp(x)
    grad_x, grads = pullback(grad_y)
    for mine, other in ((grad_x, tx), (grads["weight"], tw), (grads["bias"], tb)):
        np.testing.assert_allclose(mine, other.grad.numpy(), rtol=1e-12, atol=1e-13)


# -- bad arguments -------------------------------------------------------------------

BAD = [
    (lambda: Conv2d(0, 6, 5), ValueError, "in_channels must be at least 1, got 0"),
    (lambda: Conv2d(1, -2, 5), ValueError, "out_channels must be at least 1"),
    (lambda: Conv2d(1.5, 6, 5), TypeError, "in_channels must be an integer, got 1.5"),
    (lambda: Conv2d(1, 6, 0), ValueError, "kernel_size must be at least 1, got 0"),
    (lambda: Conv2d(1, 6, (5, 5, 5)), ValueError, "kernel_size must be an int or a"),
    (lambda: Conv2d(1, 6, 5, stride=0), ValueError, "stride must be at least 1"),
    (lambda: Conv2d(1, 6, 5, padding=-1), ValueError, "padding must be at least 0"),
    (lambda: Conv2d(1, 6, 5, padding="full"), ValueError, "'same' or 'same_lower'"),
    (lambda: Conv2d(1, 6, 5, dilation=0), ValueError, "dilation must be at least 1"),
    (lambda: Conv2d(4, 6, 3, groups=3), ValueError, "groups=3 must divide the 4 input"),
    (lambda: Conv2d(1, 6, 5, dtype=np.float16), TypeError, "float32 or float64"),
    (lambda: Conv2d(1, 6, 5, dtype=int), TypeError, "float32 or float64, got int64"),
    (lambda: Conv2d(1, 6, 5, seed=-1), ValueError, "seed must not be negative"),
    (lambda: Conv2d(1, 6, 5, seed="1"), TypeError, "seed must be an int, a numpy"),
    (lambda: Conv2d(1, 6, 5, weight_init="he"), ValueError, "unknown initializer 'he'"),
    (lambda: Conv2d(1, 6, 5, bias_init=0.0), TypeError, "is a name or a function"),
    (
        lambda: Linear(2, 3, weight_init=lambda *a: np.zeros(2)),
        ValueError,
        r"returned shape \(2,\) for a parameter of \(3, 2\)",
    ),
    (lambda: Conv2d(1, 6, 5, name="a.b"), ValueError, "name must consist of letters"),
    (lambda: ReLU(name=""), ValueError, "name must consist of letters"),
    (lambda: MaxPool2d(0), ValueError, "kernel_size must be at least 1, got 0"),
    (lambda: MaxPool2d(2, padding=2), ValueError, "padding must be at most half"),
    (lambda: AvgPool2d(2, stride=-1), ValueError, "stride must be at least 1"),
    (lambda: Subsample2d(0), ValueError, "channels must be at least 1"),
    (lambda: Subsample2d(6, 2, gain_init="big"), ValueError, "unknown initializer"),
    (lambda: Linear(0, 3), ValueError, "in_features must be at least 1"),
    (lambda: Concat(0), ValueError, "axis must be at least 1"),
    (lambda: Input(()), ValueError, "at least one axis"),
    (lambda: Input((3, 0, 4)), ValueError, r"shape\[1\] must be at least 1"),
    (lambda: Input(28), TypeError, "shape must be a tuple of sizes, got 28"),
    (lambda: Layer(), TypeError, "abstract"),
    (lambda: ReLU()(np.arange(3)), TypeError, r"convert with x.astype\(numpy.float32"),
    (lambda: Tanh()([1.0]), TypeError, "float32 or float64 array, got list"),
    (lambda: Sigmoid()(np.ones(2, np.float16)), TypeError, "got float16"),
    (lambda: ReLU()(np.ones(2), np.ones(2)), TypeError, "takes one input, got 2"),
    (lambda: Add()(np.ones(2)), ValueError, "at least two inputs"),
    (lambda: Add()(np.ones((1, 2)), np.ones((1, 3))), ValueError, "one shape; input 0"),
    (lambda: Concat()(np.ones((1, 2, 3)), np.ones((1, 2, 4))), ValueError, "axis 1"),
    (lambda: Concat(3)(np.ones((1, 2)), np.ones((1, 2))), ValueError, "axis 3 does"),
    (lambda: Linear(3, 2)(np.ones((1, 4), np.float32)), ValueError, "has 3 inputs, x"),
    (lambda: Linear(3, 2)(np.ones((1, 3))), TypeError, "float32"),
    (
        lambda: Conv2d(3, 4, 3)(np.ones((1, 2, 8, 8), np.float32)),
        ValueError,
        "weight has 3 input channels, x has 2",
    ),
    (lambda: Conv2d(3, 4, 3)(Input((2, 8, 8))), ValueError, "Conv2d.*: weight has 3"),
    (lambda: Subsample2d(3)(Input((2, 8, 8))), ValueError, "gain has 3 channels, x"),
    (lambda: Linear(3, 4)(Input((2, 8, 8))), ValueError, "takes 3 features, x has"),
    (lambda: MaxPool2d(9)(Input((2, 8, 8))), ValueError, "kernel covers 9x9 pixels"),
    (lambda: Add()(Input((2,)), np.ones(2)), TypeError, "nodes or arrays, not both"),
    (lambda: Input((2,)) + 1, TypeError, "unsupported operand"),
]


@pytest.mark.parametrize("make, kind, message", BAD)
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_nodes():
    x = Input((3, 8, 8))
    y = Conv2d(3, 3, 3, padding=1)(x) + x
    assert isinstance(y, Node)
    assert y.shape == (3, 8, 8)
    assert isinstance(y.layer, Add)
    assert y.inputs[1] is x
    assert repr(x) == "Input((3, 8, 8))"
    assert repr(y) == "Node(Add(), shape=(3, 8, 8))"
    assert Concat()(x, y, x).shape == (9, 8, 8)


def test_every_initialiser_makes_the_shape():
    rng = np.random.default_rng(0)
    for init in INITIALIZERS.values():
        assert init((3, 2), 2, 3, rng).shape == (3, 2)
