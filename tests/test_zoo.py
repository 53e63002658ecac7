"""Named nets: shapes, seeds, learning; the real figures where the data are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cnn_ext import zoo
from cnn_ext.gradcheck import gradcheck
from cnn_ext.layers import Subsample2d
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


@pytest.mark.parametrize("name", zoo.NETS)
def test_gradients(name):
    model = zoo.build(name, seed=0).astype(np.float64)
    x = np.random.default_rng(0).random((2, *model.input_shape))
    gradcheck(model, x, projections=1)


def test_lenet5_has_the_known_number_of_parameters():
    assert sum(p.size for p in zoo.build("lenet5").parameters()) == 61_706


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
        (("lenet6",), "unknown net 'lenet6'; known are lenet5, lenet5-1998, digits"),
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
