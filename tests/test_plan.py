"""Plans: the same results as layer by layer, in memory stated before."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import cnn_ext
from cnn_ext import zoo
from cnn_ext.layers import (
    ELU,
    GELU,
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    HardSwish,
    Input,
    Layer,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    Parameter,
    ReLU,
    ReLU6,
    ScaledTanh,
    SeparableConv2d,
    Sigmoid,
    SiLU,
    Softmax,
    Subsample2d,
    Tanh,
    Upsample,
)
from cnn_ext.model import Model
from cnn_ext.plan import PLANS, Plan
from cnn_ext.plan import run as plan_run
from cnn_ext.plan.arena import ALIGNMENT
from cnn_ext.sequential import Sequential

F64 = {"dtype": np.float64}
DRAWN = {"weight_init": "default", "bias_init": "default"}


class Scale(Layer):
    """A layer of one's own: a gain a feature; it saves its input and its output."""

    def __init__(self, size, dtype=np.float64):
        super().__init__()
        self.size = size
        self.gain = Parameter(np.linspace(0.5, 1.5, size).astype(dtype))

    def _gain(self, x):
        return self.gain.value.reshape(1, -1, *(1,) * (x.ndim - 2))

    def forward(self, x, train=False):
        y = self._gain(x) * x
        return y, (x, y)

    def backward(self, grad_y, saved):
        x, y = saved
        axes = (0, *range(2, x.ndim))
        np.testing.assert_array_equal(y, self._gain(x) * x)  # what was saved stands
        return self._gain(x) * grad_y, {"gain": (grad_y * x).sum(axis=axes)}

    def output_shape(self, input_shape):
        return tuple(input_shape)


class Both(Layer):
    """A join of one's own: the product of two."""

    joins = True

    def forward(self, x, train=False):
        return x[0] * x[1], x

    def backward(self, grad_y, saved):
        return (grad_y * saved[1], grad_y * saved[0]), {}

    def output_shape(self, input_shape):
        return input_shape[0]


def _graph():
    """Shared layers, sums, a concatenation, custom layers, values read often."""
    rng = np.random.default_rng(0)
    own = {"seed": rng, **F64}
    x = Input((3, 8, 8))
    shared = Conv2d(16, 16, 3, padding=1, name="shared", **own)
    norm = BatchNorm2d(16, name="norm", **own, **DRAWN)
    a = ReLU()(Conv2d(3, 16, 3, padding=1, **own)(x))
    b = ReLU()(norm(shared(a)) + a)
    c = shared(b) + b + a
    d = Both()(Scale(16)(c), Sigmoid()(a))
    e = Concat()(d, x, Tanh()(c))
    f = MaxPool2d(2)(ReLU6()(e))
    g = Add()(f, f, AvgPool2d(2)(e))
    y = Linear(35 * 16, 4, **own)(Scale(35 * 16)(Flatten()(g)))
    return Model(x, y)


def _residual():
    """Normalised sums of all kinds: fused, shared by two readers, the output."""
    own = {"seed": np.random.default_rng(0), **F64}
    x = Input((4, 6, 6))

    def normed(h, width, size=3):
        h = Conv2d(h.shape[0], width, size, padding=size // 2, bias=False, **own)(h)
        return BatchNorm2d(width, **own, **DRAWN)(h)

    a = ReLU6()(normed(x, 16))
    b = ReLU()(normed(a, 16) + normed(a, 16, 1))
    c = normed(b, 16)
    d = c + b + c
    e = ReLU6()(d + normed(d, 16))
    f = e + normed(e, 16, 1)  # three errors come back to it
    g = ReLU()(normed(f, 16) + f)
    return Model(x, normed(g, 3) + normed(g, 3, 1) + normed(f, 3, 1))


def _chain(shape, *layers):
    rng = np.random.default_rng(0)
    for layer in layers:
        for parameter in layer.parameters.values():
            drawn = rng.uniform(-0.5, 0.5, parameter.shape)
            parameter.value = drawn.astype(parameter.value.dtype)
    return Sequential(*layers, input_shape=shape)


def _chains():
    conv = lambda *a, **k: Conv2d(*a, **k, **F64)  # noqa: E731
    image = (3, 9, 8)
    yield "conv relu pool", _chain(image, conv(3, 5, 3), ReLU(), MaxPool2d(2))
    yield "norm relu pool", _chain(image, BatchNorm2d(3, **F64), ReLU(), MaxPool2d(2))
    yield "relu6 pool", _chain(image, conv(3, 17, 3), ReLU6(), MaxPool2d(3, 2))
    yield "relu first", _chain(image, ReLU(), conv(3, 4, 1))
    yield "pool first", _chain(image, MaxPool2d(2), AvgPool2d(2), Tanh())
    yield "flatten only", _chain(image, Flatten())
    yield "flatten first", _chain(image, Flatten(), Linear(216, 17, **F64), ReLU())
    yield "depthwise", _chain(
        image, conv(3, 16, 3), DepthwiseConv2d(16, 3, **F64), BatchNorm2d(16, **F64),
        ReLU6(), GlobalAvgPool(),
    )  # fmt: skip
    yield "separable", _chain(image, SeparableConv2d(3, 18, 3, **F64), ReLU())
    yield "strides", _chain(
        image, conv(3, 16, 5, 2, 2, bias=False), BatchNorm2d(16, affine=False, **F64),
        conv(16, 3, 3, groups=1, dilation=2, padding=2), ReLU(), Flatten(),
    )  # fmt: skip
    for unit in (
        ELU, GELU, HardSwish, LeakyReLU, ReLU6, ScaledTanh, Sigmoid, SiLU, Tanh,
    ):  # fmt: skip
        yield unit.__name__, _chain(image, conv(3, 16, 3), unit(), conv(16, 2, 3))
    yield "others", _chain(
        image, conv(3, 16, 3), LocalResponseNorm(3), Upsample(2),
        Subsample2d(16, **F64), ConvTranspose2d(16, 3, 2, 2, **F64),
        AdaptiveAvgPool2d(3), Flatten(), Softmax(),
    )  # fmt: skip


MODELS = {"graph": _graph(), "residual": _residual(), **dict(_chains())}
ZOO = {name: zoo.build(name, seed=0) for name in zoo.NETS}


def _relative(a, b):
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)


def _images(model, n, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *model.input_shape)).astype(model.dtype or "f8")


def _layer_by_layer(model, x, seed=2):
    """y, an error, the gradients, and the model after it, without any plan."""
    model = model.copy()
    y, saved = model._graph.forward(x, train=True)
    grad_y = np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)
    return y, grad_y, *model._graph.backward(grad_y, saved, True), model


@pytest.mark.parametrize(
    "name, n", [(name, n) for name in MODELS for n in (1, 3)] + [(n, 2) for n in ZOO]
)
def test_a_plan_computes_what_the_layers_compute(name, n):
    model = (MODELS | ZOO)[name].astype(np.float64)
    x = _images(model, n)
    y, grad_y, grad_x, grads, after = _layer_by_layer(model, x)
    inference = model._graph.forward(x, train=False)[0]
    assert _relative(model(x), inference) < 1e-12

    actual, pullback = model.vjp(x)
    assert _relative(actual, y) < 1e-11
    results = [pullback(grad_y), pullback(grad_y)]
    results.append(pullback(grad_y, input_gradient=False))
    again = model.copy()  # running means have moved on: no matter in training
    again.forward(x, train=True)
    results.append((again.backward(grad_y), {
        key: p.grad for key, p in again.named_parameters()
    }))  # fmt: skip
    for actual_x, actual_grads in results:
        if actual_x is not None:
            assert _relative(actual_x, grad_x) < 1e-9
        assert list(actual_grads) == [key for key, _ in model.named_parameters()]
        for key, grad in grads.items():
            assert _relative(actual_grads[key], grad) < 1e-9, key
    for (key, buffer), (_, expected) in zip(
        model.named_buffers(), after.named_buffers(), strict=True
    ):
        assert _relative(buffer.value, expected.value) < 1e-11, key
    assert len(model._plans) > 0


def _random_graph(seed):
    """A graph in which any layer may follow any, and any value be read again."""
    rng = np.random.default_rng(seed)
    own = {"seed": rng, **F64}
    x = Input((3, 6, 6))
    values = [x]
    shared = {}

    def pick(same=None):
        fits = [v for v in values if same is None or v.shape == same]
        return fits[-1 - min(int(rng.geometric(0.6)) - 1, len(fits) - 1)]

    for _ in range(int(rng.integers(4, 16))):
        h = pick()
        c = h.shape[0]
        kind = rng.integers(11)
        if kind <= 2:
            key = c, int(rng.choice([2, 16, 20]))
            conv = Conv2d(*key, int(rng.choice([1, 3])), padding="same", **own)
            h = shared.setdefault(key, conv)(h)
        elif kind == 3:
            h = shared.setdefault(c, BatchNorm2d(c, **own, **DRAWN))(h)
        elif kind <= 5:
            h = [ReLU, ReLU6, Tanh][rng.integers(3)]()(h)
        elif kind == 6 and h.shape[1] > 2:
            h = [MaxPool2d(2, 1), AvgPool2d(2, 1), MaxPool2d(2)][rng.integers(3)](h)
        elif kind == 7:
            h = h + pick(h.shape)
        elif kind == 8:
            others = [v for v in values if v.shape[1:] == h.shape[1:]]
            h = Concat()(h, others[rng.integers(len(others))])
        elif kind == 9:
            h = Both()(h, pick(h.shape))
        else:
            h = Scale(c)(h)
        values.append(h)
    return Model(x, values[-1] if values[-1] is not x else Tanh()(x))


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed):
    model = _random_graph(seed)
    x = _images(model, 1 + seed % 3)
    y, grad_y, grad_x, grads, _ = _layer_by_layer(model, x)
    assert _relative(model(x), model._graph.forward(x, False)[0]) < 1e-11
    actual, pullback = model.copy().vjp(x)
    assert _relative(actual, y) < 1e-10
    for _ in range(2):
        actual_x, actual_grads = pullback(grad_y)
        assert _relative(actual_x, grad_x) < 1e-8
        for key, grad in grads.items():
            assert _relative(actual_grads[key], grad) < 1e-8, key
    run = model._run(x, True)
    _, actual_grads = run.backward(grad_y, False)
    for key, grad in grads.items():
        assert _relative(actual_grads[key], grad) < 1e-8, key


def test_what_is_fused():
    def steps(model, n, train):
        return [s.what for s in model.plan((n, *model.input_shape), train).steps]

    lenet = zoo.build("lenet5", seed=0)
    assert steps(lenet, 2, False) == [
        "conv2d + relu", "max_pool2d", "conv2d + relu", "max_pool2d",
        "copy to planes", "linear + relu", "linear + relu", "linear",
    ]  # fmt: skip
    assert steps(lenet, 2, True)[:4] == ["conv2d", "max_pool2d", "relu", "conv2d"]
    resnet = zoo.build("resnet20", seed=0)
    train = steps(resnet, 4, True)
    assert (
        train.count("batch norm + relu") == train.count("batch norm + add + relu") + 1
    )
    assert train.count("batch norm") == 2  # of the projections
    assert "relu" not in train and "add + relu" not in train
    inference = steps(resnet, 16, False)
    assert "batch norm + relu" not in inference
    assert inference.count("fold batch norm") == inference.count("conv2d") + (
        inference.count("conv2d + relu")
    )
    # few images: less to multiply in the last maps than in their weights
    assert "batch norm + relu" in steps(resnet, 1, False)
    assert "dropout" not in steps(
        Sequential(Dropout(), ReLU(), input_shape=(2,)), 1, False
    )


def test_a_bias_before_a_pool_sums_the_windows_errors():
    model = _chain((2, 9, 9), Conv2d(2, 3, 3, **F64), MaxPool2d(3, 2), MaxPool2d(2))
    plan = model.plan((2, 2, 9, 9))
    (step,) = (s for s in plan.steps if s.what == "conv2d_backward_bias")
    assert step.args[0].shape == (2, 3, 1, 1)
    x = _images(model, 2)
    _, grad_y, _, grads, _ = _layer_by_layer(model, x)
    actual = model.vjp(x)[1](grad_y)[1]["0.bias"]
    np.testing.assert_allclose(actual, grads["0.bias"], rtol=1e-12)


def test_many_maps_lie_channels_last():
    plan = zoo.build("cifar-quick", seed=0).plan((2, 3, 32, 32), train=False)
    orders = {v.shape: v.last for step in plan.steps for v in step.writes}
    assert orders[2, 32, 32, 32] and orders[2, 64, 8, 8]
    assert "channels-last" in plan.summary()


# -- memory --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
@pytest.mark.parametrize("train", [True, False])
def test_the_memory_is_stated_before(name, train):
    model = zoo.build(name, seed=0)
    x = _images(model, 8)
    model._run(x[:1], train)  # whatever is made on a first pass only
    plan = model.plan(x.shape, train)
    assert model._plans.idle_bytes < plan.memory
    gc.collect()
    tracemalloc.start()
    run = plan.start(x)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # beside it: lists of calls, and views
    assert plan.memory <= held <= plan.memory + 4096 * len(plan.steps)
    if train:
        run.backward(np.ones_like(run.y), False)


def test_values_that_live_at_one_time_do_not_overlap():
    for name in ("lenet5", "mobilenet-v2"):
        plan = zoo.build(name, seed=0).plan((2, *zoo.NETS[name].input_shape))
        offsets = plan.layout.offsets
        assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
        apart = sum(-(-v.nbytes // ALIGNMENT) * ALIGNMENT for v in offsets)
        assert plan.memory < 0.75 * apart


def test_nothing_read_was_not_written():
    """Memory of other runs, or of none, does not matter: here it is all NaN."""
    models = [ZOO[name] for name in ("lenet5", "resnet20", "mobilenet-v2")]
    for model in (*models, *MODELS.values(), *map(_random_graph, range(10))):
        x = _images(model, 2)
        expected = model.copy().vjp(x)
        model, g = model.copy(), np.ones_like(expected[0])
        plan = model.plan(x.shape, dtype=x.dtype, input_gradient=True)
        run = plan.start(x)
        run._space._memory.view(np.uint8)[...] = 0xFF
        run.close()
        run = plan.start(x)
        np.testing.assert_array_equal(run.y, expected[0])
        grad_x, grads = run.backward(g, True)
        expected_x, expected_grads = expected[1](g)
        np.testing.assert_array_equal(grad_x, expected_x)
        for key, grad in grads.items():
            np.testing.assert_array_equal(grad, expected_grads[key], err_msg=key)


def test_a_limit_refuses_beforehand():
    model = zoo.build("lenet5", seed=0)
    plan = model.plan((64, 1, 28, 28))
    assert model.plan((64, 1, 28, 28), memory_limit=plan.memory) is plan
    with pytest.raises(MemoryError, match=r"training on float32 of shape \(64, 1, 28"):
        model.plan((64, 1, 28, 28), memory_limit=plan.memory - 1)
    tracemalloc.start()
    with pytest.raises(MemoryError, match=r"takes .* bytes, memory_limit is 1,000"):
        model.plan((5000, 1, 28, 28), memory_limit=1000)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_many_shapes_do_not_grow_memory(monkeypatch):
    monkeypatch.setattr(plan_run, "IDLE_BYTES", 1 << 20)
    model = Sequential(Conv2d(1, 16, 3, padding=1), ReLU(), GlobalAvgPool())
    for size in range(40, 100, 4):
        x = np.ones((2, 1, size, size), np.float32)
        model(x)
        y, pullback = model.vjp(x)
        pullback(y)
        del pullback
        (latest,) = [p.memory for p in list(model._plans._plans.values())[-1:]]
        assert len(model._plans) <= PLANS
        assert model._plans.idle_bytes <= max(1 << 20, latest)
    assert len(model._plans) == PLANS


def test_a_large_batch_is_released_when_another_follows(monkeypatch):
    monkeypatch.setattr(plan_run, "IDLE_BYTES", 1 << 20)
    model = Sequential(Conv2d(1, 16, 3, padding=1))
    model(np.ones((1, 1, 200, 200), np.float32))
    large = model._plans.idle_bytes
    assert large > 1 << 20
    model(np.ones((1, 1, 8, 8), np.float32))
    assert model._plans.idle_bytes < large / 100


# -- one plan, several runs ----------------------------------------------------------


def test_two_pullbacks_may_be_pending():
    model = _graph()
    batches = [_images(model, 2, seed) for seed in range(3)]
    expected = []
    for x in batches:
        y, pullback = model.vjp(x)
        expected.append((y, pullback(y)))
        del pullback
    pending = [model.vjp(x) for x in batches]
    model(batches[0])
    for (y, pullback), (expected_y, (grad_x, grads)) in zip(
        reversed(pending), reversed(expected), strict=True
    ):
        np.testing.assert_array_equal(y, expected_y)
        actual_x, actual = pullback(y)
        np.testing.assert_array_equal(actual_x, grad_x)
        for key, grad in grads.items():
            np.testing.assert_array_equal(actual[key], grad)


def test_results_are_the_callers_own():
    model = zoo.build("lenet5", seed=0)
    x = _images(model, 2)
    y, pullback = model.vjp(x)
    grad_x, grads = pullback(y)
    kept = copy.deepcopy((y, grad_x, grads))
    model.forward(2 * x, train=True)
    model.backward(y)
    other_y, other = model.vjp(2 * x)
    other(other_y)
    model(3 * x)
    pullback(2 * y)
    np.testing.assert_array_equal(y, kept[0])
    np.testing.assert_array_equal(grad_x, kept[1])
    for key, grad in grads.items():
        np.testing.assert_array_equal(grad, kept[2][key])
        assert grad.base is None


def test_memory_comes_back_when_the_pullback_goes():
    model = zoo.build("lenet5", seed=0)
    x = _images(model, 2)
    _, pullback = model.vjp(x)
    assert model._plans.idle_bytes == 0
    del pullback
    held = model._plans.idle_bytes
    assert held > 0
    for _ in range(3):
        model.vjp(x)
    assert model._plans.idle_bytes == held


def test_a_model_that_goes_takes_its_memory_with_it():
    model = zoo.build("lenet5", seed=0)
    x = _images(model, 2)
    model(x)
    _, pullback = model.vjp(x)
    plan = model.plan(x.shape)
    plan.start(x).backward(np.ones((2, 10), np.float32))
    spaces = [weakref.ref(space) for space in model._plans._idle._spaces]
    gone = weakref.ref(model)
    assert len(spaces) == 2
    gc.disable()
    try:
        del model, pullback, plan
        assert gone() is None
        assert not any(space() for space in spaces)
    finally:
        gc.enable()


def test_a_plan_in_hand_keeps_its_own_memory():
    model = zoo.build("lenet5", seed=0)
    x = _images(model, 2)
    model(x)
    plan = model.plan(x.shape)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
        for _ in range(2):
            run = plan.start(x)
            run.backward(np.ones((2, 10), np.float32))
            run.close()
            spaces = [weakref.ref(space) for space in plan._idle._spaces]
            assert len(spaces) == 1  # the other plan's went with it
        again = plan.start(x)
        assert again._space is spaces[0]()  # nothing was allocated
        del again, run, plan
        assert not any(space() for space in spaces)
    finally:
        gc.enable()


def test_x_is_not_held_after_the_run():
    import sys

    model = Sequential(Conv2d(1, 2, 3), Scale(2, np.float32))
    x = np.ones((1, 1, 5, 5), np.float32)
    before = sys.getrefcount(x)
    model(x)
    model.vjp(x)[1](np.ones((1, 2, 3, 3), np.float32))
    assert sys.getrefcount(x) == before


def test_threads_share_a_model():
    model = _graph()
    x = _images(model, 2)
    y, pullback = model.vjp(x)
    expected = y.tobytes(), pullback(y)[0].tobytes()
    inference = model(x).tobytes()
    model.plan(x.shape)
    failures = []

    def run():
        twin = {"running": None}
        for _ in range(20):
            y, pullback = model.vjp(x)
            twin["running"] = pullback
            found = y.tobytes(), pullback(y)[0].tobytes()
            if found != expected:
                failures.append(found)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(inference) == len(expected[0])


def test_x_may_lie_anyhow():
    model = _graph()
    x = _images(model, 4)
    plain = model.vjp(x[::2])
    for other in (
        x[::2].copy(),
        x[::2].transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
        np.flip(np.flip(x[::2], 3).copy(), 3),
        np.frombuffer(b"0" + x[::2].tobytes(), "u1")[1:].view("f8").reshape(2, 3, 8, 8),
    ):
        y, pullback = model.vjp(other)
        assert _relative(y, plain[0]) < 1e-12
        assert _relative(pullback(y)[0], plain[1](plain[0])[0]) < 1e-12
        assert y.flags.c_contiguous


# -- what may change between runs ----------------------------------------------------


def test_parameters_are_read_anew():
    model = zoo.build("digits", seed=0)
    x = _images(model, 3)
    conv = model.layers["0"]

    def check():
        expected, saved = model._graph.forward(x, train=True)
        y, pullback = model.vjp(x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-5)
        grads = model._graph.backward(y, saved, True)[1]
        actual = pullback(y)[1]
        assert actual.keys() == grads.keys()
        for key, grad in grads.items():
            assert _relative(actual[key], grad) < 1e-4

    check()
    conv.weight.value *= 2
    check()
    conv.weight.value = conv.weight.value / 4
    check()
    conv.weight = Parameter(conv.weight.value + 1)
    check()
    conv.weight.value = np.asfortranarray(conv.weight.value)
    check()
    conv.bias = None
    check()
    conv.bias = Parameter(np.ones(16, np.float32))
    check()
    with pytest.raises(TypeError, match=r"layer 0, Conv2d.*float64"):
        conv.weight.value = conv.weight.value.astype(np.float64)
        model(x)


def test_a_plan_in_hand_says_when_it_is_stale():
    model = Sequential(Linear(2, 3), input_shape=(2,))
    plan = model.plan((4, 2))
    model.layers["0"].weight.value = np.ones((5, 2), np.float32)
    with pytest.raises(RuntimeError, match="ask the model for a plan again"):
        plan.start(np.ones((4, 2), np.float32))


def test_folded_normalisation_follows_its_values():
    model = zoo.build("resnet20", seed=0).astype(np.float64)
    x = _images(model, 2)
    rng = np.random.default_rng(0)
    for _ in range(2):
        expected, _ = model._graph.forward(x, train=False)
        assert _relative(model(x), expected) < 1e-12
        for _, buffer in model.named_buffers():
            buffer.value += rng.uniform(0, 0.3, buffer.shape)
        for parameter in model.parameters():
            parameter.value *= 1.1


def test_dropout_draws_in_the_order_of_the_layers():
    model = Sequential(
        Linear(6, 8, seed=0), Dropout(0.5, seed=3), ReLU(), Dropout(0.3), Linear(8, 2)
    )
    x = np.ones((4, 6), np.float32)
    twin = model.copy()
    expected, _ = _with_rng(model)._graph.forward(x, True)
    y, _ = _with_rng(twin).vjp(x)
    np.testing.assert_array_equal(y, expected)
    again, _ = twin.vjp(x)
    assert (again != y).any()


def _with_rng(model):
    model.layers["3"].rng = np.random.default_rng(5)
    return model


def test_copies_and_pickles_make_their_own_plans():
    model = zoo.build("lenet5", seed=0)
    x = _images(model, 2)
    y = model(x)
    for twin in (model.copy(), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert len(twin._plans) == 0
        np.testing.assert_array_equal(twin(x), y)
    assert len(model._plans) == 1


# -- NaN, errors, what goes layer by layer -------------------------------------------


def test_nan_passes_where_it_passes_layer_by_layer():
    model = _chain((2, 6, 6), Conv2d(2, 3, 3, **F64), ReLU(), MaxPool2d(2), Flatten())
    x = _images(model, 2)
    x[0, 0, 1, 1] = np.nan
    y, grad_y, grad_x, _, _ = _layer_by_layer(model, x)
    actual, pullback = model.vjp(x)
    np.testing.assert_array_equal(actual, y)
    assert np.isnan(actual).any() and not np.isnan(actual).all()
    np.testing.assert_array_equal(pullback(grad_y)[0], grad_x)


@pytest.mark.parametrize("unit", [ReLU, ReLU6])
def test_maxima_before_the_activation_have_the_same_gradient(unit):
    """Ties below 0, at 0, above 6, and between: whoever wins."""
    rng = np.random.default_rng(0)
    x = rng.choice([-3.0, -1.0, 0.0, 0.5, 2.0, 6.0, 7.0, 9.0, np.nan], (40, 1, 6, 6))
    model = Sequential(unit(), MaxPool2d(3, 2, 1), input_shape=(1, 6, 6))
    y, grad_y, grad_x, _, _ = _layer_by_layer(model, x)
    actual, pullback = model.vjp(x)
    np.testing.assert_array_equal(actual, y)
    np.testing.assert_array_equal(pullback(grad_y)[0], grad_x)


def test_parameters_of_custom_layers_may_lie_anyhow():
    model = Sequential(Scale(6), Linear(6, 2, **F64), input_shape=(6,))
    model.layers["0"].gain.value = np.arange(12.0)[::2]
    x = np.ones((2, 6))
    expected, _ = model._graph.forward(x, False)
    np.testing.assert_array_equal(model(x), expected)
    assert len(model._plans) == 1


class Wrong(Scale):
    def __init__(self, size, what):
        super().__init__(size, np.float32)
        self.what = what

    def forward(self, x, train=False):
        y, saved = super().forward(x, train)
        if self.what == "raises":
            raise ValueError("no luck")
        return (y[:, :-1] if self.what == "shape" else y.astype("f8")), saved


@pytest.mark.parametrize(
    "what, kind, message",
    [
        ("raises", ValueError, r"layer 1, Wrong\(3, 'raises'\): no luck"),
        ("shape", ValueError, r"layer 1, .*forward returned shape \(2, 2\), it must"),
        ("dtype", TypeError, "layer 1, .*returned float64, the model works in"),
    ],
)
def test_errors_name_the_layer(what, kind, message):
    model = Sequential(Linear(2, 3), Wrong(3, what), Linear(3, 1))
    x = np.ones((2, 2), np.float32)
    for train in (True, False):
        with pytest.raises(kind, match=message):
            model.forward(x, train=train)
    model = Sequential(Linear(2, 3), Linear(3, 1))
    model(x)


def test_an_interrupted_way_back_is_not_gone_again():
    class Fails(Scale):
        def backward(self, grad_y, saved):
            raise KeyboardInterrupt

    model = Sequential(Fails(3), ReLU(), input_shape=(3,))
    x = np.ones((2, 3))
    y = model.forward(x, train=True)
    with pytest.raises(KeyboardInterrupt):
        model.backward(y)
    with pytest.raises(RuntimeError, match="needs a forward"):
        model.backward(y)
    model.forward(x, train=True)
    with pytest.raises(ValueError, match="grad_y has shape"):
        model.backward(y[:1])
    with pytest.raises(KeyboardInterrupt):
        model.backward(y)


def test_a_last_layer_may_return_anything():
    class Label(Scale):
        def forward(self, x, train=False):
            return x.argmax(axis=1), None

        def output_shape(self, input_shape):
            return ()

    model = Sequential(Linear(2, 3, seed=0), Label(3, np.float32))
    assert model(np.ones((4, 2), np.float32)).dtype == np.int64


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Sequential(Flatten()), np.arange(12).reshape(2, 3, 2)),
        lambda: (Sequential(Linear(2, 3)), np.ones((0, 2), np.float32)),
        lambda: (Sequential(Flatten()), np.ones((2, 3), ">f4")),
    ],
)
def test_what_has_no_plan_goes_layer_by_layer(make):
    model, x = make()
    expected, _ = model._graph.forward(x, train=False)
    np.testing.assert_array_equal(model(x), expected)
    assert len(model._plans) == 0


def test_plan_says_what_is_wrong():
    model = zoo.build("lenet5", seed=0)
    with pytest.raises(ValueError, match=r"the model takes \(N, 1, 28, 28\)"):
        model.plan((1, 28, 28))
    with pytest.raises(TypeError, match="dtype is float64, the model works in float32"):
        model.plan((1, 1, 28, 28), dtype=np.float64)
    with pytest.raises(ValueError, match=r"layer 0, Conv2d.*has 1 input channels, x"):
        Sequential(Conv2d(1, 2, 3)).plan((1, 2, 5, 5))
    with pytest.raises(ValueError, match="one value has no variance"):
        Sequential(BatchNorm2d(2)).plan((1, 2, 1, 1))
    plan = model.plan((1, 1, 28, 28))
    assert isinstance(plan, Plan) and repr(plan).startswith("Plan(training, float32")
    with pytest.raises(ValueError, match="the plan is for float32 of shape"):
        plan.start(np.ones((2, 1, 28, 28), np.float32))


def test_a_run_goes_back_once():
    model = zoo.build("lenet5", seed=0)
    x = _images(model, 2)
    run = model.plan(x.shape).start(x)
    with pytest.raises(ValueError, match="grad_y is float32 of shape"):
        run.backward(run.y[:1])
    with pytest.raises(ValueError, match="was made without input_gradient"):
        run.backward(run.y, True)
    run.backward(run.y)
    with pytest.raises(RuntimeError, match="this run is over"):
        run.backward(run.y)
    run = model.plan(x.shape, train=False).start(x)
    with pytest.raises(ValueError, match="was made without train"):
        run.backward(run.y)
    run.close()
    with pytest.raises(RuntimeError, match="this run is over"):
        run.backward(run.y)


# -- training ------------------------------------------------------------------------


def test_a_steady_step_allocates_little():
    """After the first steps large arrays have their places: no new memory."""
    resource = pytest.importorskip("resource")
    model = zoo.build("cifar-quick", seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3, 32, 32), dtype=np.float32)
    labels = rng.integers(0, 10, 200)
    seen = []

    class Watch(cnn_ext.callbacks.Callback):
        def after_step(self, run):
            if run.step > 2:
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                seen.append((tracemalloc.get_traced_memory(), faults))
            tracemalloc.reset_peak()

    tracemalloc.start()
    cnn_ext.fit(
        model, (x, labels), optimizer=cnn_ext.SGD(1e-3, 0.9), epochs=4, batch_size=50,
        seed=0, verbose=0, callbacks=[Watch()],
    )  # fmt: skip
    tracemalloc.stop()
    assert len(seen) >= 12
    for (before, _), (_, peak) in zip(
        (s[0] for s in seen[:-1]), (s[0] for s in seen[1:]), strict=True
    ):
        assert peak - before < 1 << 20
    # pages of 4 kB: 1 MB would be 256
    faults = np.diff([s[1] for s in seen])
    assert np.median(faults) < 64


def test_gradients_after_fit_are_the_parameters_own():
    model = zoo.build("digits", seed=0)
    x = _images(model, 20)
    labels = np.arange(20) % 10
    cnn_ext.fit(
        model, (x, labels), optimizer=cnn_ext.SGD(0.01), epochs=1, batch_size=8,
        verbose=0,
    )  # fmt: skip
    grads = [p.grad.copy() for p in model.parameters()]
    model._run(x[:8], True).backward(np.ones((8, 10), np.float32), False)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)


def test_a_workspace_is_aligned():
    plan = zoo.build("lenet5", seed=0).plan((2, 1, 28, 28))
    space = plan_run.Workspace(plan)
    assert space._memory.ctypes.data % ALIGNMENT == 0
    assert space._memory.nbytes + ALIGNMENT == plan.memory
