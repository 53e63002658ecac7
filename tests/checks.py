"""Comparisons that the tests of operators share."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

POISONS = (np.nan, 1e30)


def optional(module: str) -> Any:
    """Return an optional library, or None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError:
        return None


torch = optional("torch")
if torch is not None:
    torch.set_num_threads(1)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Shapes, dtypes and every bit agree: signs of zeros and kinds of NaN as well."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    words = f"u{actual.itemsize}"
    differ = np.ascontiguousarray(actual).view(words) != np.ascontiguousarray(
        expected
    ).view(words)
    if differ.any():
        where = tuple(int(i[0]) for i in np.nonzero(differ))
        raise AssertionError(
            f"{int(differ.sum())} of {differ.size} elements differ, first at {where}: "
            f"{actual[where]!r}, expected {expected[where]!r}"
        )


def assert_equal(actual: Any, expected: Any, dtype: Any) -> None:
    """The numbers are exactly those expected; -0 equals 0, NaN equals NaN."""
    assert actual.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(actual, expected, strict=False)


def assert_near(actual: Any, expected: Any, bound: Any) -> None:
    """Elementwise |actual - expected| <= bound, and shapes agree."""
    actual = np.asarray(actual)
    assert actual.shape == np.shape(expected)
    error = np.abs(actual.astype(np.float64) - expected)
    excess = np.asarray(error > bound) | np.isnan(error)
    if excess.any():
        where = tuple(int(i[0]) for i in np.nonzero(excess))
        raise AssertionError(
            f"{int(excess.sum())} of {excess.size} elements are off, first at {where}: "
            f"{actual[where]!r}, expected {np.asarray(expected)[where]!r}, "
            f"bound {np.broadcast_to(bound, actual.shape)[where]:.3g}"
        )


def rounding_bound(terms: int, magnitude: Any, dtype: Any) -> Any:
    """Return what rounding can do to a sum of `terms` products, in any order.

    `magnitude` is the sum of the products' absolute values: each term passes at most
    `terms` roundings (Higham, Accuracy and Stability, 3.1); the products and a bias
    add two more, and the bound of first order is rounded up by one.
    """
    return (terms + 3) * np.finfo(dtype).eps * magnitude


def frozen(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `function` and check that it left its inputs as they were."""
    before = [a.tobytes() if isinstance(a, np.ndarray) else None for a in args]
    result = function(*args, **kwargs)
    for array, bytes_before in zip(args, before, strict=True):
        assert bytes_before is None or array.tobytes() == bytes_before, "input changed"
    return result


def overwrites(
    function: Any,
    *args: Any,
    order: str = "contiguous",
    bound: Any = None,
    **kwargs: Any,
) -> Any:
    """Call `function`, and again with poisoned outputs; return the result.

    Whatever was in `out` before, the bits must be the same, and nothing beside it may
    be written. They are also those of the result without `out`, unless a `bound` says
    how far that may be off, for `out` may lie in another order and be summed in one.
    """
    result = frozen(function, *args, **kwargs)
    expected = result[0] if isinstance(result, tuple) else result
    first = None
    for poison in POISONS:
        out, around = guarded(expected.shape, expected.dtype, poison, order)
        given = function(*args, out=out, **kwargs)
        given = given[0] if isinstance(given, tuple) else given
        assert given is out or given.base is not None
        assert given.__array_interface__["data"] == out.__array_interface__["data"]
        if bound is None:
            assert_same_bits(out, expected)
        else:
            assert_near(out, expected, bound)
        first = out.copy() if first is None else first
        assert_same_bits(out, first)
        out[...] = poison
        assert_same_bits(around, np.full_like(around, poison))
    return result


def guarded(shape: Any, dtype: Any, poison: float, order: str):
    """Return a poisoned array and the larger poisoned one that it is a view of."""
    if order == "contiguous" or len(shape) < 3:
        around = np.full(int(np.prod(shape)) + 64, poison, dtype)
        return around[32:-32].reshape(shape), around
    single = len(shape) == 3
    n, c, h, w = (1, *shape) if single else shape
    if order == "channels_last":
        around = np.full(n * h * w * c + 64, poison, dtype)
        view = around[32:-32].reshape(n, h, w, c).transpose(0, 3, 1, 2)
    else:
        around = np.full((n + 1, 2 * c, h + 2, 2 * w + 3), poison, dtype)
        view = around[:n, 1::2, 1 : 1 + h, 1 : 1 + 2 * w : 2]
        if order == "negative":
            view = view[:, ::-1, ::-1, ::-1]
    return (view[0] if single else view), around


OUT_ORDERS = ("contiguous", "channels_last", "gaps", "negative")
