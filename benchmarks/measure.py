"""One line of the table: check every result, then time all in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .exact import difference, sampled_error
from .machine import Peak, copier
from .peers import Peer
from .shapes import Data, Task
from .timing import Timing, interleaved

__all__ = ["LIMIT", "Row", "Settings", "measure"]

# Above this normwise relative error a result is wrong and is not timed. Peers get
# room for their coarse Winograd transforms.
LIMIT = {"float32": 1e-5, "float64": 1e-12}
PEER_LIMIT = {"float32": 1e-2, "float64": 1e-10}


@dataclass(frozen=True)
class Settings:
    """How to time; see `timing.interleaved`."""

    rounds: int = 5
    seconds: float = 0.03
    pause: float = 0.0
    statistic: str = "best"


@dataclass
class Row:
    """What was measured of one task.

    Attributes
    ----------
    task : Task
    times : dict of str to Timing
        ``cnn_ext`` and ``cnn_ext out=`` (as the peers need them), each peer, and for
        pools ``copy``, a copy of the same bytes.
    errors : dict of str to float
        Normwise relative error against float64, on a sample of the outputs.
    ratios : dict of str to float
        The peer's time over ours.
    wrong : list of str
        Whose result is wrong.
    """

    task: Task
    statistic: str
    times: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def ours(self) -> float:
        """Seconds of our call, the one that makes a new array if both were timed."""
        return self.times[self.ours_key].of(self.statistic)

    @property
    def ours_key(self) -> str:
        return "cnn_ext" if "cnn_ext" in self.times else "cnn_ext out="

    @property
    def gflops(self) -> float:
        """Effective: operations of the direct sum over the time."""
        return self.task.shape.operations / self.ours / 1e9

    @property
    def bandwidth(self) -> float:
        """10^9 bytes a second, of the bytes that a pool must read and write."""
        return self.task.traffic / self.to_memory_in_use / 1e9

    @property
    def of_copy(self) -> float:
        return self.times["copy"].of(self.statistic) / self.to_memory_in_use

    @property
    def to_memory_in_use(self) -> float:
        """Seconds of a pool that writes to the same array each time, as copies do."""
        return self.times["cnn_ext out="].of(self.statistic)

    def record(self, peak: float) -> dict[str, Any]:
        """As JSON takes it."""
        task = self.task
        record: dict[str, Any] = {
            **task.shape._asdict(),
            "pass": task.pass_,
            "order": task.order,
            "dtype": task.dtype,
            "group": task.group,
            "seconds": {name: t._asdict() for name, t in self.times.items()},
            "ratios": self.ratios,
            "errors": self.errors,
            "wrong": self.wrong,
        }
        if task.shape.is_conv:
            record["gflops"] = self.gflops
            record["of_peak"] = None if np.isnan(peak) else self.gflops / peak
        else:
            record["gbytes_per_second"] = self.bandwidth
            record["of_copy"] = self.of_copy
        return record


def measure(
    task: Task,
    data: Data,
    ours: dict[str, Peer],
    peers: list[Peer],
    settings: Settings,
    peak: Peak,
) -> Row:
    """Check and time one task.

    Parameters
    ----------
    task : Task
    data : Data
        In C order.
    ours : dict of str to Peer
        Our adapters, ``cnn_ext`` and ``cnn_ext out=``.
    peers : list of Peer
        Those that do the task.

    Raises
    ------
    ArithmeticError
        If our result is wrong.
    """
    row = Row(task, settings.statistic)
    ordered = data.ordered(task.order)
    styles = {peer.reuses_output for peer in peers} or {False}
    if not task.shape.is_conv:
        styles.add(True)  # as the copy
    every = {
        name: peer for name, peer in ours.items() if peer.reuses_output in styles
    } | {peer.name: peer for peer in peers}

    calls, first = {}, None
    for name, peer in every.items():
        prepared = peer.prepare(task, ordered if peer.takes_channels_last else data)
        prepared.run()  # so that what is checked is a repeated call, as it is timed
        result = np.asarray(prepared.result())
        error = row.errors[name] = sampled_error(task, ordered, result)
        if first is None:
            first = result
        # the sample says how exact it is; all elements, that nothing is amiss
        limit = (LIMIT if name in ours else PEER_LIMIT)[task.dtype]
        if error <= limit and difference(result, first) <= 2 * limit:
            calls[name] = prepared.run
        else:
            row.wrong.append(name)
    if set(row.wrong) & set(ours):
        raise ArithmeticError(
            f"{task.shape.name} {task.pass_} {task.order} {task.dtype}: our result is "
            f"wrong, normwise errors on the sample {row.errors}"
        )
    if not task.shape.is_conv:
        threads = next(iter(ours.values())).threads
        calls["copy"] = copier(task.traffic, threads)
    peak.measure()
    row.times = interleaved(calls, settings.rounds, settings.seconds, settings.pause)
    peak.measure()
    for peer in peers:
        if peer.name in row.times:
            mine = "cnn_ext out=" if peer.reuses_output else "cnn_ext"
            theirs = row.times[peer.name].of(settings.statistic)
            row.ratios[peer.name] = theirs / row.times[mine].of(settings.statistic)
    return row
