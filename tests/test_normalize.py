"""Batch normalisation: its statistics against float64, fused activations, in place."""

import numpy as np
import pytest
from cases import lay_out, machine
from checks import POISONS, assert_near, assert_same_bits

from cnn_ext import _normalize

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ORDERS = pytest.mark.parametrize("order", ["contiguous", "channels_last"])
SHAPES = [
    (2, 3, 4, 5),
    (3, 1, 3, 3),
    (5, 16, 7, 9),
    (4, 24, 16, 17),  # 2 or more pixels fill whole vectors
    (16, 5, 24, 24),
    (2, 37, 31, 33),  # several blocks and tasks
    (7, 70, 1, 1),
    (1, 2, 150, 151),  # a plane of several blocks
]
ACTIVATIONS = {0: lambda v: v, 1: lambda v: np.maximum(v, 0)}
ACTIVATIONS[2] = lambda v: np.clip(v, 0, 6)


def by_channel(values):
    return np.asarray(values).reshape(1, -1, 1, 1)


def problem(shape, dtype, order, offset=0.0):
    rng = np.random.default_rng(0)
    x = lay_out((3 * rng.standard_normal(shape) + offset).astype(dtype), order)
    grad_y = lay_out(rng.standard_normal(shape).astype(dtype), order)
    weight = rng.uniform(0.5, 2, shape[1]).astype(dtype)
    bias = rng.standard_normal(shape[1]).astype(dtype)
    return x, grad_y, weight, bias


def exact(x, weight, bias, eps):
    """Mean, variance, result before the activation: longdouble where there is one."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(axis=(0, 2, 3))
    variance = ((wide - by_channel(mean)) ** 2).mean(axis=(0, 2, 3))
    normal = (wide - by_channel(mean)) / np.sqrt(by_channel(variance) + eps)
    return mean, variance, normal, normal * by_channel(weight) + by_channel(bias)


@DTYPES
@ORDERS
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(shape, order, dtype, kernel_set):
    x, grad_y, weight, bias = problem(shape, dtype, order, 2.0)
    eps = 1e-5
    mean, variance, normal, before = exact(x, weight, bias, eps)
    unit = np.finfo(dtype).eps
    for activation, function in ACTIVATIONS.items():
        stats, y = np.full((5, shape[1]), np.nan), np.empty_like(x)
        for poison in POISONS:
            y[...] = poison
            _normalize.train(x, weight, bias, y, stats, eps, activation)
            # each value takes a few roundings of numbers of size |a| (|x| + |mean|)
            size = np.abs(by_channel(weight / np.sqrt(variance + eps))) * (
                np.abs(x) + np.abs(by_channel(mean))
            ) + np.abs(by_channel(bias))
            assert_near(y, function(before), 4 * unit * size)
        assert_near(stats[0], mean, 4 * unit * np.sqrt(variance))
        assert_near(stats[1], variance, 8 * unit * variance)

        # which values the activation stopped is read off y: at its corners either
        # side is right
        stopped = (y <= 0) if activation else np.zeros(shape, bool)
        stopped |= (y >= 6) if activation == 2 else False
        error = np.where(stopped, 0, grad_y).astype(np.longdouble)
        sums = error.sum(axis=(0, 2, 3))
        products = (error * normal).sum(axis=(0, 2, 3))
        count = x.size / shape[1]
        scale = by_channel(weight / np.sqrt(variance + eps))
        expected = scale * (
            error - by_channel(sums / count) - normal * by_channel(products / count)
        )
        size = np.abs(error).sum(axis=(0, 2, 3))
        of_products = (np.abs(error) * (np.abs(normal) + 1)).sum(axis=(0, 2, 3))
        for target in (np.empty_like(x), grad_y.copy(order="K"), x.copy(order="K")):
            grad_weight, grad_bias = np.full((2, shape[1]), np.nan, dtype)
            given_x = target if (target == x).all() else x
            given_grad = target if (target == grad_y).all() else grad_y
            _normalize.backward(
                given_grad, given_x, stats, target, grad_weight, grad_bias, activation
            )
            # sums of blocks of 512 rows, eight at a time
            assert_near(grad_bias, sums, 40 * unit * size)
            assert_near(grad_weight, products, 40 * unit * of_products)
            bound = scale * (
                np.abs(error)
                + by_channel(size / count)
                + np.abs(normal) * by_channel(of_products / count)
            )
            assert_near(target, expected, 20 * unit * np.abs(bound))
        # parameters' gradients alone, and none of them
        again = np.full(shape[1], np.nan, dtype)
        _normalize.backward(grad_y, x, stats, None, again, None, activation)
        assert_same_bits(again, grad_weight)


@DTYPES
@ORDERS
def test_without_parameters_and_with_a_residual(order, dtype, kernel_set):
    shape = (3, 19, 8, 9)
    x, residual, _, _ = problem(shape, dtype, order)
    plain = exact(x, np.ones(19), np.zeros(19), 1e-3)[3]
    for activation, function in ACTIVATIONS.items():
        for place in (np.empty_like(x), residual.copy(order="K")):
            stats = np.empty((5, 19))
            given = place if (place == residual).all() else residual
            _normalize.train(x, None, None, place, stats, 1e-3, activation, given)
            expected = function(plain + residual)
            assert_near(place, expected, 30 * np.finfo(dtype).eps)
        mean, variance = stats[0].astype(dtype), stats[1].astype(dtype)
        for place in (np.empty_like(x), x.copy(order="K"), residual.copy(order="K")):
            given_x = place if (place == x).all() else x
            given = place if (place == residual).all() else residual
            _normalize.infer(
                given_x, mean, variance, None, None, place, 1e-3, activation, given
            )
            assert_near(place, expected, 60 * np.finfo(dtype).eps)


@DTYPES
@ORDERS
def test_errors_are_joined_and_stopped_as_they_are_summed(order, dtype, kernel_set):
    for shape in ((3, 19, 8, 9), (2, 37, 31, 33), (1, 2, 150, 151)):
        x, one, weight, bias = problem(shape, dtype, order)
        rng = np.random.default_rng(1)
        two, residual = (
            lay_out((2 * rng.standard_normal(shape)).astype(dtype), order)
            for _ in range(2)
        )
        for activation in ACTIVATIONS:
            y, stats = np.empty_like(x), np.empty((5, shape[1]))
            _normalize.train(x, weight, bias, y, stats, 1e-5, activation, residual)
            for more in (None, two):
                if more is None and not activation:
                    continue  # then grad_y is the error
                given = one if more is None else one + more
                stopped = y <= 0 if activation else np.zeros(shape, bool)
                stopped |= (y >= 6) if activation == 2 else False
                error = lay_out(np.where(stopped, 0, given).astype(dtype), order)
                expected, wanted = np.empty_like(x), np.empty((2, shape[1]), dtype)
                _normalize.backward(error, x, stats, expected, *wanted)
                for place in range(4 if more is None else 3):
                    arrays = [one.copy(order="K"), None, y.copy(order="K")]
                    arrays[1] = None if more is None else more.copy(order="K")
                    free = np.full_like(x, np.nan)
                    target = [free, arrays[0], arrays[1], arrays[2]][place]
                    if target is None:
                        continue
                    grad_x = np.full_like(x, np.nan)
                    grads = np.full((2, shape[1]), np.nan, dtype)
                    _normalize.backward(
                        arrays[0], x, stats, grad_x, *grads, activation,
                        target, arrays[2] if activation else None, arrays[1],
                    )  # fmt: skip
                    assert_same_bits(target, error)
                    assert_same_bits(grad_x, expected)
                    assert_same_bits(grads, wanted)


@DTYPES
@ORDERS
def test_what_goes_past_the_caches_is_the_same(order, dtype, kernel_set):
    for shape in ((1, 64, 96, 100), (1, 24, 160, 150)):  # over 2 MiB, of whole lines
        past_the_caches(shape, order, dtype, kernel_set)


def past_the_caches(shape, order, dtype, kernel_set):
    x, residual, weight, bias = problem(shape, dtype, order)
    mean, variance = np.zeros(shape[1], dtype), np.ones(shape[1], dtype)
    for activation in ACTIVATIONS:
        args = mean, variance, weight, bias
        there = x.copy(order="K")
        _normalize.infer(there, *args, there, 1e-5, activation, residual)
        room = np.full(x.size + 64, np.nan, dtype)
        start = -room.ctypes.data % 64 // x.itemsize
        for at in (start, start + 1):
            flat = room[at : at + x.size]
            if order == "contiguous":
                y = flat.reshape(shape)
            else:
                y = flat.reshape(1, *shape[2:], shape[1]).transpose(0, 3, 1, 2)
            room[...] = np.nan
            _normalize.infer(x, *args, y, 1e-5, activation, residual)
            assert_same_bits(y, there)
            assert np.isnan(room[:at]).all()
            assert np.isnan(room[at + x.size :]).all()


@ORDERS
def test_statistics_do_not_cancel(order, kernel_set):
    """Means that are large, first rows that are no example of the others."""
    rng = np.random.default_rng(0)
    shape = (6, 20, 40, 41)
    wild = rng.normal(0, 1, shape)
    wild[0, :, :3] += 1e4
    step = rng.normal(0, 1e-2, shape)
    step[3:] += 100
    for values in (
        rng.normal(1e4, 1, shape),
        wild,
        step,
        rng.normal(-1e3, 1e-1, shape),
    ):
        x = lay_out(values.astype(np.float32), order)
        stats, y = np.empty((5, 20)), np.empty_like(x)
        _normalize.train(x, None, None, y, stats, 1e-5)
        wide = x.astype(np.float64)
        np.testing.assert_allclose(stats[1], wide.var(axis=(0, 2, 3)), rtol=2e-6)
        np.testing.assert_allclose(
            stats[0],
            wide.mean(axis=(0, 2, 3)),
            atol=1e-6 * np.sqrt(stats[1].max()),
            rtol=1e-15,
        )


@ORDERS
def test_same_bits_on_any_number_of_threads(order, kernel_set):
    x, grad_y, weight, bias = problem((9, 33, 40, 41), np.float32, order)
    seen = set()
    for threads in (1, 2, 3, 7):
        with machine(kernel_set, threads):
            stats, y, grad_x = np.empty((5, 33)), np.empty_like(x), np.empty_like(x)
            grads = np.empty((2, 33), np.float32)
            _normalize.train(x, weight, bias, y, stats, 1e-5, 1)
            _normalize.backward(grad_y, x, stats, grad_x, *grads, 1)
            arrays = (stats, y, grad_x, grads)
            seen.add(b"".join(array.tobytes() for array in arrays))
    assert len(seen) == 1


@DTYPES
def test_not_finite_is_seen(dtype, kernel_set):
    for order in ("contiguous", "channels_last"):
        for bad in (np.nan, np.inf, -np.inf):
            x, _, weight, bias = problem((3, 18, 6, 7), dtype, order)
            x[1, 5, 2, 3] = bad
            stats, y = np.empty((5, 18)), np.zeros_like(x)
            _normalize.train(x, weight, bias, y, stats, 1e-5)
            assert np.isnan(y[:, 5]).all()
            assert np.isfinite(np.delete(y, 5, axis=1)).all()


@DTYPES
def test_running_values_and_folding(dtype):
    rng = np.random.default_rng(0)
    stats = np.zeros((5, 4))
    stats[:2] = rng.uniform(1, 2, (2, 4))
    old = rng.uniform(1, 2, (2, 4)).astype(dtype)
    new = np.empty_like(old)
    _normalize.follow(stats, *old, *new, 0.25, 10)
    tolerance = {"rtol": 4 * np.finfo(dtype).eps}
    np.testing.assert_allclose(new[0], 0.75 * old[0] + 0.25 * stats[0], **tolerance)
    unbiased = stats[1] * 10 / 9
    np.testing.assert_allclose(new[1], 0.75 * old[1] + 0.25 * unbiased, **tolerance)
    weight = rng.standard_normal((4, 3, 2, 2)).astype(dtype)
    bias, gain, offset = rng.standard_normal((3, 4)).astype(dtype)
    folded = np.empty_like(weight), np.empty_like(bias)
    for parts in ((bias, gain, offset), (None, None, None)):
        b, g, o = (np.zeros(4) if part is None else part for part in parts)
        g = np.ones(4) if parts[1] is None else g
        _normalize.fold(weight, parts[0], *new, *parts[1:], 1e-3, *folded)
        scale = g / np.sqrt(new[1].astype(np.float64) + 1e-3)
        np.testing.assert_allclose(
            folded[0], weight * scale.reshape(-1, 1, 1, 1), **tolerance
        )
        np.testing.assert_allclose(
            folded[1], (b - new[0].astype(np.float64)) * scale + o, rtol=1e-5, atol=1e-6
        )
