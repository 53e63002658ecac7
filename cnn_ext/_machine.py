"""The machine: number of threads, kernel set, and what this build is."""

from __future__ import annotations

import os
import sys

import numpy as np

from . import _runtime
from ._cpus import available_cpus
from ._geometry import checked_size
from ._openmp import settings_of_the_environment
from ._version import __version__

__all__ = [
    "get_flush_subnormals",
    "get_num_threads",
    "get_precision",
    "set_flush_subnormals",
    "set_num_threads",
    "set_precision",
    "show_config",
]


def _default_threads() -> int:
    """CNN_EXT_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs we may run on."""
    for name in ("CNN_EXT_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isdecimal() and int(text) >= 1:
            return min(int(text), 1024)
        if text and name == "CNN_EXT_NUM_THREADS":
            raise ValueError(f"{name} must be an integer of at least 1, got {text!r}")
    return min(available_cpus(), 1024)


def set_num_threads(threads: int) -> None:
    """Set the number of threads that operators use, from the next call on.

    Results do not depend on it: work is split by shape, never by threads.

    Raises
    ------
    TypeError, ValueError
        If `threads` is not an integer from 1 to 1024.
    """
    count = checked_size(threads, "threads", 1)
    if count > 1024:
        raise ValueError(f"threads must be at most 1024, got {count}")
    _runtime.set_threads(count)


def get_num_threads() -> int:
    """Return the number of threads that operators use."""
    return int(_runtime.get_threads())


def set_precision(precision: str) -> None:
    """Choose how float32 convolutions are summed.

    Parameters
    ----------
    precision : {"fast", "strict"}
        ``"fast"`` (the default) may use Winograd's minimal filtering where it pays:
        relative error at most 5e-6 of the result's norm (1e-5 for grad_weight).
        ``"strict"`` always sums directly: at most 1e-6 for sums of up to 3,000
        products, and growing with the root of their number (3x3 taps of 512 channels
        1.2e-6). float64 is always direct.

    Raises
    ------
    ValueError
        If `precision` is neither.
    """
    if precision not in ("fast", "strict"):
        raise ValueError(f"precision must be 'fast' or 'strict', got {precision!r}")
    _runtime.set_strict(precision == "strict")


def get_precision() -> str:
    """Return ``"fast"`` or ``"strict"``, as `set_precision` takes it."""
    return "strict" if _runtime.get_strict() else "fast"


def set_flush_subnormals(flush: bool) -> None:
    """Choose whether the kernels take subnormal numbers for zeros.

    Numbers below 1.2e-38 (float32) or 2.2e-308 (float64) are exact by default, as IEEE
    754 says, and on most CPUs cost a hundred times as much as others. With True they
    are zeros, as operands and as results, at no cost. The caller's floating-point
    state, and with it numpy's arithmetic, is left alone in either case.

    Raises
    ------
    TypeError
        If `flush` is not a bool.
    """
    if not isinstance(flush, (bool, np.bool_)):
        raise TypeError(f"flush must be a bool, got {type(flush).__name__}")
    _runtime.set_flush(bool(flush))


def get_flush_subnormals() -> bool:
    """Return whether subnormal numbers are zeros: see `set_flush_subnormals`."""
    return bool(_runtime.get_flush())


def show_config() -> str:
    """Return what runs here: version, kernel set, CPU features, threads."""
    import platform  # slow to import, and seldom asked for

    openmp = _runtime.openmp_version()
    sets = ", ".join(_runtime.kernel_sets())
    lines = {
        "cnn_ext": __version__,
        "kernel set": f"{_runtime.kernel_set()} (of {sets})",
        "CPU features": _runtime.cpu_features(),
        "threads": f"{get_num_threads()}",
        "precision": get_precision(),
        "subnormals": "flushed" if get_flush_subnormals() else "exact",
        "OpenMP": f"{openmp}" if openmp else "no, built for one thread",
        "debug build": "yes" if _runtime.is_debug_build() else "no",
        "numpy": np.__version__,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{sys.platform} {platform.machine()}",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


with settings_of_the_environment():
    set_num_threads(_default_threads())
