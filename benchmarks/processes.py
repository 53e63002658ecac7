"""New Python processes that import the cnn_ext that is in use here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cnn_ext

__all__ = ["new_python"]


def new_python(
    code: str,
    *options: str,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Run `code` in a new interpreter; return its standard output and error.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    home = str(Path(cnn_ext.__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": home,
        "CNN_EXT_NUM_THREADS": str(threads),
        **(environment or {}),
    }
    command = [sys.executable, "-P", *options, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a new Python process failed:\n{done.stderr.strip()}")
    return done.stdout, done.stderr
