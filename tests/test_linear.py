"""linear and its backward passes, against the definition and PyTorch."""

import cases
import numpy as np
import pytest
from cases import machine
from checks import assert_equal, assert_near, frozen, rounding_bound, torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_ext import functional as F
from cnn_ext import reference

sizes = st.one_of(st.integers(1, 9), st.integers(1, 150))
matrix_orders = st.sampled_from(["contiguous", "transposed", "gaps", "negative"])


def lay_out(values, order):
    """Return an equal matrix in another memory order."""
    if order == "transposed":
        return np.asfortranarray(values)
    if order == "gaps":
        around = np.full(
            (values.shape[0], 2 * values.shape[1] + 1), np.nan, values.dtype
        )
        view = around[:, 1::2]
        view[...] = values
        return view
    if order == "negative":
        return values[::-1, ::-1].copy()[::-1, ::-1]
    return values


def passes(operators, x, weight, bias, grad_y):
    return (
        frozen(operators.linear, x, weight, bias),
        frozen(operators.linear_backward_input, grad_y, weight),
        frozen(operators.linear_backward_weight, grad_y, x),
        frozen(operators.linear_backward_bias, grad_y),
    )


def by_torch(x, weight, bias, grad_y):
    leaves = [
        None if a is None else torch.from_numpy(a.astype(np.float64)).requires_grad_()
        for a in (x, weight, bias)
    ]
    y = torch.nn.functional.linear(*leaves)
    y.backward(torch.from_numpy(grad_y.astype(np.float64)))
    grads = [None if leaf is None else leaf.grad.numpy() for leaf in leaves]
    return [y.detach().numpy(), *grads]


def check(n, c, k, with_bias, dtype, orders, kernel_set, threads, seed):
    rng = np.random.default_rng(seed)
    for content in (cases.integers, cases.normals):
        x, weight = content(rng, (n, c), dtype), content(rng, (k, c), dtype)
        grad_y = content(rng, (n, k), dtype)
        bias = content(rng, k, dtype) if with_bias else None
        plain = x, weight, bias, grad_y
        expected = passes(reference, *plain)
        magnitudes = passes(reference, *(None if a is None else abs(a) for a in plain))
        if torch is not None and content is cases.integers:
            for ours, theirs in zip(expected, by_torch(*plain), strict=True):
                assert theirs is None or np.array_equal(ours, theirs)
        views = [
            lay_out(a, o) for a, o in zip((x, weight, grad_y), orders, strict=True)
        ]
        with machine(kernel_set, threads):
            actual = passes(F, *views[:2], bias, views[2])
        for i, terms in enumerate((c, k, n, n)):
            if content is cases.integers:
                assert_equal(actual[i], expected[i], dtype)
            bound = rounding_bound(terms, magnitudes[i], dtype)
            assert_near(actual[i], expected[i], bound)


random_cases = given(
    st.one_of(st.just(0), sizes),
    sizes,
    sizes,
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
    st.tuples(matrix_orders, matrix_orders, matrix_orders),
    st.sampled_from(cases.KERNEL_SETS),
    st.sampled_from(cases.THREADS),
    st.integers(0, 2**32 - 1),
)


@random_cases
def test_random_cases(n, c, k, with_bias, dtype, orders, kernel_set, threads, seed):
    check(n, c, k, with_bias, dtype, orders, kernel_set, threads, seed)


@pytest.mark.slow
@settings(settings.get_profile("thorough"))
@random_cases
def test_2000_random_cases(
    n, c, k, with_bias, dtype, orders, kernel_set, threads, seed
):
    check(n, c, k, with_bias, dtype, orders, kernel_set, threads, seed)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("c", [1, 15, 17, 128, 1024, 1030, 2500])
@pytest.mark.parametrize("k", [1, 7, 8, 9, 60])
def test_one_row(c, k, dtype, kernel_set):
    """Rows and columns that do not fill vectors, and more than one task of both."""
    for threads in (1, 2):
        orders = ("contiguous",) * 3
        check(1, c, k, k % 2 == 0, dtype, orders, kernel_set, threads, c + k)


def test_nothing_beside_one_row_is_written():
    from cnn_ext import _row

    for c, k in ((5, 3), (33, 9), (700, 30)):
        x, w, g = np.ones((1, c)), np.ones((k, c)), np.ones((1, k))
        around = np.full(k * c + 40, 7.0)
        for size, run in (
            (k, lambda to: _row.forward(x, w, None, to.reshape(1, k))),  # noqa: B023
            (c, lambda to: _row.backward_input(g, w, to.reshape(1, c))),  # noqa: B023
            (k * c, lambda to: _row.backward_weight(g, x, to.reshape(k, c))),  # noqa: B023
        ):
            around[:] = 7
            run(around[20 : 20 + size])
            assert (around[:20] == 7).all() and (around[20 + size :] == 7).all()
            assert (around[20 : 20 + size] != 7).all() or c == 7 or k == 7


def test_a_fused_relu_keeps_nan():
    from cnn_ext import _row

    x = np.array([[1.0, np.nan]])
    y = np.empty((1, 2))
    _row.forward(x, np.array([[-1.0, 0.0], [0.0, 1.0]]), None, y, True)
    assert np.isnan(y).all()
    _row.forward(np.ones((1, 2)), np.array([[-1.0, 0.0], [0.0, 1.0]]), None, y, True)
    np.testing.assert_array_equal(y, [[0, 1]])
