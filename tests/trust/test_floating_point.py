"""Subnormal numbers can be flushed at no cost; the caller's CPU state is left alone."""

import platform
import sys
import time

import numpy as np
import pytest
from cases import machine
from trust.programs import run

from cnn_ext import _runtime
from cnn_ext import functional as F

flushes = pytest.mark.skipif(
    not hasattr(_runtime, "set_flush"), reason="this build cannot flush subnormals"
)

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


@flushes
@pytest.mark.parametrize("scales", [(1e-40, 1), (1, 1e-40), (1e-20, 1e-20)])
@pytest.mark.parametrize("name", CASES)
def test_flushed_subnormals_cost_no_more(name, scales, kernel_set):
    """Unflushed they cost a hundred times as much and more, as the CPU does them."""
    with machine(threads=1):
        _runtime.set_flush(True)
        try:
            for _ in range(4):  # a machine that is busy elsewhere gets another try
                found = ratios(name, *scales)
                if max(found.values()) <= 2:
                    break
        finally:
            _runtime.set_flush(False)
    assert max(found.values()) <= 2, found


def test_subnormals_are_exact_unless_flushed():
    x = np.full((1, 1, 3, 3), 1e-40, np.float32)
    weight = np.ones((1, 1, 3, 3), np.float32)
    assert F.conv2d(x, weight)[0, 0, 0, 0] == pytest.approx(9e-40, rel=1e-4)


@flushes
@pytest.mark.parametrize("threads", [1, 2])
def test_flushed_subnormals_are_zeros(threads, kernel_set):
    x = np.full((8, 16, 20, 20), 1e-40, np.float32)
    weight = np.ones((16, 16, 3, 3), np.float32)
    with machine(threads=threads):
        _runtime.set_flush(True)
        try:
            assert not F.conv2d(x, weight).any()
            assert not F.avg_pool2d(x, 3).any()
        finally:
            _runtime.set_flush(False)
        assert F.conv2d(x, weight).all()


STATE = """
import ctypes, mmap
import numpy as np
import cnn_ext
from cnn_ext import _runtime
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
after = ctypes.c_uint32()
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
        load(ctypes.c_uint32(0x1F80))
        # without its lowest bits, the flags: Python's own arithmetic raises some
        assert after.value & ~0x3F == state & ~0x3F, (name, hex(after.value))
        if SAME:
            assert digest(found) == expected[name], (name, hex(state))
print("fine")
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="reads the state with x86-64's instructions",
)
def test_the_callers_state_is_left_alone_and_changes_nothing():
    """Nor do results depend on it: threads of the team never had the caller's."""
    same = repr(hasattr(_runtime, "set_flush"))
    done = run("-c", STATE.replace("SAME", same), OMP_NUM_THREADS="2")
    assert done.stdout == "fine\n"
