"""Times of several calls, taken in turn so that all meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

__all__ = ["Timing", "geometric_mean", "interleaved"]


class Timing(NamedTuple):
    """Seconds of one call.

    Attributes
    ----------
    best, median : float
        Over all calls of all rounds.
    calls : int
    """

    best: float
    median: float
    calls: int

    def of(self, statistic: str) -> float:
        return self.best if statistic == "best" else self.median


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    seconds: float = 0.03,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Time every call once a round, each round in another order.

    Parameters
    ----------
    calls : mapping of str to callable
    rounds : int
    seconds : float
        A turn is one call that does not count (caches and thread pools are another's
        when it begins), then calls for this long, at least one.
    pause : float
        Seconds of sleep before a turn, for threads of the one before that still spin.

    Returns
    -------
    dict of str to Timing
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    clock = time.perf_counter
    for turn in range(rounds):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            call, times = calls[name], spent[name]
            if pause:
                time.sleep(pause)
            call()
            end = clock() + seconds
            while True:
                begin = clock()
                call()
                now = clock()
                times.append(now - begin)
                if now >= end:
                    break
    return {
        name: Timing(min(times), median(times), len(times))
        for name, times in spent.items()
    }


def geometric_mean(values: list[float]) -> float:
    """Geometric mean; NaN of nothing."""
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product if values else float("nan")
