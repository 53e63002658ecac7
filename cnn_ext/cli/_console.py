"""What the command says, on standard output and standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

__all__ = ["UsageError", "complain", "printable", "say", "sentence", "without_stdout"]


class UsageError(ValueError):
    """The command line itself is wrong."""


def complain(text: str) -> None:
    """One line on standard error, whatever the message holds."""
    line = printable(f"cnn-ext: {' '.join(text.split())}", sys.stderr)
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def printable(text: str, stream: Any, keep: str = "") -> str:
    """`text` without control characters, and in letters that the stream can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def say(text: str) -> None:
    print(printable(text, sys.stdout, keep="\n"), flush=True)


def sentence(error: Exception) -> str:
    """An exception as a sentence; OSError's own form has its number in front."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return place + error.strerror
    return str(error) or type(error).__name__


def without_stdout(status: int) -> int:
    """Keep the interpreter from flushing, at exit, what cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
