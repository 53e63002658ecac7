"""Loads the compiled runtime, with OpenMP threads that soon wait asleep.

By default libgomp's threads spin while they wait for each other. On a machine whose
cores are also busy elsewhere that takes the very core that the awaited thread needs,
and a step of a small network becomes ten times slower than with one thread. OpenMP
reads its settings once, when its library is loaded: they are set for that moment, and
only if the user has set none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}


def _is_command() -> bool:
    """Whether the process is ``cnn-ext``, which must import us before all else."""
    script = os.path.basename(getattr(sys, "argv", [""])[0])
    module = sys.orig_argv[-len(sys.argv) - 1 :][:2] if script == "-m" else []
    return script.startswith("cnn-ext") or module == ["-m", "cnn_ext.cli"]


@contextmanager
def settings_of_the_environment() -> Iterator[None]:
    """Read them; the command ends at a wrong one as it does at a wrong argument."""
    try:
        yield
    except ValueError as error:
        if not _is_command():
            raise
        print(f"cnn-ext: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _load() -> None:
    chosen = {"OMP_WAIT_POLICY", *_SETTINGS} & os.environ.keys()
    if not chosen:
        os.environ.update(_SETTINGS)
    try:
        with settings_of_the_environment():
            from . import _runtime  # noqa: F401
    finally:
        if not chosen:
            for name in _SETTINGS:
                del os.environ[name]


_load()
