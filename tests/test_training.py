"""fit and evaluate: same bits, curves, interruption, data that cannot be."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading

import numpy as np
import pytest

import cnn_ext
from cnn_ext import training
from cnn_ext.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, ScaledTanh
from cnn_ext.losses import CrossEntropy, SquaredError
from cnn_ext.optimizers import SGD
from cnn_ext.sequential import Sequential
from cnn_ext.training import History, evaluate, fit


def bars(n=90, seed=0, dtype=np.float32):
    """Images of horizontal, vertical and diagonal bars, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    x = rng.normal(0, 0.3, (n, 1, 8, 8))
    for image, label in zip(x[:, 0], labels, strict=True):
        if label == 0:
            image[rng.integers(1, 7)] += 1
        elif label == 1:
            image[:, rng.integers(1, 7)] += 1
        else:
            image[np.arange(8), np.arange(8)] += 1
    return x.astype(dtype), labels


def small(seed=0, dtype=np.float32):
    own = {"seed": np.random.default_rng(seed), "dtype": dtype}
    return Sequential(
        Conv2d(1, 4, 3, **own), ReLU(), MaxPool2d(2), Flatten(), Linear(36, 3, **own)
    )


def train(model, data, **options):
    options = {"epochs": 2, "batch_size": 16, "seed": 0, "verbose": 0} | options
    options.setdefault("optimizer", SGD(0.1, momentum=0.9))
    return fit(model, data, **options)


def bits(model):
    return [p.value.tobytes() for p in model.parameters()]


# -- learning ------------------------------------------------------------------------


def test_it_learns():
    model = small()
    history = train(model, bars(), epochs=8, validation=bars(60, 1))
    assert len(history) == 8
    assert history.train_loss[-1] < 0.3 < history.train_loss[0]
    assert history.validation_accuracy[-1] > 0.9
    assert len(history.validation_loss) == len(history.seconds) == 8
    assert min(history.seconds) > 0
    loss, accuracy = evaluate(model, bars(60, 1))
    assert loss == pytest.approx(history.validation_loss[-1], rel=1e-5)
    assert accuracy == history.validation_accuracy[-1]


def test_squared_error_learns_too():
    rng = np.random.default_rng(0)
    model = Sequential(*small().layers.values(), ScaledTanh(), Linear(3, 3, seed=rng))
    loss = SquaredError(on=1, off=-1)
    train(model, bars(), loss=loss, optimizer=SGD(0.02, momentum=0.9), epochs=25)
    value, accuracy = evaluate(model, bars(60, 1), loss=loss)
    assert accuracy > 0.9
    x, labels = bars(60, 1)
    codes = np.where(labels[:, np.newaxis] == np.arange(3), 1, -1).astype(np.float32)
    assert evaluate(model, (x, codes), loss=loss) == (value, accuracy)


def test_the_same_seed_gives_the_same_bits():
    results = []
    for seed in (0, 0, 1, np.random.default_rng(0)):
        model = small()
        history = train(model, bars(), seed=seed)
        results.append((bits(model), history.train_loss))
    assert results[0] == results[1] == results[3]
    assert results[0] != results[2]


def test_the_same_bits_for_any_number_of_threads():
    before, results = cnn_ext.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            cnn_ext.set_num_threads(threads)
            model = small()
            train(model, bars(), epochs=1)
            results.append(bits(model))
    finally:
        cnn_ext.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_a_step_is_forward_loss_backward_and_update():
    x, labels = bars(10)
    model, by_hand, optimizer = small(), small(), SGD(0.1, momentum=0.9)
    order = np.random.default_rng(3).permutation(10)
    for rows in (order[:4], order[4:8], order[8:]):  # the last batch is partial
        _, grad_y = CrossEntropy()(by_hand.forward(x[rows], train=True), labels[rows])
        by_hand.backward(grad_y)
        optimizer.step(by_hand.parameters())
    train(model, (x, labels), epochs=1, batch_size=4, seed=3)
    assert bits(model) == bits(by_hand)


def test_a_second_fit_goes_on():
    whole, halves = small(), small()
    train(whole, bars(), epochs=2, seed=np.random.default_rng(5))
    optimizer, rng = SGD(0.1, momentum=0.9), np.random.default_rng(5)
    for _ in range(2):
        train(halves, bars(), optimizer=optimizer, epochs=1, seed=rng)
    assert bits(whole) == bits(halves)


def test_float64():
    model = small(dtype=np.float64)
    history = train(model, bars(dtype=np.float64))
    assert all(p.value.dtype == p.grad.dtype == np.float64 for p in model.parameters())
    assert history.train_loss[1] < history.train_loss[0]


def test_channels_last_memory():
    x, labels = bars()
    x = np.concatenate([x, x], axis=1)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    losses = []
    for images in (x, nhwc):
        rng = np.random.default_rng(0)
        layers = [
            Conv2d(2, 4, 3, seed=rng),
            ReLU(),
            Flatten(),
            Linear(144, 3, seed=rng),
        ]
        history = train(Sequential(*layers), (images, labels))
        losses.append(history.train_loss)
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_labels_may_be_ignored():
    x, labels = bars(40)
    labels = labels.copy()
    labels[16:] = -100
    model, other = small(), small()
    history = train(model, (x, labels), batch_size=1, epochs=1)
    assert history.train_loss[0] > 0
    # batches without a label do nothing at all
    order = [i for i in np.random.default_rng(0).permutation(40) if i < 16]
    optimizer = SGD(0.1, momentum=0.9)
    for i in order:
        y = other.forward(x[[i]], train=True)
        other.backward(CrossEntropy()(y, labels[[i]])[1])
        optimizer.step(other.parameters())
    assert bits(model) == bits(other)
    _, accuracy = evaluate(model, (x, labels))
    assert accuracy == evaluate(model, (x[:16], labels[:16]))[1]


# -- evaluating ----------------------------------------------------------------------


def test_evaluate_does_not_depend_on_batches():
    x, labels = bars(50)
    weight = np.array([1.0, 2.0, 0.5])
    model = small()
    for loss in (CrossEntropy(), CrossEntropy(weight), CrossEntropy(reduction="sum")):
        expected, _ = loss(model(x), labels)
        found = [
            evaluate(model, (x, labels), loss=loss, batch_size=b) for b in (1, 7, 99)
        ]
        for value, accuracy in found:
            assert value == pytest.approx(expected, rel=1e-5)
            assert accuracy == (model.predict(x) == labels).mean()
    assert evaluate(model, (x, labels)) == evaluate(model, (x, labels))


def test_no_classes_no_accuracy():
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    model = Sequential(Linear(3, 1, seed=0))
    t = x.sum(axis=1, keepdims=True)
    value, accuracy = evaluate(model, (x, t), loss=SquaredError())
    assert value > 0
    assert math.isnan(accuracy)
    history = train(model, (x, t), loss=SquaredError(), validation=(x, t))
    assert "accuracy" not in history.line(0)


def test_all_labels_ignored():
    x, labels = bars(5)
    value, accuracy = evaluate(small(), (x, np.full_like(labels, -100)))
    assert math.isnan(value)
    assert math.isnan(accuracy)


# -- telling -------------------------------------------------------------------------


def test_lines(capsys):
    train(small(), bars(), verbose=2, validation=bars(20, 1))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss 0.")
    assert " validation loss " in lines[1]
    assert " accuracy " in lines[1]
    assert lines[1].endswith(" s")
    assert err == ""
    train(small(), bars(), verbose=0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("installed", [True, False])
def test_progress_bar_on_a_terminal(installed, capsys, monkeypatch):
    if installed:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(small(), bars(), verbose=1, epochs=1)
    out, err = capsys.readouterr()
    assert out.startswith("epoch 1/1  loss ")
    assert ("epoch 1/1:" in err) == installed


def test_history_as_text():
    history = History([0.5, 0.25], [0.75, 0.5], [0.8, 0.925], [1.0, 2.0])
    assert str(history).splitlines()[1] == (
        "epoch 2  loss 0.2500  validation loss 0.5000  accuracy 92.50 %  2.0 s"
    )


# -- stopping ------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(
        FloatingPointError, match=r"became nan in epoch 1/2, batch \d+: "
    ):
        train(small(), bars(), optimizer=SGD(1e30))
    model = small()
    model.layers["4"].weight.value[0] = 1e38
    before = bits(model)
    with pytest.raises(FloatingPointError, match="epoch 1/2, batch 0: a smaller learn"):
        train(model, bars())
    assert bits(model) == before  # no step was made


class _Interrupting(SGD):
    """Ctrl-C in the midst of the third update."""

    updates = 0

    def step(self, parameters):
        self.updates += 1
        if self.updates == 3:
            signal.raise_signal(signal.SIGINT)
        super().step(parameters)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interruption_never_splits_an_update():
    model, expected = small(), small()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(model, bars(), optimizer=_Interrupting(0.1, momentum=0.9))
    assert signal.getsignal(signal.SIGINT) is handler
    x, labels = bars()
    order = np.random.default_rng(0).permutation(90)
    optimizer = SGD(0.1, momentum=0.9)
    for i in range(0, 48, 16):
        y = expected.forward(x[order[i : i + 16]], train=True)
        expected.backward(CrossEntropy()(y, labels[order[i : i + 16]])[1])
        optimizer.step(expected.parameters())
    assert bits(model) == bits(expected)


class _Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_a_destructor_swallows_comes_again():
    batches = 0

    def augment(x, rng):
        nonlocal batches
        batches += 1
        if batches == 3:
            _Dying()
        return x

    with pytest.raises(KeyboardInterrupt):
        train(small(), bars(), augment=augment)
    assert batches == 3


def test_training_in_another_thread():
    model, expected = small(), small()
    thread = threading.Thread(target=train, args=(model, bars()))
    thread.start()
    thread.join()
    train(expected, bars())
    assert bits(model) == bits(expected)


def test_a_failing_optimizer_puts_the_handler_back():
    class Broken(SGD):
        def step(self, parameters):
            raise ZeroDivisionError

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        train(small(), bars(), optimizer=Broken(0.1))
    assert signal.getsignal(signal.SIGINT) is handler


# -- bad data ------------------------------------------------------------------------

X, T = bars(12)
NAN = X.copy()
NAN[7, 0, 1, 1] = np.nan
INF = X.copy()
INF[3, 0, 1, 1] = -np.inf
BAD = [
    (
        (X.astype(np.uint8), T),
        {},
        TypeError,
        r"x is uint8, .*x.astype\(numpy.float32\)",
    ),
    (
        (X.astype(np.float64), T),
        {},
        TypeError,
        "x is float64, the model works in float32",
    ),
    ((X.astype(np.float16), T), {}, TypeError, "x is float16"),
    ((X > 0, T), {}, TypeError, "x is bool"),
    ((X[:, 0], T), {}, ValueError, r"takes \(N, C, H, W\); grey images get.*newaxis"),
    ((X[0], T[:1]), {}, ValueError, r"x has shape \(1, 8, 8\)"),
    (
        (X.reshape(12, -1), T),
        {},
        ValueError,
        r"x has shape \(12, 64\), the model takes",
    ),
    ((X[:, :, :6], T), {}, ValueError, "layer 4, Linear.*has 36 inputs, x has"),
    ((X, T[:5]), {}, ValueError, r"targets \(5,\); there must be one target for each"),
    ((X[:0], T[:0]), {}, ValueError, "there are no samples"),
    ((NAN, T), {}, ValueError, "x contains nan, first in sample 7"),
    ((INF, T), {}, ValueError, "x contains -inf, first in sample 3"),
    ((X, T + 1), {}, ValueError, "data: label 3 at index .* out of range"),
    ((X, T.astype(float)), {}, TypeError, "data: labels must be integers"),
    ((X, T / np.where(T == 2, np.nan, 1)), {}, ValueError, "data: labels contain NaN"),
    ((X, T[:, None]), {}, ValueError, r"labels must have shape \(12,\), got \(12, 1\)"),
    ((X, T.tolist()), {}, TypeError, "targets must be a numpy array, got list"),
    ((X.tolist(), T), {}, TypeError, "x must be a numpy array, got list"),
    (X, {}, TypeError, r"must be a pair \(x, targets\), got ndarray"),
    ((X, T, T), {}, TypeError, "must be a pair"),
    ((X, T), {"validation": (X, T - 1)}, ValueError, "validation: label -1"),
    ((X, T), {"validation": (NAN, T)}, ValueError, "validation: x contains nan"),
    ((X, T), {"epochs": 0}, ValueError, "epochs must be at least 1"),
    ((X, T), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ((X, T), {"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
    ((X, T), {"seed": -3}, ValueError, "seed must not be negative"),
    (
        (X, T),
        {"loss": CrossEntropy(reduction="none")},
        ValueError,
        "must be one number",
    ),
    ((X, T), {"loss": "mse"}, TypeError, "loss must be a Loss, got str"),
    (
        (X, T.astype(np.float32)),
        {"loss": SquaredError()},
        ValueError,
        "target has shape",
    ),
]


@pytest.mark.parametrize("data, options, kind, message", BAD)
def test_bad_data_change_nothing(data, options, kind, message):
    model = small()
    with pytest.raises(kind, match=message) as caught:
        train(model, data, **options)
    assert "\n" not in str(caught.value)
    assert bits(model) == bits(small())
    if not options:
        with pytest.raises(kind, match=message):
            evaluate(model, data)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameters to train"):
        train(Sequential(Flatten()), (X, np.zeros(12, int)))
    with pytest.raises(TypeError, match="model must be a Model, got function"):
        train(small, (X, T))


def test_data_are_not_changed():
    x, labels = bars(20)
    x.flags.writeable = labels.flags.writeable = False
    train(small(), (x, labels), validation=(x, labels))


def test_progress_says_nothing_without_a_terminal():
    with training._progress("epoch", 3, 1) as advance:
        advance(1.0)
