"""What a tiny call costs from Python, the first call, and the import.

``python -m benchmarks.small``: microseconds of each operator on a 1x1x8x8 image (3x3,
padding 1) or a row of 8; the first and the second call of new processes; the time of
``import cnn_ext`` where numpy is imported already, with the bytecode cached.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import cnn_ext
from cnn_ext import _runtime
from cnn_ext import functional as F

from .processes import new_python

__all__ = ["calls", "first_calls", "import_times", "main"]

_IMPORT = """
import time
times = [time.perf_counter()]
import numpy
times.append(time.perf_counter())
import cnn_ext
times.append(time.perf_counter())
print(*((after - before) * 1e3 for before, after in zip(times, times[1:])))
"""

_FIRST = """
import time, numpy as np
from cnn_ext import functional as F
x, w = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
times = []
for _ in range(2):
    begin = time.perf_counter()
    F.conv2d(x, w, padding=1)
    times.append((time.perf_counter() - begin) * 1e6)
print(*times)
"""


def calls(seconds: float = 0.1) -> dict[str, tuple[float, float]]:
    """Best and median microseconds of repeated calls on one tiny image or row."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 1, 8, 8), np.float32)
    weight = rng.standard_normal((1, 1, 3, 3), np.float32)
    y = F.conv2d(x, weight, padding=1)
    half, argmax = F.max_pool2d(x, 2, return_argmax=True)
    row, square = rng.standard_normal((1, 8), np.float32), np.eye(8, dtype=np.float32)
    some: dict[str, Callable[[], Any]] = {
        "conv2d": lambda: F.conv2d(x, weight, padding=1),
        "conv2d out=": lambda: F.conv2d(x, weight, padding=1, out=y),
        "conv2d_backward_input": lambda: F.conv2d_backward_input(
            y, weight, x.shape, padding=1
        ),
        "conv2d_backward_weight": lambda: F.conv2d_backward_weight(
            y, x, weight.shape, padding=1
        ),
        "max_pool2d": lambda: F.max_pool2d(x, 2),
        "max_pool2d_backward": lambda: F.max_pool2d_backward(half, argmax, x.shape, 2),
        "avg_pool2d": lambda: F.avg_pool2d(x, 2),
        "avg_pool2d_backward": lambda: F.avg_pool2d_backward(half, x.shape, 2),
        "linear": lambda: F.linear(row, square),
        "linear_backward_input": lambda: F.linear_backward_input(row, square),
        "linear_backward_weight": lambda: F.linear_backward_weight(row, row),
    }
    return {name: _microseconds(call, seconds) for name, call in some.items()}


def _microseconds(call: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """A hundred calls at a time: the clock itself costs a twentieth of a call."""
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(100):
            call()
        times.append((time.perf_counter() - begin) * 1e4)
    return min(times), median(times)


def first_calls(processes: int = 20) -> tuple[float, float]:
    """Median microseconds of the first and of the second call of new processes."""
    pairs = [tuple(map(float, new_python(_FIRST)[0].split())) for _ in range(processes)]
    return median(p[0] for p in pairs), median(p[1] for p in pairs)


def import_times(processes: int = 20) -> dict[str, tuple[float, float]]:
    """Best and median milliseconds of importing numpy, and then cnn_ext."""
    with tempfile.TemporaryDirectory() as folder:
        # bytecode is cached as in an installation, wherever this one lies
        cached = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        new_python(_IMPORT, environment=cached)
        pairs = [
            tuple(map(float, new_python(_IMPORT, environment=cached)[0].split()))
            for _ in range(processes)
        ]
    return {
        name: (min(times), median(times))
        for name, times in zip(
            ("numpy", "cnn_ext"), zip(*pairs, strict=True), strict=True
        )
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small",
        description="Cost of tiny calls, of the first call, and of the import.",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each operator")
    parser.add_argument(
        "--processes", type=int, default=20, help="new ones, for medians"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    options = parser.parse_args(argv)
    cnn_ext.set_num_threads(options.threads)
    print(
        f"cnn_ext {cnn_ext.__version__}, kernel set {_runtime.kernel_set()}, "
        f"{options.threads} thread(s), float32, 1x1x8x8 and 1x8\n"
    )
    costs = calls(options.seconds)
    print(f"{'operator':<24} {'best us':>8} {'median us':>10}")
    for name, (best, middle) in costs.items():
        print(f"{name:<24} {best:>8.2f} {middle:>10.2f}")
    first, second = first_calls(options.processes)
    print(
        f"\nconv2d in a new process, median of {options.processes}: first call "
        f"{first:.1f} us, second {second:.1f} us, ratio {first / second:.2f}"
    )
    imports = import_times(options.processes)
    for name, (best, middle) in imports.items():
        print(f"import {name}: best {best:.1f} ms, median {middle:.1f} ms")
    if options.json:
        record = {
            "cnn_ext": cnn_ext.__version__,
            "kernel set": _runtime.kernel_set(),
            "threads": options.threads,
            "best and median us": costs,
            "first call us": first,
            "second call us": second,
            "best and median ms of imports, one after the other": imports,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
