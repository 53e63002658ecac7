"""Python threads that share models, arrays and operators: the serial results, always.

Usage, from the folder tests: python -m trust.hammer [SECONDS [THREADS [OPENMP]]]
"""

from __future__ import annotations

import random
import sys
import threading
import time

from trust.workload import digest, everything

import cnn_ext


def hammer(seconds: float, threads: int) -> tuple[int, list[str]]:
    """Return the number of calls made, and which of them differed or failed."""
    calls = everything()
    expected = {name: digest(call()) for name, call in calls.items()}
    wrong: list[str] = []
    counts = [0] * threads
    start = threading.Barrier(threads)
    end = time.monotonic() + seconds

    def work(own: int) -> None:
        order, rng = list(calls), random.Random(own)
        start.wait()
        while not wrong:
            rng.shuffle(order)
            for name in order:
                try:
                    same = digest(calls[name]()) == expected[name]
                except Exception as error:
                    wrong.append(f"{name}: {error!r}")
                    return
                counts[own] += 1
                if not same:
                    wrong.append(name)
                if time.monotonic() > end:
                    return

    team = [threading.Thread(target=work, args=(own,)) for own in range(threads)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return sum(counts), wrong


def main(seconds: float = 60, threads: int = 8, openmp: int = 2) -> None:
    cnn_ext.set_num_threads(openmp)
    count, wrong = hammer(seconds, threads)
    print(f"{count} calls from {threads} threads in {seconds:g} s, {len(wrong)} wrong")
    if wrong:
        sys.exit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main(*(float(a) if i == 0 else int(a) for i, a in enumerate(sys.argv[1:])))
