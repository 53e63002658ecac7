"""Frozen models: the same outputs as the model they were made of, for good."""

import threading

import numpy as np
import pytest

from cnn_ext import (
    BatchNorm2d,
    Conv2d,
    DepthwiseConv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Model,
    ReLU,
    ReLU6,
    Sequential,
    get_num_threads,
    set_num_threads,
    zoo,
)


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def trained(model, shape, dtype=np.float32):
    """The model, its running statistics no longer 0 and 1."""
    model = model.astype(dtype)
    model.vjp(random((4, *shape), dtype, 9))
    return model


def residual():
    x = Input((16, 10, 10))
    h = ReLU()(BatchNorm2d(16)(Conv2d(16, 16, 3, padding=1, seed=1)(x)))
    h = BatchNorm2d(16)(Conv2d(16, 16, 3, padding=1, bias=False, seed=2)(h))
    h = ReLU()(h + x)
    h = ReLU6()(BatchNorm2d(16)(DepthwiseConv2d(16, 3, padding=1, seed=3)(h)))
    return Model(x, Linear(1600, 5, seed=4)(Flatten()(h)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3])
def test_a_graph_with_everything_that_is_folded(n, dtype):
    model = trained(residual(), (16, 10, 10), dtype)
    x = random((n, 16, 10, 10), dtype)
    bound = 1e-5 if dtype == np.float32 else 1e-12
    expected = model(x)
    y = model.freeze(x.shape)(x)
    assert y.dtype == dtype
    assert np.abs(y - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("name", ["lenet5", "cifar-quick", "resnet20", "mobilenet-v2"])
def test_nets_of_the_zoo(name):
    model = zoo.build(name, seed=0)
    model = trained(model, model.input_shape)
    x = random((2, *model.input_shape))
    expected = model(x)
    y = model.freeze(x.shape)(x)
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def separable_blocks():
    """Depthwise convolutions between others, with and without a sum behind them."""
    x = Input((24, 40, 40))
    h = ReLU6()(BatchNorm2d(96)(Conv2d(24, 96, 1, bias=False, seed=1)(x)))
    h = ReLU6()(BatchNorm2d(96)(DepthwiseConv2d(96, 3, padding=1, seed=2)(h)))
    h = ReLU()(BatchNorm2d(24)(Conv2d(96, 24, 1, seed=3)(h)) + x)
    h = ReLU()(DepthwiseConv2d(24, 5, padding=2, stride=2, seed=4)(h))
    h = Conv2d(24, 32, 1, seed=5)(h)
    return Model(x, Linear(32 * 400, 5, seed=6)(Flatten()(h)))


@pytest.mark.parametrize("n", [8, 18, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_chains_take_some_images_at_a_time(n, dtype):
    model = trained(separable_blocks(), (24, 40, 40), dtype)
    x = random((n, 24, 40, 40), dtype)
    frozen = model.freeze(x.shape)
    assert " > " in frozen.plan.summary()
    if dtype == np.float32:  # what is between the convolutions is not the plan's
        assert frozen.plan.memory < 0.6 * n * 96 * 1600 * x.itemsize
    expected = model(x)
    bound = 1e-5 if dtype == np.float32 else 1e-12
    y = frozen(x)
    assert np.abs(y - expected).max() <= bound * np.abs(expected).max()
    before = get_num_threads()
    try:
        set_num_threads(1 if before > 1 else 2)
        np.testing.assert_array_equal(frozen(x), y)
    finally:
        set_num_threads(before)


def test_later_changes_do_not_show():
    model = Sequential(Conv2d(3, 20, 3, seed=0), ReLU(), MaxPool2d(2))
    x = random((2, 3, 9, 9))
    frozen, expected = model.freeze(x.shape), model(x)
    for parameter in model.parameters():
        parameter.value[...] = np.nan
    first = frozen(x)
    np.testing.assert_array_equal(first, expected)
    second = frozen(-x)
    np.testing.assert_array_equal(first, expected)  # a result is the caller's own
    assert not np.array_equal(first, second)


def test_any_memory_order_and_several_threads():
    model = trained(residual(), (16, 10, 10))
    x = random((2, 16, 10, 10))
    frozen = model.freeze(x.shape)
    expected = frozen(x)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(frozen(last), expected)
    wrong: list[int] = []

    def work():
        wrong.extend(k for k in range(20) if not np.array_equal(frozen(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_errors():
    model = Sequential(Conv2d(3, 4, 3, seed=0))
    frozen = model.freeze((2, 3, 9, 9))
    assert "(2, 3, 9, 9)" in repr(frozen)
    with pytest.raises(ValueError, match=r"the plan is for float32 of shape \(2, 3"):
        frozen(random((1, 3, 9, 9)))
    with pytest.raises(TypeError, match="x must be a numpy array, got list"):
        frozen([[1.0]])
    with pytest.raises(ValueError, match="layer 0"):
        model.freeze((2, 4, 9, 9))
