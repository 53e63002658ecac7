"""Two threads write to one array: what ThreadSanitizer must report, or it is blind.

Usage, from the folder tests: python -m trust.planted_race
"""

from __future__ import annotations

import threading

import numpy as np

import cnn_ext
from cnn_ext import functional as F


def main() -> None:
    cnn_ext.set_num_threads(1)
    x, weight = np.ones((4, 8, 32, 32), "f"), np.ones((8, 8, 3, 3), "f")
    out = F.conv2d(x, weight)

    def work() -> None:
        for _ in range(20):
            F.conv2d(x, weight, out=out)

    team = [threading.Thread(target=work) for _ in range(2)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()


if __name__ == "__main__":
    main()
