"""Compiled steps of optimisers, clipping, cross-entropy: every kernel set and place."""

import gc
import weakref

import numpy as np
import pytest
from cases import machine
from checks import assert_near, assert_same_bits

from cnn_ext import _softmax, _update
from cnn_ext.clipping import clip_grad_norm, clip_grad_value
from cnn_ext.layers import Parameter
from cnn_ext.losses import CrossEntropy
from cnn_ext.optimizers import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
)

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
OPTIMIZERS = pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(0.1),
        lambda: SGD(0.1, 0.9, weight_decay=0.01),
        lambda: SGD(0.1, 0.9, nesterov=True),
        lambda: Adam(0.01, weight_decay=0.1),
        lambda: AdamW(0.01),
        lambda: RMSprop(0.01, momentum=0.5, centered=True),
        lambda: RMSprop(0.01),
    ],
    ids=lambda make: repr(make()),
)
SHAPES = [(1,), (), (7, 3), (0, 4), (16,), (17,), (33, 5, 3), (41_000,), (2, 2)]


def parameters(dtype, place=lambda array: array):
    rng = np.random.default_rng(0)
    found = []
    for shape in SHAPES:
        value, grad = rng.standard_normal((2, *shape)).astype(dtype)
        found.append(Parameter(place(np.asarray(value))))
        found[-1].grad = place(np.asarray(grad))
    return found


def run(make, found, steps=3):
    optimizer = make()
    for _ in range(steps):
        optimizer.step(found)
    return [p.value for p in found]


@DTYPES
@OPTIMIZERS
def test_float64_says_the_same(make, dtype, kernel_set):
    """Each rule is tested against its formula in float64; here against itself."""
    wide = [Parameter(np.asarray(p.value, np.float64)) for p in parameters(dtype)]
    for p, q in zip(wide, parameters(dtype), strict=True):
        p.grad = np.asarray(q.grad, np.float64)
    with machine("baseline"):
        expected = run(make, wide)
    for got, wanted in zip(run(make, parameters(dtype)), expected, strict=True):
        assert_near(got, wanted, 40 * np.finfo(dtype).eps * (1 + np.abs(wanted)))


@DTYPES
@OPTIMIZERS
def test_same_bits_for_any_threads_and_any_place(make, dtype, kernel_set):
    """A parameter's neighbours in the list, or in memory, change nothing."""

    def apart(array):  # with gaps
        around = np.full(tuple(2 * n for n in array.shape), np.nan, array.dtype)
        view = around[(..., *[slice(None, None, 2)] * array.ndim)]
        view[...] = array
        return view

    expected = run(make, parameters(dtype))
    for threads in (2, 3, 7):
        with machine(kernel_set, threads):
            for got, wanted in zip(run(make, parameters(dtype)), expected, strict=True):
                assert_same_bits(got, wanted)
    for place in (apart, lambda array: array.T.copy().T):
        for got, wanted in zip(
            run(make, parameters(dtype, place)), expected, strict=True
        ):
            assert_same_bits(got, wanted)
    # one by one, and in one arena
    alone = parameters(dtype)
    for p in alone:
        run(make, [p])
    total = sum(p.value.size for p in alone)
    values, grads = np.full((2, total + 8), np.nan, dtype)
    arena, at = parameters(dtype), 3
    for p in arena:
        for name, memory in (("value", values), ("grad", grads)):
            view = memory[at : at + p.value.size].reshape(p.value.shape)
            view[...] = getattr(p, name)
            setattr(p, name, view)
        at += p.value.size
    run(make, arena)
    for p, q, wanted in zip(alone, arena, expected, strict=True):
        assert_same_bits(p.value, wanted)
        assert_same_bits(q.value, wanted)
    assert np.isnan(values[:3]).all() and np.isnan(values[at:]).all()


def test_parameters_and_arrays_that_change_between_steps():
    optimizer = SGD(1.0, momentum=0.5)
    p, q = Parameter(np.zeros(3)), Parameter(np.zeros(2))
    for parameter in (p, q):
        parameter.grad = np.ones(parameter.shape)
    optimizer.step([p, q])
    optimizer.step([q, p])  # another order: velocities stay with their parameters
    np.testing.assert_array_equal(p.value, -2.5)
    optimizer.step([p])
    np.testing.assert_array_equal(p.value, -4.25)
    p.value = np.zeros(4)  # another array, of another shape: it starts anew
    p.grad = np.ones(4, np.float32)  # read as the parameter's dtype
    optimizer.step([p])
    np.testing.assert_array_equal(p.value, -1)
    p.value.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only|not writ"):
        optimizer.step([q, p])
    np.testing.assert_array_equal(q.value, -2.5)
    q.value = np.zeros(2)
    optimizer.momentum = 0.0  # settings may change too
    optimizer.step([q])
    optimizer.momentum = 0.5
    optimizer.step([q])
    np.testing.assert_array_equal(q.value, -1 - (1 + 0.5 * 1.5))
    gone = weakref.ref(p)
    del p, parameter
    gc.collect()
    assert gone() is None  # the optimiser keeps no parameter alive


@DTYPES
def test_clipping(dtype, kernel_set, threads):
    rng = np.random.default_rng(0)
    with machine(kernel_set, threads):
        for scale in (1.0, 1e-30, 1e18):
            found = [Parameter(np.zeros(s, dtype)) for s in SHAPES]
            for p in found:
                p.grad = np.asarray(scale * rng.standard_normal(p.shape)).astype(dtype)
            before = [p.grad.astype(np.float64) for p in found]
            norm = np.sqrt(sum((g**2).sum() for g in before))
            factor = 0.5 * norm / (norm + 1e-6)
            assert clip_grad_norm(found, 0.5 * norm) == pytest.approx(norm, rel=1e-12)
            for p, g in zip(found, before, strict=True):
                np.testing.assert_allclose(p.grad, g * factor, rtol=1e-6, atol=1e-44)
            limit = 0.1 * scale
            for p, g in zip(found, before, strict=True):
                p.grad = g.astype(dtype)
            clip_grad_value(found, limit)
            for p, g in zip(found, before, strict=True):
                np.testing.assert_allclose(p.grad, np.clip(g, -limit, limit), rtol=1e-6)
    p = Parameter(np.zeros(40, dtype))
    p.grad = np.full(40, np.nan, dtype)
    clip_grad_value([p], 1)
    assert np.isnan(clip_grad_norm([p], 1)) and np.isnan(p.grad).all()
    p.grad = np.ones((40, 2), dtype)[:, 0]
    clip_grad_norm([p], 1)
    np.testing.assert_allclose(p.grad, 1 / np.sqrt(40), rtol=1e-6)


def test_sums_of_squares_in_one_order(kernel_set):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (5, 70_000, 3)]
    seen = set()
    for threads in (1, 2, 3, 7):
        with machine(kernel_set, threads):
            seen.add(_update.sum_squares(arrays))
    assert len(seen) == 1
    assert _update.sum_squares([]) == 0


def exact_cross_entropy(y, target, weight, smoothing, ignored):
    """Losses of samples and the gradient of their sum, row by row."""
    y = y.astype(np.float64)
    losses, grads = np.zeros(len(y)), np.zeros(y.shape)
    weight = np.ones(y.shape[1]) if weight is None else np.asarray(weight)
    for i, label in enumerate(target):
        if label == ignored:
            continue
        log_p = y[i] - y[i].max()
        log_p -= np.log(np.exp(log_p).sum())
        wanted = smoothing / y.shape[1] * weight
        wanted[label] += (1 - smoothing) * weight[label]
        losses[i] = -(wanted * log_p).sum()
        grads[i] = np.exp(log_p) * wanted.sum() - wanted
    return losses, grads


@DTYPES
@pytest.mark.parametrize("classes", [1, 2, 10, 16, 100, 1003])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(classes, smoothing, weighted, dtype, kernel_set):
    rng = np.random.default_rng(0)
    y = (5 * rng.standard_normal((33, classes))).astype(dtype)
    y[3] *= 100  # nothing overflows
    target = rng.integers(0, classes, 33)
    target[[4, 7]] = -100
    y[4] = np.nan  # of no consequence: the sample is ignored
    weight = rng.uniform(0.5, 2, classes) if weighted else None
    with np.errstate(invalid="ignore"):
        losses, grads = exact_cross_entropy(y, target, weight, smoothing, -100)
    bits = None
    for threads in (1, 3):
        with machine(kernel_set, threads):
            loss = CrossEntropy(weight, smoothing, reduction="none")
            got, grad_y = loss(y, target)
            assert got.dtype == grad_y.dtype == dtype
            bound = 8 * np.finfo(dtype).eps
            assert_near(got, losses, bound * (20 + np.abs(losses)) * 100)
            assert_near(grad_y, grads, bound * 40)
            assert bits in (None, grad_y.tobytes())
            bits = grad_y.tobytes()
            value, grad_y = CrossEntropy(weight, smoothing)(y, target)
            counted = target[target >= 0]
            count = len(counted) if weight is None else weight[counted].sum()
            assert value == pytest.approx(losses.sum() / count, rel=1e-4)
            assert_near(grad_y, grads / count, bound * 40)


def test_labels_of_any_integers_and_axes(kernel_set):
    rng = np.random.default_rng(0)
    y = rng.standard_normal((4, 5, 2, 3)).astype(np.float32)
    target = rng.integers(0, 5, (4, 2, 3))
    value, grad_y = CrossEntropy()(y, target)
    flat = np.moveaxis(y, 1, -1).reshape(-1, 5)
    losses, grads = exact_cross_entropy(flat, target.ravel(), None, 0.0, -100)
    assert value == pytest.approx(losses.mean(), rel=1e-6)
    np.testing.assert_allclose(
        np.moveaxis(grad_y, 1, -1).reshape(-1, 5), grads / 24, atol=1e-7
    )
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        assert CrossEntropy()(y, target.astype(dtype))[0] == value
        assert CrossEntropy()(y[::-1], target[::-1].astype(dtype))[0] == pytest.approx(
            value, rel=1e-6
        )
    wrong = target.astype(np.uint64)
    wrong[1, 0, 2] = 2**64 - 100  # not -100
    with pytest.raises(ValueError, match=r"label 18446744073709551516 at index \(1, 0"):
        CrossEntropy()(y, wrong)
    grads = np.zeros((1, 3))
    sums = _softmax.cross_entropy(
        np.zeros((1, 3)), np.array([3]), None, 0.0, -100, True, grads, np.zeros(1)
    )
    assert sums is None and not grads.any()
