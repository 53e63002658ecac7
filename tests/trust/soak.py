"""An hour of mixed calls with varying shapes: memory stays below a stated bound.

Usage, from the folder tests: python -m trust.soak [SECONDS]

The bound: what the process took after the first tenth of the time, and 64 MiB. Scratch
blocks are kept for the next call, 64 at most, each as large as the largest need so far.
"""

from __future__ import annotations

import gc
import random
import sys
import time

import numpy as np
from trust.leaks import resident
from trust.workload import models

import cnn_ext
from cnn_ext import _runtime
from cnn_ext import functional as F

BOUND = 64 << 20


def random_calls(rng: random.Random) -> None:
    """All operators once, on sizes drawn anew."""
    n, group = rng.randint(1, 4), rng.choice([1, 1, 1, 2, 8])
    c, k = group * rng.randint(1, 24), group * rng.randint(1, 24)
    if rng.random() < 0.2:
        group = c = k
    r, s = rng.randint(1, 5), rng.randint(1, 5)
    h, w = rng.randint(r, 60), rng.randint(s, 60)
    options = {
        "stride": rng.randint(1, 3), "padding": rng.randint(0, 2), "groups": group
    }  # fmt: skip
    x = np.ones((n, c, h, w), rng.choice(["f", "d"]))
    if rng.random() < 0.5:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    weight = np.ones((k, c // group, r, s), x.dtype)
    y = F.conv2d(x, weight, weight[:, 0, 0, 0], **options)
    F.conv2d_backward_input(y, weight, x.shape, **options)
    F.conv2d_backward_weight(y, x, weight.shape, **options)
    F.conv2d_backward_bias(y)
    window = {"stride": rng.randint(1, 3), "padding": min(r, s) // 2}
    y, argmax = F.max_pool2d(x, (r, s), return_argmax=True, **window)
    F.max_pool2d_backward(y, argmax, x.shape, (r, s), **window)
    y = F.avg_pool2d(x, (r, s), **window)
    F.avg_pool2d_backward(y, x.shape, (r, s), **window)


def soak(seconds: float, report: float = 300) -> tuple[int, int, int]:
    """Return rounds made, memory after a tenth of the time, and the most after it."""
    rng = random.Random(0)
    steady = list(models().values())
    start = time.monotonic()
    rounds = early = most = 0
    said = start
    while (now := time.monotonic()) < start + seconds:
        random_calls(rng)
        rounds += 1
        if rounds % 50 == 0:
            cnn_ext.set_num_threads(rng.randint(1, 4))
            _runtime.use_kernel_set(rng.choice(_runtime.kernel_sets()))
            for call in steady:
                call()
        if rounds % 20 == 0:
            gc.collect()
            memory = resident()
            early = max(early, memory) if now < start + seconds / 10 else early
            most = max(most, memory)
        if now > said + report:
            said = now
            print(
                f"{now - start:6.0f} s  {rounds} rounds  {resident() >> 20} MiB, "
                f"{_runtime.scratch_held() >> 20} MiB of it scratch",
                flush=True,
            )
    return rounds, early, most


def main(seconds: float = 3600) -> None:
    rounds, early, most = soak(seconds)
    print(f"{rounds} rounds of 8 calls; {early >> 20} MiB early, {most >> 20} at most")
    if most > early + BOUND:
        sys.exit("memory grows")


if __name__ == "__main__":
    main(*(float(argument) for argument in sys.argv[1:]))
