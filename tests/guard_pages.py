"""Runs every operator on arrays that end, or begin, where the process has no memory.

A program of its own, for an access outside of an array ends it. See test_memory.py.
Usage: python guard_pages.py [number of random cases]
"""

import ctypes
import faulthandler
import mmap
import sys
from dataclasses import replace

import cases
import numpy as np
from cases import CONV_CASES, KERNEL_SETS, POOL_CASES, machine

from cnn_ext import functional as F

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Fences:
    """Memory for arrays with a page behind or before them that nobody may touch."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []

    def array(self, shape, dtype, order: str, at_end: bool) -> np.ndarray:
        axes = (0, 2, 3, 1) if order == "channels_last" and len(shape) == 4 else None
        stored = tuple(shape[i] for i in axes) if axes else tuple(shape)
        size = int(np.prod(stored)) * np.dtype(dtype).itemsize
        pages = -(-max(size, 1) // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        self.maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for fence in (start, start + (pages + 1) * PAGE):
            if libc.mprotect(fence, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = PAGE + (pages * PAGE - size if at_end else 0)
        flat = np.frombuffer(memory, dtype, int(np.prod(stored)), offset)
        array = flat.reshape(stored)
        return array.transpose(np.argsort(axes)) if axes else array

    def copy(self, values, order: str, at_end: bool) -> np.ndarray:
        array = self.array(values.shape, values.dtype, order, at_end)
        array[...] = values
        return array


def run_conv(case, dtype, order, at_end) -> None:
    fences, rng = Fences(), np.random.default_rng(0)
    shapes = case.x_shape, case.weight_shape, (case.k,), case.geometry.y_shape
    plain = [cases.integers(rng, shape, dtype) for shape in shapes]
    x, weight, bias, grad_y = (fences.copy(a, order, at_end) for a in plain)

    def out(like):
        return fences.array(like.shape, dtype, order, at_end)

    F.conv2d(x, weight, bias, out=out(grad_y), **case.options)
    F.conv2d_backward_input(grad_y, weight, x.shape, out=out(x), **case.options)
    F.conv2d_backward_weight(grad_y, x, weight.shape, out=out(weight), **case.options)
    F.conv2d_backward_bias(grad_y, out=out(bias))


def run_pool(case, dtype, order, at_end) -> None:
    fences, rng = Fences(), np.random.default_rng(0)
    g, k, options = case.geometry, case.kernel_size, case.max_options
    x = fences.copy(cases.integers(rng, case.x_shape, dtype), order, at_end)
    grad_y = fences.copy(cases.integers(rng, g.y_shape, dtype), order, at_end)

    def out(like):
        return fences.array(like.shape, dtype, order, at_end)

    back = {name: value for name, value in options.items() if name != "ceil_mode"}
    for kind in ("return_argmax", "return_indices"):
        _, position = F.max_pool2d(x, k, out=out(grad_y), **{kind: True}, **options)
        position = fences.copy(position, order, at_end)
        F.max_pool2d_backward(grad_y, position, x.shape, k, out=out(x), **back)
    F.max_pool2d(x, k, out=out(grad_y), **options)
    g = replace(case, dilation=1).geometry
    grad_y = fences.copy(cases.integers(rng, g.y_shape, dtype), order, at_end)
    options = case.average_options
    F.avg_pool2d(x, k, out=out(grad_y), **options)
    F.avg_pool2d_backward(grad_y, x.shape, k, out=out(x), **options)


def run_linear(n, c, k, dtype, at_end) -> None:
    fences = Fences()
    x, weight, bias, grad_y = (
        fences.copy(np.ones(shape, dtype), "contiguous", at_end)
        for shape in ((n, c), (k, c), (k,), (n, k))
    )
    F.linear(x, weight, bias)
    F.linear_backward_input(grad_y, weight)
    F.linear_backward_weight(grad_y, x)
    F.linear_backward_bias(grad_y)


def run(name: str, function, *arguments) -> None:
    print(name, *arguments, flush=True)
    function(*arguments)


def random_cases(strategy, count: int) -> list:
    from hypothesis import HealthCheck, Phase, given, settings

    found = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy())
    def collect(case):
        found.append(case)

    collect()
    return found


def main(count: int) -> None:
    convs, pools = list(CONV_CASES.values()), list(POOL_CASES.values())
    if count:
        convs += random_cases(cases.conv_cases, count)
        pools += random_cases(cases.pool_cases, count)
    for kernel_set in KERNEL_SETS:
        for strict in (True, False):
            with machine(kernel_set, 1, strict):
                for dtype in ("float32", "float64"):
                    for at_end in (True, False):
                        for order in ("contiguous", "channels_last"):
                            for case in convs:
                                run(kernel_set, run_conv, case, dtype, order, at_end)
                            for case in pools if strict else ():
                                run(kernel_set, run_pool, case, dtype, order, at_end)
                        for sizes in ((1, 1, 1), (3, 17, 5), (33, 70, 90)):
                            run(kernel_set, run_linear, *sizes, dtype, at_end)
    print("fine")


if __name__ == "__main__":
    faulthandler.enable()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
