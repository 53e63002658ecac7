"""The interface of a peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..shapes import Data, Task

__all__ = ["Engine", "Peer", "Prepared"]


class Prepared(NamedTuple):
    """One operator, ready to run again and again.

    Attributes
    ----------
    run : callable
        What is timed. It keeps alive all that it uses.
    result : callable
        Runs once more and returns the result as an array (N, C, H, W), or as a
        gradient of the weights (K, C/groups, R, S).
    """

    run: Callable[[], Any]
    result: Callable[[], np.ndarray[Any, Any]]


class Peer(ABC):
    """Something that computes convolutions or pools.

    Attributes
    ----------
    name : str
    reuses_output : bool
        Whether its results land in memory that is kept from call to call. It is then
        compared with our ``out=``; otherwise with our call that makes a new array.
    takes_channels_last : bool
        Whether it takes arrays in that memory order; otherwise it is handed NCHW in
        every line of the table, which the table marks.
    """

    name: ClassVar[str]
    reuses_output: ClassVar[bool] = False
    takes_channels_last: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def version(self) -> str:
        """Version and settings that matter, in a few words."""

    @abstractmethod
    def refusal(self, task: Task) -> str | None:
        """Why it does not do `task`; None if it does."""

    @abstractmethod
    def prepare(self, task: Task, data: Data) -> Prepared:
        """Do what a user does once, before the first call: sessions, packed weights."""


class Engine(Peer):
    """An inference engine: forward float32 convolutions, NCHW, weights prepared."""

    reuses_output = True

    def refusal(self, task: Task) -> str | None:
        if not task.shape.is_conv or task.pass_ != "forward" or task.dtype != "float32":
            return "float32 forward convolutions only"
        return None
