"""Ctrl-C between the steps of a training, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Ctrl-C while a model is trained: at once, but not within `hold`."""

    def __init__(self) -> None:
        self._previous: Any = None
        self._holding = self._pending = self._raised = False

    def __enter__(self) -> Interrupts:
        # Signals only interrupt the main thread; what is no function is not Python's
        # handler, and needs no holding back: it does nothing, or ends the process.
        previous = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if main and callable(previous):
            self._previous = previous
            signal.signal(signal.SIGINT, self._came)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous and signal.getsignal(signal.SIGINT) == self._came:
            signal.signal(signal.SIGINT, self._previous)

    def _came(self, number: int, frame: Any) -> None:
        if self._holding:
            self._pending = True
            return
        self._raised = True
        self._previous(number, frame)
        self._raised = False  # it has returned, and so asks for nothing

    def hold(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function, and only then do what Ctrl-C asks for."""
        if self._raised:  # and yet here: Python lets no error out of a __del__
            self._previous(signal.SIGINT, None)
            self._raised = False
        self._holding = True
        try:
            function(*arguments)
        finally:
            self._holding = False
            if self._pending:
                self._pending = False
                self._previous(signal.SIGINT, None)
