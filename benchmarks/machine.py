"""What the machine can do at most: multiply-adds, and copies of memory.

The peak is measured by a few lines of C, compiled when they are first needed with the
system's compiler (the variable CC, else cc, gcc or clang). Without one it is unknown.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np

__all__ = ["Peak", "copier", "cpu_name", "disturbance"]

# Independent chains of a = a*x + y, enough to hide the latency of the units, few
# enough to stay in registers. Values tend to 1e-3: no infinity, no denormal.
_SOURCE = r"""
typedef REAL vec __attribute__((vector_size(BYTES)));
double cnn_peak(long turns)
{
    vec a[CHAINS];
    const vec x = (vec){} + (REAL)0.999999, y = (vec){} + (REAL)1e-9;
    for (int i = 0; i < CHAINS; i++)
        a[i] = (vec){} + (REAL)(0.001 * i);
    for (long turn = 0; turn < turns; turn++) {
#pragma GCC unroll 32
        for (int i = 0; i < CHAINS; i++)
            a[i] = a[i] * x + y;
    }
    double sum = 0; /* the compiler must not drop the work */
    for (int i = 0; i < CHAINS; i++)
        sum += a[i][0];
    return sum;
}
"""
# kernel set: bytes of a vector, chains, flags
_SETS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "avx512": (64, 24, ("-mavx512f", "-mfma")),
    "avx2": (32, 12, ("-mavx2", "-mfma")),
    "neon": (16, 24, ()),
    "baseline": (16, 12, ()),
}


class Peak:
    """Multiply-adds a second with the instructions of a kernel set.

    Parameters
    ----------
    kernel_set : str
        As `cnn_ext.show_config` names it; ``baseline`` on x86-64 has no fused
        multiply-add, there the peak is that of a multiplication and an addition.
    dtype : {"float32", "float64"}
    threads : int

    Attributes
    ----------
    best : float
        10^9 operations a second, the highest of all measurements; NaN if unknown.
    why : str
        Why it is unknown, else the compiler.
    """

    def __init__(self, kernel_set: str, dtype: str, threads: int) -> None:
        self.best = float("nan")
        self._threads = threads
        self._run: Callable[[int], float] | None = None
        compiler = next(filter(None, map(shutil.which, _compilers())), None)
        if compiler is None:
            self.why = "no C compiler"
            return
        size, self._chains, flags = _SETS.get(kernel_set, _SETS["baseline"])
        self._lanes = size // np.dtype(dtype).itemsize
        real = "float" if dtype == "float32" else "double"
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
            source.write_text(_SOURCE)
            command = [
                compiler, "-O3", *flags, "-fPIC", "-shared", f"-DREAL={real}",
                f"-DBYTES={size}", f"-DCHAINS={self._chains}", str(source),
                "-o", str(library),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                self.why = f"{Path(compiler).name} fails: {done.stderr.strip()[:200]}"
                return
            function = ctypes.CDLL(str(library)).cnn_peak
        function.argtypes, function.restype = [ctypes.c_long], ctypes.c_double
        self.why, self._run = Path(compiler).name, function
        self._pool = ThreadPoolExecutor(threads)
        self._turns = 20_000
        for _ in range(10):
            self.measure()

    def measure(self) -> float:
        """Measure again, about 10 ms, and return the best so far."""
        run = self._run
        if run is None:
            return self.best
        turns = self._turns

        def one() -> tuple[float, float]:
            begin = time.perf_counter()
            run(turns)  # ctypes releases the GIL
            return begin, time.perf_counter()

        jobs = [self._pool.submit(one) for _ in range(self._threads)]
        begins, ends = zip(*(job.result() for job in jobs), strict=True)
        spent = max(ends) - min(begins)
        operations = 2.0 * self._chains * self._lanes * turns * self._threads
        self.best = max(operations / spent / 1e9, np.nan_to_num(self.best))
        self._turns = max(1000, int(turns * 0.01 / spent))
        return self.best


def _compilers() -> list[str]:
    chosen = os.environ.get("CC", "").split()
    return [*chosen[:1], "cc", "gcc", "clang"]


def copier(traffic: int, threads: int) -> Callable[[], None]:
    """Return a call that copies memory: `traffic` bytes, half read, half written."""
    source = np.ones(max(traffic // 2, 1), np.uint8)
    target = np.empty_like(source)
    if threads == 1:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(threads)
    cuts = np.linspace(0, source.size, threads + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(cuts)]

    def copy() -> None:
        jobs = [pool.submit(np.copyto, target[p], source[p]) for p in parts]
        for job in jobs:
            job.result()

    return copy


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def disturbance() -> str:
    """Say so if other processes are at work, else nothing; before we start."""
    if not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load < 0.5:
        return ""
    return f"note: load average {load:.1f}, this machine is not quiet"
