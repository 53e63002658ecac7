"""Resident memory stays flat over many calls of every operator and many models.

Usage, from the folder tests: python -m trust.leaks [CALLS [MODELS]]
"""

from __future__ import annotations

import gc
import sys
import time

from trust.workload import Call, models, network, operators, samples

import cnn_ext

#: Growth that is no leak: the allocators' own tables and pages that fill up once.
SLACK = 2 << 20


def resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def growth(call: Call, calls: int) -> int:
    """Return how much memory grows from a tenth of the calls to their end."""
    for _ in range(max(calls // 10, 3)):
        call()
    gc.collect()
    before = resident()
    for _ in range(calls):
        call()
    gc.collect()
    return resident() - before


def build() -> None:
    """Build a model, train it for one step, save nothing, drop it."""
    x, labels = samples(8)
    model = network()
    cnn_ext.fit(
        model, (x, labels), optimizer=cnn_ext.SGD(lr=0.1), epochs=1, batch_size=8,
        verbose=0,
    )  # fmt: skip


def refused() -> None:
    """Calls that raise leave nothing behind either."""
    x, _ = samples(2)
    for bad in ({"stride": 0}, {"padding": -1}, {"groups": 3}, {"out": x}):
        try:
            cnn_ext.functional.conv2d(x, x[:1], **bad)
        except ValueError:
            continue
        raise AssertionError(bad)


def measure(calls: int, builds: int) -> dict[str, int]:
    """Return the growth in bytes for each operator, and for models."""
    found = {}
    for name, call in operators().items():
        found[name] = growth(call, calls)
        if calls > 10_000:
            print(f"{found[name] >> 10} KiB  {name}", file=sys.stderr, flush=True)
    found |= {name: growth(call, builds) for name, call in models().items()}
    found["refused calls"] = growth(refused, calls // 4)
    found["models built"] = growth(build, builds)
    return found


def main(calls: int = 100_000, builds: int = 1_000) -> None:
    start = time.monotonic()
    found = measure(calls, builds)
    for name, grown in sorted(found.items(), key=lambda item: -item[1])[:10]:
        print(f"{grown / 1024:8.0f} KiB  {name}")
    print(
        f"{len(found)} kinds, {calls} calls each, {builds} models, "
        f"{time.monotonic() - start:.0f} s; {resident() >> 20} MiB resident"
    )
    leaking = [name for name, grown in found.items() if grown > SLACK]
    if leaking:
        sys.exit(f"memory grows: {leaking}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
