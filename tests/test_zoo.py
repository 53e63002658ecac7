"""Named nets: shapes, seeds, learning; the real figures where the data are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cnn_ext import zoo
from cnn_ext.gradcheck import gradcheck
from cnn_ext.graph import Graph, Step
from cnn_ext.layers import ReLU, ReLU6, SiLU, Subsample2d
from cnn_ext.losses import CrossEntropy
from cnn_ext.training import evaluate, fit


@pytest.mark.parametrize("name", zoo.NETS)
def test_shapes_and_seeds(name):
    net = zoo.NETS[name]
    model = zoo.build(name, seed=1)
    assert model.input_shape == net.input_shape
    assert model.output_shape() == (10,)
    assert model.metadata == {"net": name, "classes": 10}
    again, other = zoo.build(name, seed=1), zoo.build(name, seed=2)
    pairs = list(zip(model.parameters(), again.parameters(), strict=True))
    assert all(p.value.tobytes() == q.value.tobytes() for p, q in pairs)
    first, second = model.parameters()[0].value, other.parameters()[0].value
    assert not np.array_equal(first, second)
    assert all(p.value.dtype == np.float32 for p in model.parameters())
    model = zoo.build(name, (3, 40, 36), 7, seed=np.random.default_rng(0))
    assert model(np.zeros((2, 3, 40, 36), np.float32)).shape == (2, 7)
    assert net.optimizer().lr == net.lr
    assert net.about


# Differences meet too many kinks in the others: PyTorch stands against those
@pytest.mark.parametrize("name", ["lenet5", "lenet5-1998", "digits"])
def test_gradients(name):
    model = zoo.build(name, seed=0).astype(np.float64)
    x = np.random.default_rng(0).random((2, *model.input_shape))
    gradcheck(model, x, projections=1)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("lenet5", 61_706),
        ("cifar-quick", 145_578),
        ("vgg11", 9_228_362),
        ("resnet20", 272_474),
        ("resnet18", 11_173_962),
        ("mobilenet-v2", 2_236_682),
    ],
)
def test_known_numbers_of_parameters(name, parameters):
    assert sum(p.size for p in zoo.build(name).parameters()) == parameters


CIFAR = ["cifar-quick", "vgg11", "resnet20", "resnet18", "mobilenet-v2"]


def _smooth(model):
    """Return a copy with SiLU in place of every ReLU."""
    model = model.copy()
    kinks = (ReLU, ReLU6)
    turned = {v: SiLU() if isinstance(v, kinks) else v for v in model.layers.values()}
    names = {turned[layer]: name for name, layer in model.layers.items()}
    steps = [Step(turned[step.layer], step.inputs) for step in model._graph.steps]
    model._set_up(Graph(steps, names), model.input_shape)
    return model


# In float32 a sum that is nearly 0 may have either sign, in PyTorch as here, and then a
# ReLU passes or stops a whole error: both lie up to 1e-2 from the float64 gradient of a
# deep net. So float32 is compared without kinks, float64 as the net is.
@pytest.mark.parametrize("dtype, limit", [(np.float32, 1e-4), (np.float64, 1e-10)])
@pytest.mark.parametrize("name", ["lenet5", "lenet5-1998", *CIFAR])
def test_gradients_against_pytorch(name, dtype, limit):
    pytest.importorskip("torch")
    from torch_models import loss_and_gradients

    model = zoo.build(name, seed=0).astype(dtype)
    model = _smooth(model) if dtype == np.float32 else model
    rng = np.random.default_rng(1)
    x = rng.random((4, *model.input_shape)).astype(dtype)
    labels = rng.integers(0, 10, 4)
    expected = loss_and_gradients(model, x, labels)
    y, pullback = model.vjp(x)
    value, grad_y = CrossEntropy()(y, labels)
    grad_x, grads = pullback(grad_y)
    assert value == pytest.approx(expected["loss"], rel=limit)
    # the input's too: it has come through every layer
    norms = {k: np.linalg.norm(expected[k]) for k in ("x", *grads)}
    whole = np.linalg.norm(list(norms.values()))
    for key, grad in {"x": grad_x, **grads}.items():
        error = np.linalg.norm((grad - expected[key]).astype(np.float64))
        # a bias in front of a normalisation has gradient 0, and rounding in its place
        assert error <= limit * max(norms[key], 1e-3 * whole), key
    for key, buffer in model.named_buffers():
        np.testing.assert_allclose(buffer.value, expected[key], rtol=limit, atol=1e-6)


def test_the_net_of_1998_trains_its_subsampling():
    model = zoo.build("lenet5-1998", seed=0)
    assert list(model.layers)[:3] == ["C1", "1", "S2"]
    subsampling = [v for v in model.layers.values() if isinstance(v, Subsample2d)]
    before = [layer.gain.value.copy() for layer in subsampling]
    rng = np.random.default_rng(0)
    x, labels = rng.random((64, 1, 28, 28), np.float32), rng.integers(0, 10, 64)
    net = zoo.NETS["lenet5-1998"]
    fit(
        model, (x, labels), loss=net.loss(), optimizer=net.optimizer(),
        epochs=1, batch_size=net.batch_size, seed=0, verbose=0,
    )  # fmt: skip
    for layer, gain in zip(subsampling, before, strict=True):
        assert (layer.gain.value != gain).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lenet6",), "unknown net 'lenet6'; known are lenet5, lenet5-1998, digits, c"),
        (("lenet5", (28, 28)), r"input_shape must be \(C, H, W\), got \(28, 28\)"),
        (
            ("lenet5", (1, 8, 8)),
            r"lenet5 cannot take images of \(1, 8, 8\): layer 3, C",
        ),
        (("lenet5", (1, 28, 28), 0), "classes must be at least 1"),
        (("digits", (1, 1, 1)), "digits cannot take images of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.build(*arguments)


def _train(name, dataset, seed=0, epochs=None):
    net = zoo.NETS[name]
    model = zoo.build(name, dataset.input_shape, len(dataset.class_names), seed=seed)
    history = fit(
        model, dataset.train, loss=net.loss(), optimizer=net.optimizer(),
        epochs=epochs or net.epochs, batch_size=net.batch_size,
        validation=dataset.test if epochs is None else None, seed=seed, verbose=0,
    )  # fmt: skip
    return evaluate(model, dataset.test)[1], history


def test_real_digits():
    pytest.importorskip("sklearn")
    from cnn_ext import data

    accuracy, history = _train("digits", data.digits())
    assert accuracy >= 0.98, history
    assert sum(history.seconds) < 60


def _mnist():
    """The four files, from CNN_EXT_DATA or a checkout's neighbour."""
    from cnn_ext import data

    checkout = Path(__file__).resolve().parents[1]
    places = [os.environ.get("CNN_EXT_DATA"), checkout.parent / "shared" / "data"]
    for place in filter(None, places):
        try:
            return data.mnist(place)
        except data.DataError:
            continue
    pytest.skip("MNIST is not here: set CNN_EXT_DATA to its folder")


@pytest.mark.slow
@pytest.mark.parametrize("name, wanted", [("lenet5", 0.989), ("lenet5-1998", 0.985)])
def test_mnist(name, wanted):
    accuracy, history = _train(name, _mnist())
    print(history)
    assert accuracy >= wanted


@pytest.mark.parametrize("name", ["lenet5", "lenet5-1998"])
def test_mnist_a_little(name):
    dataset = _mnist()
    net = zoo.NETS[name]
    model = zoo.build(name, seed=0)
    x, labels = dataset.train
    fit(
        model, (x[:2000], labels[:2000]), loss=net.loss(), optimizer=net.optimizer(),
        epochs=3, batch_size=net.batch_size, seed=0, verbose=0,
    )  # fmt: skip
    x, labels = dataset.test
    assert evaluate(model, (x[:1000], labels[:1000]))[1] > 0.85
