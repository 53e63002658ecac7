"""Models: graphs, the way back along them, shapes, names, errors."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

import cnn_ext
from cnn_ext.gradcheck import gradcheck
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
    Parameter,
    ReLU,
    ScaledTanh,
    Subsample2d,
    Tanh,
)
from cnn_ext.losses import CrossEntropy
from cnn_ext.model import Model
from cnn_ext.sequential import Sequential

RNG = np.random.default_rng(0)


def lenet(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    own = {"seed": rng, "dtype": dtype}
    return Sequential(
        Conv2d(1, 3, 5, padding=2, **own),
        Tanh(),
        AvgPool2d(2),
        Conv2d(3, 4, 5, **own),
        ScaledTanh(),
        MaxPool2d(2),
        Flatten(),
        Linear(16, 8, **own),
        ReLU(),
        Linear(8, 5, **own),
    )


def residual(dtype=np.float64, seed=0):
    """Paths that part and join: a sum, a concatenation, a layer in two places."""
    own = {"seed": np.random.default_rng(seed), "dtype": dtype}
    x = Input((2, 6, 6))
    shared = Conv2d(3, 3, 3, padding=1, name="shared", **own)
    a = Conv2d(2, 3, 3, padding=1, **own)(x)
    b = shared(Tanh()(a)) + a
    c = shared(b) + b + a
    d = Concat()(c, x, Tanh()(c))
    y = Linear(8 * 9, 4, **own)(Flatten()(MaxPool2d(2)(d)))
    return Model(x, y)


def images(n=2, shape=(1, 16, 16), dtype=np.float64):
    return np.random.default_rng(7).standard_normal((n, *shape)).astype(dtype)


# -- gradients -----------------------------------------------------------------------


def test_gradcheck_of_a_chain():
    gradcheck(lenet(np.float64), images())


def test_gradcheck_of_a_graph():
    gradcheck(residual(), images(shape=(2, 6, 6)))


def test_gradcheck_of_subsampling_and_sigmoid_type_units():
    own = {"seed": np.random.default_rng(0), "dtype": np.float64}
    model = Sequential(
        Conv2d(1, 3, 3, **own),
        ScaledTanh(),
        Subsample2d(3, dtype=np.float64),
        ScaledTanh(),
        Flatten(),
        Linear(147, 4, **own),
    )
    gradcheck(model, images())


def test_gradcheck_with_the_loss_on_top():
    model, labels = lenet(np.float64), np.array([3, 1])

    def through(x):
        y, pullback = model.vjp(x)
        value, grad_y = CrossEntropy()(y, labels)
        return np.array(value), lambda g: pullback(grad_y * g)[0]

    gradcheck(through, images())


def test_where_paths_join_gradients_add():
    x = Input((3,))
    model = Model(x, Add()(x, x, ReLU()(x)))
    value = np.array([[1.0, -2.0, 3.0]])
    y, pullback = model.vjp(value)
    np.testing.assert_array_equal(y, [[3, -4, 9]])
    grad_x, grads = pullback(np.array([[1.0, 10.0, 100.0]]))
    np.testing.assert_array_equal(grad_x, [[3, 20, 300]])
    assert grads == {}


def test_a_layer_in_two_places_has_one_gradient():
    linear = Linear(2, 2, weight_init="ones", bias_init="zeros", dtype=np.float64)
    model = Sequential(linear, linear)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    _, pullback = model.vjp(np.array([[1.0, 2.0]]))
    _, grads = pullback(np.array([[1.0, 0.0]]))
    # y = W (W x + b) + b: second use dW = g (Wx)^T, first use dW = (W^T g) x^T
    np.testing.assert_array_equal(grads["0.weight"], [[3 + 1, 3 + 2], [1, 2]])
    np.testing.assert_array_equal(grads["0.bias"], [2, 1])


def test_each_result_is_computed_once():
    calls = []

    class Count(Layer):
        def forward(self, x, train=False):
            calls.append("forward")
            return x, None

        def backward(self, grad_y, saved):
            calls.append("backward")
            return grad_y, {}

        def output_shape(self, input_shape):
            return input_shape

    x = Input((2,))
    h = Count()(x)
    for _ in range(20):  # 2**20 paths
        h = h + h
    model = Model(x, h)
    y, pullback = model.vjp(np.ones((1, 2)))
    grad_x, _ = pullback(np.ones((1, 2)))
    assert y[0, 0] == grad_x[0, 0] == 2.0**20
    assert calls == ["forward", "backward"]


def test_against_pytorch():
    torch = pytest.importorskip("torch")
    model, nn = lenet(np.float64), torch.nn
    net = nn.Sequential(
        nn.Conv2d(1, 3, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 5),
        nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(),
        nn.Linear(8, 5),
    ).double()  # fmt: skip
    model = Sequential(*[Tanh() if isinstance(part, ScaledTanh) else part
                         for part in model.layers.values()])  # fmt: skip
    net.load_state_dict(
        {k: torch.from_numpy(p.value.copy()) for k, p in model.named_parameters()}
    )
    x, labels = images(6), np.array([0, 1, 2, 3, 4, 0])
    tx = torch.from_numpy(x.copy()).requires_grad_()
    loss = nn.functional.cross_entropy(net(tx), torch.from_numpy(labels))
    loss.backward()
    y = model.forward(x, train=True)
    value, grad_y = CrossEntropy()(y, labels)
    grad_x = model.backward(grad_y)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(grad_x, tx.grad.numpy(), rtol=1e-9, atol=1e-14)
    theirs = dict(net.named_parameters())
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.grad, theirs[name].grad.numpy(), rtol=1e-9, atol=1e-13
        )


def test_same_bits_for_any_number_of_threads():
    model, x = lenet(), images(9, dtype=np.float32)
    before, results = cnn_ext.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            cnn_ext.set_num_threads(threads)
            y, pullback = model.vjp(x)
            grad_x, grads = pullback(np.ones_like(y))
            results.append([y, grad_x, *grads.values()])
    finally:
        cnn_ext.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


# -- forward, backward, vjp ----------------------------------------------------------


def test_forward_backward_and_vjp_agree():
    model, x = lenet(np.float64), images()
    y, pullback = model.vjp(x)
    grad_y = np.random.default_rng(1).standard_normal(y.shape)
    grad_x, grads = pullback(grad_y)
    assert all(p.grad is None for p in model.parameters())
    np.testing.assert_array_equal(model.forward(x, train=True), y)
    np.testing.assert_array_equal(model(x), y)
    np.testing.assert_array_equal(model.forward(x), y)
    np.testing.assert_array_equal(model.backward(grad_y), grad_x)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.grad, grads[name])


def test_backward_replaces_gradients():
    model, x = lenet(np.float64), images()
    for _ in range(2):
        y = model.forward(x, train=True)
        model.backward(np.ones_like(y))
    _, grads = model.vjp(x)[1](np.ones_like(y))
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.grad, grads[name])


def test_input_gradient_may_be_left_out():
    for model, x in (
        (lenet(np.float64), images()),
        (residual(), images(shape=(2, 6, 6))),
    ):
        y, pullback = model.vjp(x)
        grad_y = np.ones_like(y)
        _, expected = pullback(grad_y)
        grad_x, grads = pullback(grad_y, input_gradient=False)
        assert grad_x is None
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            np.testing.assert_array_equal(grad, expected[name])


def test_backward_without_forward():
    model, x = lenet(np.float64), images()
    grad_y = np.ones((2, 5))
    with pytest.raises(RuntimeError, match=r"needs a forward\(x, train=True\)"):
        model.backward(grad_y)
    model(x)
    model.forward(x)
    with pytest.raises(RuntimeError, match=r"needs a forward\(x, train=True\)"):
        model.backward(grad_y)
    model.forward(x, train=True)
    model.backward(grad_y)
    with pytest.raises(RuntimeError, match=r"needs a forward\(x, train=True\)"):
        model.backward(grad_y)


def test_a_single_image_comes_back_single():
    model, x = lenet(np.float64), images()
    np.testing.assert_allclose(model(x[0]), model(x)[0], rtol=1e-12)
    y, pullback = model.vjp(x[0])
    assert y.shape == (5,)
    grad_x, _ = pullback(np.ones(5))
    assert grad_x.shape == x[0].shape
    assert model.predict(x[0]) == model.predict(x)[0]


def test_predict_is_batched():
    model, x = lenet(), images(10, dtype=np.float32)
    expected = model(x).argmax(axis=1)
    for batch_size in (1, 3, 256):
        labels = model.predict(x, batch_size)
        np.testing.assert_array_equal(labels, expected)
        assert labels.dtype == np.int64
    assert model.predict(x[:0]).shape == (0,)


def test_inference_of_one_model_in_several_threads():
    model, x = lenet(), images(16, dtype=np.float32)
    expected, failures = model(x).tobytes(), []

    def run():
        for _ in range(20):
            y, pullback = model.vjp(x)
            pullback(y)
            if model(x).tobytes() != expected or y.tobytes() != expected:
                failures.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# -- building ------------------------------------------------------------------------


def test_names():
    block = Sequential(Linear(2, 2), ReLU(), Linear(2, 2, name="last"))
    model = Sequential(block, Linear(2, 3, name="head"), Tanh(), Linear(3, 1))
    assert list(model.layers) == ["0.0", "0.1", "0.last", "head", "2", "3"]
    assert [name for name, _ in model.named_parameters()] == [
        "0.0.weight", "0.0.bias", "0.last.weight", "0.last.bias",
        "head.weight", "head.bias", "3.weight", "3.bias",
    ]  # fmt: skip
    assert model.parameters()[0] is block.layers["0"].weight


def test_a_model_joins_a_graph():
    own = {"seed": np.random.default_rng(0), "dtype": np.float64}
    block = Sequential(Conv2d(2, 2, 3, padding=1, **own), Tanh())
    x = Input((2, 5, 5))
    model = Model(x, block(block(x) + x))
    value = images(shape=(2, 5, 5))
    expected = block(block(value) + value)
    np.testing.assert_array_equal(model(value), expected)
    assert len(model.parameters()) == 2
    gradcheck(model, value)
    nested = Sequential(model, Flatten(), Linear(50, 2, **own))
    gradcheck(nested, value)
    assert nested.output_shape((2, 5, 5)) == (2,)


def test_input_shape():
    model = Sequential(Conv2d(1, 2, 3), input_shape=[1, 8, 8])
    assert model.input_shape == (1, 8, 8)
    assert model.output_shape() == (2, 6, 6)
    with pytest.raises(ValueError, match=r"x has shape \(1, 1, 9, 9\), .*\(N, 1, 8, 8"):
        model(np.ones((1, 1, 9, 9), np.float32))
    open_model = Sequential(Conv2d(1, 2, 3))
    assert open_model.input_shape is None
    assert open_model.output_shape((1, 9, 9)) == (2, 7, 7)
    with pytest.raises(ValueError, match="input_shape is not known"):
        open_model.summary()


def test_astype_and_copy():
    model = lenet()
    wide, twin = model.astype(np.float64), model.copy()
    assert (model.dtype, wide.dtype) == (np.float32, np.float64)
    assert isinstance(wide, Sequential)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(
            p.value, dict(wide.named_parameters())[name].value
        )
        assert not np.shares_memory(p.value, q.value)
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        model.astype(np.float16)
    assert Sequential(ReLU()).dtype is None


def test_copies_and_pickles_work_and_drop_the_pending_backward():
    model, x = lenet(), images(dtype=np.float32)
    y = model.forward(x, train=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.copy()):
        np.testing.assert_array_equal(twin(x), y)
        with pytest.raises(RuntimeError, match="needs a forward"):
            twin.backward(np.ones_like(y))
    model.backward(np.ones_like(y))


def test_summary():
    text = lenet().summary((1, 16, 16))
    lines = text.splitlines()
    assert lines[0].split() == [
        "name",
        "layer",
        "output",
        "parameters",
        "multiply-adds",
        "bytes",
    ]
    assert lines[2].split()[-4:] == ["3x16x16", "78", "19,200", "3,072"]
    parameters = sum(p.size for p in lenet().parameters())
    assert lines[-2].split() == ["total", f"{parameters:,}", "24,168", "8,660"]
    training = lenet().plan((64, 1, 16, 16)).memory
    assert lines[-1].startswith(f"a batch of 64 takes {training:,} bytes in training")
    graph = residual().summary()
    assert "shared" in graph.splitlines()[5]
    assert " from " in graph.splitlines()[0]
    assert "6, input, 7" in graph


def test_repr_names_the_layers():
    assert repr(Sequential(Linear(2, 3), ReLU())) == (
        "Sequential(0: Linear(2, 3), 1: ReLU())"
    )


def test_a_custom_layer():
    class Square(Layer):
        def __init__(self, size):
            super().__init__()
            self.size = size
            self.gain = Parameter(np.full(size, 2.0))

        def forward(self, x, train=False):
            return self.gain.value * x * x, x

        def backward(self, grad_y, saved):
            x = saved
            gain = (grad_y * x * x).sum(axis=0)
            return 2 * self.gain.value * x * grad_y, {"gain": gain}

        def output_shape(self, input_shape):
            return input_shape

    gradcheck(Square(3), RNG.standard_normal((4, 3)))
    linear = Linear(3, 3, dtype=np.float64, seed=0)
    model = Sequential(linear, Square(3))
    gradcheck(model, RNG.standard_normal((4, 3)))
    assert repr(model.layers["1"]) == "Square(3)"


# -- errors --------------------------------------------------------------------------


class Forgetful(Linear):
    def backward(self, grad_y, saved):
        grad_x, grads = super().backward(grad_y, saved)
        del grads["bias"]
        return grad_x, grads


def _loose_end():
    x, other = Input((2,)), Input((2,))
    return Model(x, x + other)


def _not_reached():
    x, other = Input((2,)), Input((2,))
    return Model(x, ReLU()(other))


def _backward(model, grad_y):
    model.forward(np.ones((2, 3), np.float32), train=True)
    return model.backward(grad_y)


X32 = np.ones((2, 1, 16, 16), np.float32)
BAD = [
    (lambda: Sequential(), ValueError, "at least one layer"),
    (lambda: Sequential([ReLU()]), TypeError, "layer 0 must be a Layer or a Model"),
    (lambda: Sequential(ReLU(), Add()), TypeError, r"layer 1, Add\(\), joins several"),
    (
        lambda: Sequential(ReLU(name="a"), Tanh(name="a")),
        ValueError,
        "two layers have the name 'a'",
    ),
    (
        lambda: Sequential(ReLU(name="1"), Tanh()),
        ValueError,
        "two layers have the name '1'",
    ),
    (
        lambda: Sequential(
            Conv2d(1, 2, 5), Flatten(), Linear(9, 2), input_shape=(1, 6, 6)
        ),
        ValueError,
        r"layer 2, Linear\(9, 2\): weight takes 9 features, x has shape \(8,\)",
    ),
    (lambda: Model(Input((2,)), Input((2,))), ValueError, "not the model's x"),
    (lambda: Model(*[Input((2,))] * 2), ValueError, "no layer between them"),
    (lambda: Model(ReLU(), ReLU()), TypeError, "x must be an Input, got ReLU"),
    (lambda: Model(Input((2,)), ReLU()), TypeError, "y must be a node"),
    (_loose_end, ValueError, r"y depends on Input\(\(2,\)\), which is not"),
    (_not_reached, ValueError, "which is not the model's x"),
    (
        lambda: lenet()(np.ones((2, 3, 16, 16), np.float32)),
        ValueError,
        r"layer 0, Conv2d\(1, 3, 5, padding=2\): weight has 1 input channels, x has 3",
    ),
    (
        lambda: lenet()(np.ones((2, 1, 20, 20), np.float32)),
        ValueError,
        r"layer 7, Linear\(16, 8\): weight has 16 inputs, x has 36",
    ),
    (lambda: lenet()(X32.astype(np.uint8)), TypeError, r"layer 0, Conv2d.*uint8"),
    (lambda: lenet()(X32.astype(np.float64)), TypeError, "layer 0, Conv2d.*float"),
    (lambda: lenet()(X32.tolist()), TypeError, "x must be a numpy array, got list"),
    (lambda: Sequential(ReLU())(np.float32(1)), TypeError, "must be a numpy array"),
    (lambda: Sequential(ReLU())(np.array(1.0)), ValueError, "must have a batch axis"),
    (
        lambda: lenet().output_shape((1, 3, 3)),
        ValueError,
        "layer 3, Conv2d.*the kernel covers 5x5 pixels",
    ),
    (
        lambda: _backward(Sequential(Linear(3, 2)), np.ones((2, 3), np.float32)),
        ValueError,
        r"grad_y has shape \(2, 3\), the output has \(2, 2\)",
    ),
    (
        lambda: _backward(Sequential(Linear(3, 2)), np.ones((2, 2))),
        TypeError,
        "grad_y must be an array of float32, got float64",
    ),
    (
        lambda: _backward(Sequential(Linear(3, 2)), [[1.0]]),
        TypeError,
        "grad_y must be an array of float32, got list",
    ),
    (
        lambda: _backward(Sequential(Forgetful(3, 2)), np.ones((2, 2), np.float32)),
        ValueError,
        r"layer 0, Forgetful\(3, 2\): backward returned gradients for \['weight'\]",
    ),
]


@pytest.mark.parametrize("make, kind, message", BAD)
def test_errors_name_the_layer_and_the_rule(make, kind, message):
    with pytest.raises(kind, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
