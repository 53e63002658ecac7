"""Threads while another process keeps one core busy.

``python -m benchmarks.neighbour``: for layers of LeNet's and ResNet's size, the mean
time of a call with two threads beside a busy neighbour over that with one thread on a
quiet machine. Libraries whose threads wait for each other by spinning, or that split
work beforehand, take many times as long.

The process keeps to as many cores as it has threads, and the neighbour runs on the
last of them, where the system lets us say so (Linux). Means, not best times: a best
time would be that of a call during which the neighbour happened to sleep.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cnn_ext
from cnn_ext import _runtime

from .machine import disturbance
from .peers import Peer, load
from .peers.ours import Ours
from .shapes import Data, Task, read_shapes
from .timing import geometric_mean

__all__ = ["main"]

_LAYERS = "lenet5_c1,lenet5_c3,rn20a,rn20c,r50_3b,r50_4b"
_BUSY = "print('busy', flush=True)\nwhile True: pass"


class Spent(NamedTuple):
    """Milliseconds a call."""

    mean: float
    p95: float


def _spent(call: Callable[[], Any], seconds: float) -> Spent:
    call()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    times.sort()
    return Spent(sum(times) / len(times), times[int(0.95 * (len(times) - 1))])


@contextmanager
def busy_neighbour(core: int | None) -> Iterator[None]:
    """Another process that never sleeps, on one core if the system can pin it."""
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE) as it:
        try:
            assert it.stdout is not None
            it.stdout.readline()
            if core is not None:
                os.sched_setaffinity(it.pid, {core})
            yield
        finally:
            it.kill()


def _keep_to(threads: int) -> int | None:
    """Keep this process to `threads` cores; return the last of them."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, set(cores))
    return cores[-1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbour",
        description="Threads while another process keeps one core busy.",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each time")
    parser.add_argument("--only", default=_LAYERS, metavar="NAME,...")
    parser.add_argument("--order", default="channels_last")
    parser.add_argument("--torch", action="store_true", help="PyTorch, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    options = parser.parse_args(argv)
    core = _keep_to(options.threads)
    where = "anywhere" if core is None else f"on core {core}"
    print(
        f"cnn_ext {cnn_ext.__version__}, kernel set {_runtime.kernel_set()}, float32, "
        f"{options.order}, {options.threads} threads, neighbour {where}"
    )
    print(disturbance() or "a quiet machine")
    print("mean ms a call; ratio = threads beside the neighbour / one thread, quiet\n")
    print(
        f"{'library':<8} {'shape':<10} {'pass':<8} {'1 thread':>9} "
        f"{'threads':>9} {'beside':>9} {'p95':>9} {'ratio':>6}"
    )
    records = []
    for name in ("cnn_ext", "torch") if options.torch else ("cnn_ext",):
        ratios = []
        for record in _library(name, options, core):
            records.append(record)
            ratios.append(record["ratio"])
        print(
            f"{name:<8} geometric mean {geometric_mean(ratios):.2f}, "
            f"worst {max(ratios):.2f}\n"
        )
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0


def _peer(name: str, threads: int) -> Peer:
    return Ours(threads) if name == "cnn_ext" else load(name, threads)


def _library(
    name: str, options: argparse.Namespace, core: int | None
) -> Iterator[dict[str, Any]]:
    for shape in read_shapes(only=options.only.split(",")):
        plain = Data.of(shape, "float32")
        for pass_ in shape.passes:
            task = Task(shape, pass_, options.order, "float32")
            run = _peer(name, 1).prepare(task, plain.ordered(task.order)).run
            one = _spent(run, options.seconds)
            _peer(name, options.threads)  # sets the number of threads
            quiet = _spent(run, options.seconds)
            with busy_neighbour(core):
                beside = _spent(run, options.seconds)
            ratio = beside.mean / one.mean
            print(
                f"{name:<8} {shape.name:<10} {pass_:<8} {one.mean:>9.3f} "
                f"{quiet.mean:>9.3f} {beside.mean:>9.3f} {beside.p95:>9.3f} "
                f"{ratio:>6.2f}",
                flush=True,
            )
            yield {
                "library": name,
                "shape": shape.name,
                "pass": pass_,
                "one thread ms": one._asdict(),
                "threads ms": quiet._asdict(),
                "beside ms": beside._asdict(),
                "ratio": ratio,
            }


if __name__ == "__main__":
    sys.exit(main())
