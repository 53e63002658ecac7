"""Passes element by element: exact to a few units in the last place, special values."""

import math

import numpy as np
import pytest
from cases import lay_out, machine
from checks import POISONS, assert_same_bits

from cnn_ext import _pointwise
from cnn_ext._pointwise import KINDS
from cnn_ext.layers import (
    ELU,
    GELU,
    Add,
    HardSwish,
    LeakyReLU,
    ReLU,
    ReLU6,
    ScaledTanh,
    Sigmoid,
    SiLU,
    Tanh,
)

INF, NAN = np.inf, np.nan
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LAYERS = [
    ReLU(), ReLU6(), LeakyReLU(0.3), ELU(0.7), SiLU(), HardSwish(), GELU(), Sigmoid(),
    Tanh(), ScaledTanh(),
]  # fmt: skip


def _wide(x):
    return x.astype(np.longdouble)


def _cdf(x):
    """The normal distribution function, of float64, one number at a time."""
    halves = [0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)]
    return _wide(np.array(halves))


def _sigmoid(x):
    return 1 / (1 + np.exp(-_wide(x)))


# kind: the function in more digits, bound in units of the last place
EXACT = {
    "sigmoid": (_sigmoid, 3),
    "tanh": (lambda x: np.tanh(_wide(x)), 3),
    "elu": (lambda x: np.where(x > 0, _wide(x), np.expm1(_wide(np.minimum(x, 0)))), 2),
    "silu": (lambda x: _wide(x) * _sigmoid(x), 4),
    "gelu": (lambda x: _wide(x) * _cdf(x), 4.5),
}


@DTYPES
@pytest.mark.parametrize("kind", EXACT)
def test_units_in_the_last_place(kind, dtype, kernel_set):
    if np.finfo(np.longdouble).eps > 1e-18 and dtype == np.float64:
        pytest.skip("no wider type to compare with")
    exact, bound = EXACT[kind]
    rng = np.random.default_rng(0)
    # to where the result, or the sigmoid in it, leaves the normal numbers
    far = {np.float32: 87.0, np.float64: 708.0}[dtype]
    if kind == "gelu":
        far = {np.float32: 12.5, np.float64: 6.0}[dtype]
    parts = [rng.standard_normal(2000) * 3, rng.standard_normal(2000) * 1e-3]
    if kind != "gelu":
        parts.append(10 ** rng.uniform(-30, 0, 500))
    x = np.concatenate([np.linspace(-far, far, 3001), *parts]).astype(dtype)
    x = x[np.abs(x) <= far]
    y = np.empty_like(x)
    _pointwise.activate(KINDS[kind], x, y, 1.0, 1.0)
    expected = exact(x)
    units = np.spacing(np.abs(expected).astype(dtype)).astype(np.longdouble)
    slack = bound
    if kind == "gelu" and dtype == np.float64:
        slack = 6 + 1.5 * x.astype(np.float64) ** 2  # the oracle's: erfc's argument
    assert (np.abs(_wide(y) - expected) <= slack * units).all()


@DTYPES
def test_tails_of_gelu(dtype, kernel_set):
    """Where Phi is small, its digits are still there."""
    x = np.array([-5, -8, -12, -20, -37], dtype)
    y = np.empty_like(x)
    _pointwise.activate(KINDS["gelu"], x, y)
    expected = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    normal = np.abs(expected) > np.finfo(dtype).tiny
    np.testing.assert_allclose(
        y[normal], expected[normal], rtol=max(1e-12, 8 * np.finfo(dtype).eps)
    )
    assert (np.abs(y[~normal]) <= np.finfo(dtype).tiny).all()


@DTYPES
def test_special_values(dtype, kernel_set):
    x = np.array([-INF, -1e4, -0.0, 0.0, 1e4, INF, NAN], dtype)
    for layer, expected in (
        (ReLU(), [0, 0, 0, 0, 1e4, INF, NAN]),
        (ReLU6(), [0, 0, 0, 0, 6, 6, NAN]),
        (LeakyReLU(0.5), [-INF, -5e3, -0.0, 0, 1e4, INF, NAN]),
        (ELU(2), [-2, -2, -0.0, 0, 1e4, INF, NAN]),
        (Sigmoid(), [0, 0, 0.5, 0.5, 1, 1, NAN]),
        (Tanh(), [-1, -1, -0.0, 0, 1, 1, NAN]),
        (SiLU(), [NAN, -0.0, -0.0, 0, 1e4, INF, NAN]),
        (GELU(), [NAN, -0.0, -0.0, 0, 1e4, INF, NAN]),
        (HardSwish(), [NAN, -0.0, -0.0, 0, 1e4, INF, NAN]),
    ):
        with np.errstate(all="raise"):
            y = layer(x)
        np.testing.assert_array_equal(y, np.array(expected, dtype), repr(layer))
        signed = ~np.isnan(y)
        np.testing.assert_array_equal(
            np.signbit(y)[signed], np.signbit(expected)[signed], repr(layer)
        )


@DTYPES
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_every_length_place_and_order(layer, dtype, kernel_set):
    """Ends of vectors; outputs in place of an input; any strides; nothing beside."""
    rng = np.random.default_rng(0)
    which = layer._pass
    for count in (*range(1, 40), 70_000):
        x = (3 * rng.standard_normal(count)).astype(dtype)
        grad_y = rng.standard_normal(count).astype(dtype)
        for poison in POISONS:
            around = np.full(count + 64, poison, dtype)
            y = around[32:-32]
            _pointwise.activate(which.kind, x, y, *which.forward)
            expected = layer(x[::-1])[::-1]
            assert_same_bits(y, expected)
            kept = y.copy() if which.keeps_y else x
            _pointwise.delta(which.kind, grad_y, kept, y, *which.backward)
            assert_same_bits(around[:32], np.full(32, poison, dtype))
            assert_same_bits(around[-32:], np.full(32, poison, dtype))
        grad_x = y.copy()
        for place in (grad_y.copy(), kept.copy()):
            parts = (place, kept) if place[0] == grad_y[0] else (grad_y, place)
            _pointwise.delta(which.kind, *parts, place, *which.backward)
            assert_same_bits(place, grad_x)
        place = x.copy()
        _pointwise.activate(which.kind, place, place, *which.forward)
        assert_same_bits(place, expected)
    x = (3 * rng.standard_normal((2, 5, 3, 7))).astype(dtype)
    grad_y = rng.standard_normal(x.shape).astype(dtype)
    y, pullback = layer.vjp(x)
    for order in ("channels_last", "gaps", "negative"):
        other, pull = layer.vjp(lay_out(x, order))
        assert_same_bits(other, y)
        assert_same_bits(pull(lay_out(grad_y, order))[0], pullback(grad_y)[0])


@DTYPES
def test_add(dtype, kernel_set, threads):
    rng = np.random.default_rng(0)
    with machine(kernel_set, threads):
        for shape in ((3,), (2, 5), (3, 16, 60, 61)):
            a, b = rng.standard_normal((2, *shape)).astype(dtype)
            y = np.full(shape, np.nan, dtype)
            for activation, expected in (
                (0, a + b),
                (1, np.maximum(a + b, 0)),
                (2, np.clip(a + b, 0, 6)),
            ):
                _pointwise.add(a, b, y, activation)
                np.testing.assert_array_equal(y, expected)
            place = a.copy()
            _pointwise.add(place, b, place)
            assert_same_bits(place, a + b)
    parts = (a, lay_out(b, "channels_last"), lay_out(a, "gaps"))
    assert_same_bits(Add().forward(parts)[0], (a + b) + a)
    with pytest.raises(TypeError, match="inputs are float"):
        other = np.float64 if dtype == np.float32 else np.float32
        Add().forward((a, b.astype(other)))


@DTYPES
def test_nan_passes_where_numbers_would_win(dtype, kernel_set):
    a = np.array([NAN, 1, -1, INF], dtype)
    b = np.array([1, NAN, 1, -INF], dtype)
    y = np.empty_like(a)
    for activation in (0, 1, 2):
        _pointwise.add(a, b, y, activation)
        np.testing.assert_array_equal(y, np.array([NAN, NAN, 0, NAN], dtype))


ORDERS = ["contiguous", "channels_last", "gaps", "negative"]


@DTYPES
@pytest.mark.parametrize("source", ORDERS)
@pytest.mark.parametrize("target", ORDERS)
def test_copy(source, target, dtype, kernel_set, threads):
    with machine(kernel_set, threads):
        for shape in ((2, 3, 5, 7), (3, 33, 17, 20), (1, 1, 1, 1), (0, 2, 3, 3)):
            rng = np.random.default_rng(0)
            x = rng.standard_normal(shape).astype(dtype)
            y = lay_out(np.full(shape, np.nan, dtype), target)
            _pointwise.copy(lay_out(x, source), y)
            assert_same_bits(y, x)
