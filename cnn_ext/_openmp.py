"""Loads the compiled runtime, with OpenMP threads that soon wait asleep.

By default libgomp's threads spin while they wait for each other. On a machine whose
cores are also busy elsewhere that takes the very core that the awaited thread needs,
and a step of a small network becomes ten times slower than with one thread. OpenMP
reads its settings once, when its library is loaded: they are set for that moment, and
only if the user has set none.
"""

from __future__ import annotations

import os

_SETTINGS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}


def _load() -> None:
    chosen = {"OMP_WAIT_POLICY", *_SETTINGS} & os.environ.keys()
    if not chosen:
        os.environ.update(_SETTINGS)
    try:
        from . import _runtime  # noqa: F401
    finally:
        if not chosen:
            for name in _SETTINGS:
                del os.environ[name]


_load()
