"""Runs a Python program of its own with this package and these tests at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cnn_ext

TESTS = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    places = [str(TESTS), str(Path(cnn_ext.__file__).parents[1])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        # forks of a process with threads are what some of these programs are about
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
        **variables,
    }


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start ``python arguments...``, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    *arguments: str, timeout: float = 300, status: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``python arguments...`` to its end; it must end with `status`."""
    variables = {k: v for k, v in options.items() if k.isupper()}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        **{k: v for k, v in options.items() if not k.isupper()},
    )
    if status is not None:
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done
