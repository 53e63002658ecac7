"""No operator touches memory beside its arrays, nor reads what it has not written."""

import os
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
from checks import assert_equal

import cnn_ext
from cnn_ext import functional as F
from cnn_ext import reference

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="protects pages as Linux does"
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    places = [str(HERE), str(Path(cnn_ext.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("at_end", [True, False])
def test_the_fences_stand(at_end):
    """An access one element outside of such an array ends the process."""
    program = (
        "import ctypes, numpy as np, guard_pages as g\n"
        f"a = g.Fences().array((5, 7), 'float32', 'contiguous', {at_end})\n"
        "a[...] = 1\n"
        f"at = a.ctypes.data + {'a.nbytes' if at_end else '-1'}\n"
        "print('inside', flush=True)\n"
        "ctypes.string_at(at, 1)\n"
        "print('outside')\n"
    )
    done = run("-c", program)
    assert done.stdout.strip() == "inside"
    assert done.returncode < 0


def test_no_operator_leaves_its_arrays():
    done = run(str(HERE / "guard_pages.py"))
    last = done.stdout.strip().splitlines()[-1:]
    assert done.returncode == 0, (last, done.stderr)
    assert last == ["fine"]


@pytest.mark.slow
def test_no_operator_leaves_its_arrays_in_random_cases():
    done = run(str(HERE / "guard_pages.py"), "300")
    assert done.returncode == 0, (done.stdout[-1000:], done.stderr)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", cases.CONV_CASES)
def test_scratch_memory_is_written_before_it_is_read(name, strict, kernel_set):
    """A call on NaN leaves NaN in the memory that the next call works in."""
    case, rng = cases.CONV_CASES[name], np.random.default_rng(0)
    x = cases.integers(rng, case.x_shape, np.float32)
    weight = cases.integers(rng, case.weight_shape, np.float32)
    grad_y = cases.integers(rng, case.geometry.y_shape, np.float32)
    options = case.options
    calls = {
        "conv2d": (x, weight),
        "conv2d_backward_input": (grad_y, weight, x.shape),
        "conv2d_backward_weight": (grad_y, x, weight.shape),
    }
    spoiled = [np.full_like(a, np.nan) for a in (x, weight, grad_y)]
    with cases.machine(kernel_set, 1, strict):
        for operator, arguments in calls.items():
            with np.errstate(all="ignore"):
                F.conv2d(spoiled[0], spoiled[1], **options)
                F.conv2d_backward_input(spoiled[2], spoiled[1], x.shape, **options)
                F.conv2d_backward_weight(
                    spoiled[2], spoiled[0], weight.shape, **options
                )
            actual = getattr(F, operator)(*arguments, **options)
            expected = getattr(reference, operator)(*arguments, **options)
            if strict:
                assert_equal(actual, expected, np.float32)
            else:
                np.testing.assert_allclose(actual, expected, rtol=0, atol=0.02)
