"""What the package costs before any work is done: its import, and tiny calls."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cnn_ext
from cnn_ext import functional as F

HOME = Path(cnn_ext.__file__).parents[1]


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- import ---------------------------------------------------------------------------


def test_import_is_quick():
    """A few milliseconds, or 20 without cached bytecode; the bound is for slow days.

    The processor's time, not the clock's: others may keep the processor busy.
    """
    program = """
import time, numpy
begin = time.process_time()
import cnn_ext
print(time.process_time() - begin)
"""
    assert min(float(run(program)) for _ in range(3)) < 0.25


def test_import_loads_what_operators_need_and_no_more():
    program = """
import sys, numpy
before = set(sys.modules)
from cnn_ext import functional
print(*sorted(set(sys.modules) - before))
"""
    loaded = set(run(program).split())
    for name in ("layers", "model", "training", "checkpoint", "data", "reference"):
        assert f"cnn_ext.{name}" not in loaded
    assert not loaded & {"numpy.random", "argparse", "pathlib", "json", "platform"}


@pytest.mark.parametrize("name", cnn_ext.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cnn_ext, name) is not None
    assert name in dir(cnn_ext)


def test_names_come_from_where_type_checkers_look():
    """What is imported for type checkers is what the package gives out when asked."""
    tree = ast.parse(Path(cnn_ext.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    (block,) = (b for b in blocks if ast.unparse(b.test) == "TYPE_CHECKING")
    eager = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(cnn_ext.__all__) - eager - {"__version__"} == set(lazy)
    for name, module in lazy.items():
        if module is None:  # a module itself
            assert getattr(cnn_ext, name).__name__ == f"cnn_ext.{name}"
        else:
            home = getattr(cnn_ext, module)
            assert getattr(cnn_ext, name) is getattr(home, name)


def test_gradcheck_is_the_function_whatever_is_imported_first():
    program = "from cnn_ext.gradcheck import gradcheck; import cnn_ext; {}"
    assert "function" in run(program.format("print(cnn_ext.gradcheck)"))
    assert "function" in run("import cnn_ext.gradcheck; print(cnn_ext.gradcheck)")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cnn_ext' has no attribute 'Conv3d'"):
        _ = cnn_ext.Conv3d
    with pytest.raises(ImportError, match="cannot import name 'Conv3d'"):
        from cnn_ext import Conv3d  # noqa: F401
    assert not hasattr(cnn_ext, "_nothing")


# -- calls ----------------------------------------------------------------------------

X, W = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
Y, (HALF, ARGMAX) = F.conv2d(X, W), F.max_pool2d(X, 2, return_argmax=True)
ROW, SQUARE = np.ones((1, 8), np.float32), np.ones((8, 8), np.float32)
CALLS = {
    "conv2d": lambda: F.conv2d(X, W),
    "conv2d with out": lambda: F.conv2d(X, W, out=Y),
    "conv2d_backward_input": lambda: F.conv2d_backward_input(Y, W, X.shape),
    "conv2d_backward_weight": lambda: F.conv2d_backward_weight(Y, X, W.shape),
    "max_pool2d": lambda: F.max_pool2d(X, 2),
    "max_pool2d_backward": lambda: F.max_pool2d_backward(HALF, ARGMAX, X.shape, 2),
    "avg_pool2d": lambda: F.avg_pool2d(X, 2),
    "avg_pool2d_backward": lambda: F.avg_pool2d_backward(HALF, X.shape, 2),
    "linear": lambda: F.linear(ROW, SQUARE),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tiny_call_costs_microseconds(name):
    """2 to 5 of them; the bound is for slow machines, and for baseline kernels."""
    call, times = CALLS[name], []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(20):
            call()
        times.append((time.perf_counter() - begin) / 20)
    assert min(times) < 100e-6


def test_a_new_shape_costs_no_more_than_some_calls():
    """Geometry is worked out once a shape; nothing is compiled, tuned or prepared."""
    times = []
    for width in range(100, 120):
        x = np.ones((1, 1, 8, width), np.float32)
        begin = time.perf_counter()
        F.conv2d(x, W)
        times.append(time.perf_counter() - begin)
    assert min(times) < 200e-6
