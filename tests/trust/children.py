"""Children of every kind compute forward and backward, and end.

Usage, from the folder tests: python -m trust.children KIND COUNT
with KIND one of fork, spawn, forkserver, preloaded, joblib, busy
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time

import numpy as np
from trust.workload import digest, models

import cnn_ext
from cnn_ext import functional as F

#: seconds after which a child counts as hanging
PATIENCE = 60


def work(_: object = None) -> str:
    """Forward, backward and training, large enough for several threads."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 18, 30, 30)).astype("f")
    weight = rng.standard_normal((20, 18, 3, 3)).astype("f")
    cnn_ext.set_num_threads(2)
    y = F.conv2d(x, weight, padding=1)
    z, argmax = F.max_pool2d(y, 2, return_argmax=True)
    back = F.max_pool2d_backward(z, argmax, y.shape, 2)
    grad_x = F.conv2d_backward_input(back, weight, x.shape, padding=1)
    grad_weight = F.conv2d_backward_weight(back, x, weight.shape, padding=1)
    return digest((y, z, grad_x, grad_weight, *models()["fit"]()))


def _by_fork(count: int, expected: str) -> None:
    """os.fork, again and again; each child must end with 0 in time."""
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if work() == expected else 3)
            except BaseException:
                os._exit(4)
        end = time.monotonic() + PATIENCE
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(child, 9)
                os.waitpid(child, 0)
                sys.exit("a child hangs")
            time.sleep(0.001)
        if ended[1]:
            sys.exit(f"a child ended with {ended[1]}")


def _while_busy(count: int, expected: str) -> None:
    """os.fork while three other threads are inside of operators and of training."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            work()

    team = [threading.Thread(target=busy) for _ in range(3)]
    for thread in team:
        thread.start()
    try:
        _by_fork(count, expected)
    finally:
        stop.set()
        for thread in team:
            thread.join()


def _by_multiprocessing(method: str, count: int) -> list[str]:
    preload = method == "preloaded"
    context = multiprocessing.get_context("forkserver" if preload else method)
    if preload:
        context.set_forkserver_preload(["trust.children"])
    # one task a child: as many children as results
    with context.Pool(2, maxtasksperchild=1) as pool:
        return pool.map_async(work, range(count), 1).get(PATIENCE * count)


def main(kind: str, count: int) -> None:
    expected = work()
    if kind == "fork":
        _by_fork(count, expected)
    elif kind == "busy":
        _while_busy(count, expected)
    elif kind == "joblib":
        import joblib

        calls = [joblib.delayed(work)() for _ in range(count)]
        found = joblib.Parallel(n_jobs=2, timeout=PATIENCE)(calls)
        assert found == [expected] * count
    else:
        assert _by_multiprocessing(kind, count) == [expected] * count
    assert work() == expected
    print("fine")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
