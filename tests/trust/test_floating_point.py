"""Subnormal numbers can be flushed at no cost; the caller's CPU state is left alone."""

import platform
import sys
import time

import numpy as np
import pytest
from cases import machine
from trust.programs import run

import cnn_ext
from cnn_ext import functional as F


@pytest.fixture
def flushing():
    cnn_ext.set_flush_subnormals(True)
    yield
    cnn_ext.set_flush_subnormals(False)


CASES = {
    "direct": ((2, 32, 20, 20), (32, 32, 2, 2), {}),
    "winograd": ((2, 32, 28, 28), (32, 32, 3, 3), {"padding": 1}),
    "planes": ((8, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "depthwise": ((2, 64, 28, 28), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
}


def seconds(call, times=9):
    call()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        for _ in range(3):
            call()
        took.append(time.perf_counter() - start)
    return min(took)


def passes(x, weight, options):
    y = F.conv2d(x, weight, **options)
    return {
        "forward": lambda: F.conv2d(x, weight, **options),
        "backward_input": lambda: F.conv2d_backward_input(
            y, weight, x.shape, **options
        ),
        "backward_weight": lambda: F.conv2d_backward_weight(
            y, x, weight.shape, **options
        ),
    }


def ratios(name, scale_x, scale_weight):
    """Time of each pass on numbers so small, as a multiple of the time on normal."""
    x_shape, weight_shape, options = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(x_shape).astype("f")
    weight = rng.standard_normal(weight_shape).astype("f")
    normal = passes(x, weight.copy(), options)
    with np.errstate(under="ignore"):
        small = passes(
            x * np.float32(scale_x), weight * np.float32(scale_weight), options
        )
    return {which: seconds(small[which]) / seconds(normal[which]) for which in normal}


@pytest.mark.parametrize("scales", [(1e-40, 1), (1, 1e-40), (1e-20, 1e-20)])
@pytest.mark.parametrize("name", CASES)
def test_flushed_subnormals_cost_no_more(name, scales, kernel_set, flushing):
    """Unflushed they cost a hundred times as much and more, as the CPU does them."""
    with machine(threads=1):
        for _ in range(4):  # a machine that is busy elsewhere gets another try
            found = ratios(name, *scales)
            if max(found.values()) <= 2:
                break
    assert max(found.values()) <= 2, found


def test_subnormals_are_exact_unless_flushed():
    x = np.full((1, 1, 3, 3), 1e-40, np.float32)
    weight = np.ones((1, 1, 3, 3), np.float32)
    assert F.conv2d(x, weight)[0, 0, 0, 0] == pytest.approx(9e-40, rel=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_flushed_subnormals_are_zeros(threads, kernel_set):
    x = np.full((8, 16, 20, 20), 1e-40, np.float32)
    weight = np.ones((16, 16, 3, 3), np.float32)
    with machine(threads=threads):
        assert F.conv2d(x, weight).all()
        cnn_ext.set_flush_subnormals(True)
        assert cnn_ext.get_flush_subnormals()
        try:
            assert not F.conv2d(x, weight).any()
            assert not F.avg_pool2d(x, 3).any()
            assert (x / np.float32(2)).all()  # numpy goes on as it did
        finally:
            cnn_ext.set_flush_subnormals(False)
        assert F.conv2d(x, weight).all()


@pytest.mark.parametrize("flush", [1, 0.0, "yes", None])
def test_flush_is_a_bool(flush):
    with pytest.raises(TypeError, match="flush must be a bool, got "):
        cnn_ext.set_flush_subnormals(flush)
    assert not cnn_ext.get_flush_subnormals()


STATE = """
import ctypes, mmap
import numpy as np
import cnn_ext
from cnn_ext import _conv
from cnn_ext import functional as F
from cnn_ext._geometry import ConvGeometry
from trust.workload import digest, everything

def function(*code):
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes(code))
    pages.append(memory)
    kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
    return kind(ctypes.addressof(ctypes.c_char.from_buffer(memory)))

pages = []
store = function(0x0F, 0xAE, 0x1F, 0xC3)  # stmxcsr [rdi]; ret
load = function(0x0F, 0xAE, 0x17, 0xC3)   # ldmxcsr [rdi]; ret
after, usual = ctypes.c_uint32(), ctypes.c_uint32(0x1F80)
cnn_ext.set_num_threads(2)
calls = {
    name: call for name, call in everything().items()
    if name not in ("model", "vjp", "fit") and "subsample2d" not in name
}  # those end in numpy's arithmetic, which is the caller's
expected = {name: digest(call()) for name, call in calls.items()}
# as usual; flushing; rounding down; towards zero; all flags up
for state in (0x1F80, 0x9FC0, 0x3F80, 0x7F80, 0x1FBF):
    for name, call in calls.items():
        load(ctypes.c_uint32(state))
        found = call()
        store(after)
        load(usual)
        # without its lowest bits, the flags: Python's own arithmetic raises some
        assert after.value & ~0x3F == state & ~0x3F, (name, hex(after.value))
        assert digest(found) == expected[name], (name, hex(state))

# flags too, where only compiled code runs: sums that round, overflow and underflow
rng = np.random.default_rng(0)
x = rng.standard_normal((8, 20, 20, 20)).astype("f")
x[0], x[1] = 3e38, 1e-38
w = rng.standard_normal((20, 20, 3, 3)).astype("f")
g = ConvGeometry.of(x.shape, w.shape)
y = F.conv2d(x, w)
assert not np.isfinite(y).all()
compiled = {
    "conv2d": lambda: _conv.conv2d(g, x, w, None, y),
    "conv2d_backward_input": lambda: _conv.conv2d_backward_input(g, y, w, x),
    "conv2d_backward_weight": lambda: _conv.conv2d_backward_weight(g, y, x, w),
    "conv2d_backward_bias": lambda: _conv.conv2d_backward_bias(y, w[:, 0, 0, 0].copy()),
}
for threads in (1, 2):
    cnn_ext.set_num_threads(threads)
    for state in (0x1F80, 0x1FBF, 0x1F81, 0x7F80, 0x9FC0):
        for name, call in compiled.items():
            before = ctypes.c_uint32(state)
            load(before)
            call()
            store(after)
            load(usual)
            assert after.value == state, (name, hex(state), hex(after.value))
print("fine")
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="reads the state with x86-64's instructions",
)
def test_the_callers_state_is_left_alone_and_changes_nothing():
    """Rounding mode, flushing and flags come back; results do not depend on them."""
    done = run("-c", STATE, OMP_NUM_THREADS="2")
    assert done.stdout == "fine\n"
