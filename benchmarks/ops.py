"""Operators and their backwards against what a user would pick instead.

Every result is checked against float64, then ours and theirs are timed in turn in one
process. ``python -m benchmarks.ops --help`` lists the options.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cnn_ext
from cnn_ext import _runtime

from .machine import Peak, cpu_name, disturbance
from .measure import Row, Settings, measure
from .peers import NAMES, Peer, load
from .peers.ours import Ours
from .plot import plot
from .report import header, line, show, summary
from .shapes import ORDERS, PASSES, SHAPES, Data, Shape, Task, read_shapes

__all__ = ["main"]


def _names(choices: Sequence[str]):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, (part.strip() for part in text.split(","))))
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is not one of {', '.join(choices)}"
                )
        return names

    return parse


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops",
        description="Convolutions and pools against other libraries: checked, timed.",
    )
    add = parser.add_argument
    add("--against", type=_names(NAMES), default=NAMES, metavar="PEER,...",
        help=f"of {', '.join(NAMES)} (default all); '' for none")  # fmt: skip
    add("--threads", type=_positive, default=1)
    add("--shapes", type=Path, default=SHAPES, metavar="FILE.csv",
        help="default: the public shapes beside this program")  # fmt: skip
    add("--only", default="", metavar="NAME,...", help="these shapes alone")
    add("--order", type=_names(ORDERS), default=ORDERS, metavar="ORDER,...",
        help=f"memory orders, of {', '.join(ORDERS)}")  # fmt: skip
    add("--passes", type=_names(PASSES), default=PASSES, metavar="PASS,...",
        help="of forward, grad_x, grad_w, and argmax (max pooling with its winners)",
        )  # fmt: skip
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--rounds", type=_positive, default=5, help="turns of each (default 5)")
    add("--seconds", type=float, default=0.03, help="of a turn (default 0.03)")
    add("--statistic", choices=("best", "median"), default="best",
        help="of all calls of all rounds (default best)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write a record")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the ratios")
    return parser.parse_args(argv)


def _load(names: Sequence[str], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The peers that are installed, and why the others are not here."""
    peers, skipped = [], {}
    for name in names:
        try:
            peers.append(load(name, threads))
        except ImportError as error:
            skipped[name] = f"not installed ({error})"
    return peers, skipped


def _run(
    shapes: list[Shape],
    ours: dict[str, Peer],
    peers: list[Peer],
    options: argparse.Namespace,
    peak: Peak,
) -> list[Row]:
    # threads of a peer may still spin when its turn is over
    pause = 0.005 if options.threads > 1 else 0.0
    settings = Settings(options.rounds, options.seconds, pause, options.statistic)
    native = {peer.name: peer.takes_channels_last for peer in peers}
    rows: list[Row] = []
    for is_conv in (True, False):
        some = [shape for shape in shapes if shape.is_conv == is_conv]
        tasks = [
            Task(shape, pass_, order, options.dtype)
            for shape in some
            for pass_ in shape.passes
            if pass_ in options.passes
            for order in options.order
        ]
        # a peer has a column if it does something in this table
        columns = [p for p in peers if any(p.refusal(t) is None for t in tasks)]
        names = [peer.name for peer in columns]
        if tasks:
            print("\n" + header(is_conv, names), flush=True)
        data = shape = None
        for task in tasks:
            if task.shape is not shape:
                shape, data = task.shape, None
                data = Data.of(task.shape, task.dtype)
            able = [peer for peer in columns if peer.refusal(task) is None]
            row = measure(task, data, ours, able, settings, peak)
            rows.append(row)
            print(line(row, names, native, peak.best), flush=True)
            gc.collect()  # sessions and large arrays, before the next are made
    return rows


def _environment(
    peers: list[Peer], skipped: dict[str, str], options: argparse.Namespace
) -> dict[str, object]:
    return {
        "cnn_ext": cnn_ext.__version__,
        "kernel set": _runtime.kernel_set(),
        "CPU": cpu_name(),
        "threads": options.threads,
        "dtype": options.dtype,
        "statistic": f"{options.statistic} of {options.rounds} rounds of "
        f"{options.seconds * 1e3:g} ms, in turn",
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "peers": {peer.name: peer.version() for peer in peers},
        "skipped": skipped,
    }


_LEGEND = """\
ratio = peer's time / ours; error = normwise relative, against float64 on a sample
torch makes a new tensor a call and meets our call that makes a new array; engines write
to memory of their own, or bound beforehand, from weights that they prepared, and meet
our call with out= and prepared weights (ms, GFLOP/s are of the first if both were
timed)
GB/s, of copy: of a pool's call with out=, against a copy to an array in use
* the peer takes NCHW alone, and was given NCHW"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit status: 1 if a result is wrong, 2 for bad arguments."""
    options = _arguments(argv)
    try:
        only = [name for name in options.only.split(",") if name]
        shapes = read_shapes(options.shapes, only)
    except (OSError, ValueError) as error:
        print(f"benchmarks.ops: {error}", file=sys.stderr)
        return 2
    peers, skipped = _load(options.against, options.threads)
    ours: dict[str, Peer] = {
        "cnn_ext": Ours(options.threads),
        "cnn_ext out=": Ours(options.threads, reuses_output=True),
    }
    tasks = [
        Task(shape, pass_, options.order[0], options.dtype)
        for shape in shapes
        for pass_ in shape.passes
        if pass_ in options.passes
    ]
    for peer in peers:
        reasons = [peer.refusal(task) for task in tasks]
        if tasks and None not in reasons:
            skipped[peer.name] = f"nothing to do here ({reasons[0]})"
    disturbed = disturbance()  # later the load would be our own
    environment = _environment(peers, skipped, options)
    show(environment)
    peak = Peak(_runtime.kernel_set(), options.dtype, options.threads)
    print(_LEGEND)
    if disturbed:
        print(disturbed)
    try:
        rows = _run(shapes, ours, peers, options, peak)
    except ArithmeticError as error:
        print(f"benchmarks.ops: {error}", file=sys.stderr)
        return 1
    names = [peer.name for peer in peers if peer.name not in skipped]
    print(summary(rows, names))
    known = f"{peak.best:.1f} GFLOP/s" if peak.best == peak.best else "unknown"
    print(f"\nFMA peak, same run, {options.threads} thread(s): {known} ({peak.why})")
    if options.json:
        record = {
            **environment,
            "peak_gflops": None if np.isnan(peak.best) else peak.best,
            "rows": [row.record(peak.best) for row in rows],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        title = f"cnn_ext {cnn_ext.__version__}, {options.dtype}, "
        title += f"{options.threads} thread(s), {cpu_name()}"
        plot(rows, names, options.plot, title)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
