"""Scratch memory and resident memory over many different shapes.

``python -m benchmarks.memory``: forward and both gradients of the public shapes (one
image each), then of 1,000 random convolutions and pools. Scratch memory must stay below
8 MB a thread and must not grow with the number of shapes seen.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import cnn_ext
from cnn_ext import _runtime

from .peers.ours import Ours
from .shapes import ORDERS, SHAPES, Data, Shape, Task, read_shapes

__all__ = ["main", "random_shapes"]

MEGABYTE = 1 << 20


def random_shapes(count: int, seed: int = 0) -> Iterator[Shape]:
    """Different layers of every kind, each of at most 50 million multiply-adds."""
    rng = np.random.default_rng(seed)
    seen: set[tuple[object, ...]] = set()

    def log_uniform(low: int, high: int) -> int:
        return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))

    while len(seen) < count:
        kind = str(rng.choice(["conv", "conv", "conv", "conv", "max", "avg"]))
        c, k = log_uniform(1, 512), log_uniform(1, 512)
        groups = 1
        if rng.random() < 0.2:
            groups = k = c  # depthwise
        r, s = (int(v) for v in rng.choice([1, 2, 3, 3, 3, 5, 7], 2))
        dilation = int(rng.choice([1, 1, 1, 2])) if kind == "conv" else 1
        h, w = (log_uniform(max(4, dilation * (tap - 1) + 1), 112) for tap in (r, s))
        stride = int(rng.choice([1, 1, 2, 3]))
        if kind != "conv":
            k, groups = c, 1
        sizes = (log_uniform(1, 8), c, h, w, k, r, s)
        shape = Shape(
            kind, "random", *sizes, stride, r // 2, s // 2, dilation, groups, ""
        )
        work = shape.operations / 2 if kind == "conv" else 9 * c * h * w * sizes[0]
        if work <= 50e6 and shape not in seen:
            seen.add(shape)
            yield shape


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _run(shape: Shape, dtype: str, order: str, ours: Ours) -> None:
    data = Data.of(shape, dtype).ordered(order)
    for pass_ in shape.passes:
        ours.prepare(Task(shape, pass_, order, dtype), data).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 1 if the scratch memory passes the limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description="Scratch and resident memory over many different shapes.",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=1000, help="random shapes")
    parser.add_argument("--limit", type=float, default=8, help="MB of scratch a thread")
    parser.add_argument("--shapes", type=Path, default=SHAPES, metavar="FILE.csv")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    options = parser.parse_args(argv)
    ours = Ours(options.threads)
    print(
        f"cnn_ext {cnn_ext.__version__}, kernel set {_runtime.kernel_set()}, "
        f"{options.threads} thread(s), float32 and float64, both memory orders\n"
    )
    print(f"{'shapes':<22} {'scratch MB':>10} {'peak MB':>8} {'resident MB':>12}")
    record = []
    peak, largest = 0, "none"

    def note(what: str) -> None:
        row = (
            what,
            _runtime.scratch_held() / MEGABYTE,
            peak / MEGABYTE,
            resident() / MEGABYTE,
        )
        record.append(dict(zip(("shapes", "scratch", "peak", "resident"), row)))  # noqa: B905
        print(
            f"{row[0]:<22} {row[1]:>10.2f} {row[2]:>8.2f} {row[3]:>12.1f}", flush=True
        )

    def visit(shape: Shape, index: int) -> None:
        nonlocal peak, largest
        _run(shape, ("float32", "float64")[index // 2 % 2], ORDERS[index % 2], ours)
        held = _runtime.scratch_held()
        if held > peak:
            peak, largest = held, f"{shape[:14]}"

    note("none yet")
    for shape in read_shapes(options.shapes):
        # one image of each: scratch depends on the layer, not on the batch
        small = shape._replace(n=1)
        if np.prod(small.x_shape) <= 2e7:
            for index in range(4):
                visit(small, index)
    note("public, one image each")
    before = peak
    for index, shape in enumerate(random_shapes(options.count), 1):
        visit(shape, index)
        if index in (10, 30, 100, 300) or index == options.count:
            note(f"+ {index} random")
    each = peak / options.threads / MEGABYTE
    print(
        f"\npeak scratch {each:.2f} MB a thread (limit {options.limit:g}), first "
        f"reached by {largest}; "
        f"the random shapes added {(peak - before) / MEGABYTE:.2f} MB"
    )
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if each <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
