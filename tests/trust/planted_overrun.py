"""An array that claims more memory than it has: AddressSanitizer must report it.

Usage, from the folder tests: python -m trust.planted_overrun
Never run it without AddressSanitizer: it reads memory that is not its own.
"""

from __future__ import annotations

import numpy as np

from cnn_ext import functional as F


def main() -> None:
    x, weight = np.ones((1, 1, 40, 40), "f"), np.ones((1, 1, 3, 3), "f")
    F.conv2d(np.lib.stride_tricks.as_strided(x, (1, 1, 41, 40)), weight)


if __name__ == "__main__":
    main()
