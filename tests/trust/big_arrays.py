"""Arrays of more than 2**31 elements, one operator a run: indices of 64 bits.

Usage, from the folder tests: python -m trust.big_arrays NAME
with NAME one of the keys of CHECKS; each takes at most 10 GiB and about a minute. Zeros
that were never written to take no memory: that is most of the arrays that are read.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np

import cnn_ext
from cnn_ext import functional as F

#: 2**31 + 2**27 elements of float32, 9 GB: (1, C, H, W) with these
CHANNELS, HEIGHT, WIDTH = 17, 2**13, 2**14
SHAPE = (1, CHANNELS, HEIGHT, WIDTH)


def large() -> np.ndarray:
    """An array whose pixels tell where they are, in its last rows above all."""
    assert CHANNELS * HEIGHT * WIDTH > 2**31
    x = np.zeros(SHAPE, np.float32)
    for c in range(CHANNELS):
        x[0, c, -4:] = np.arange(4 * WIDTH).reshape(4, WIDTH) % 31 + c
    return x


def conv2d() -> None:
    """A large input: the last row of the result is that of a small image."""
    x, weight = large(), np.ones((1, CHANNELS, 2, 2), np.float32)
    y = F.conv2d(x, weight, stride=2)
    end = F.conv2d(np.ascontiguousarray(x[:, :, -4:]), weight, stride=2)
    assert np.array_equal(y[0, 0, -2:], end[0, 0]) and not y[0, 0, :-2].any()


def conv2d_output() -> None:
    """A large result."""
    x = np.zeros((1, 1, HEIGHT, WIDTH), np.float32)
    x[0, 0, -1] = np.arange(WIDTH) % 31
    weight = np.arange(1, 1 + CHANNELS, dtype=np.float32).reshape(CHANNELS, 1, 1, 1)
    y = F.conv2d(x, weight)
    assert y.size > 2**31
    for c in range(CHANNELS):
        assert np.array_equal(y[0, c, -1], (c + 1) * x[0, 0, -1])
        assert not y[0, c, :-1:97].any()


def conv2d_backward_input() -> None:
    weight = np.ones((1, CHANNELS, 1, 1), np.float32)
    grad_y = np.zeros((1, 1, HEIGHT, WIDTH), np.float32)
    grad_y[0, 0, -1] = np.arange(WIDTH) % 31
    grad_x = F.conv2d_backward_input(grad_y, weight, SHAPE)
    assert grad_x.size > 2**31
    for c in range(CHANNELS):
        assert np.array_equal(grad_x[0, c, -1], grad_y[0, 0, -1])
        assert not grad_x[0, c, :-1:97].any()


def conv2d_backward_weight() -> None:
    x = large()
    grad_y = np.zeros((1, 1, HEIGHT, WIDTH), np.float32)
    grad_y[0, 0, -1, -5:] = 1
    found = F.conv2d_backward_weight(grad_y, x, (1, CHANNELS, 1, 1))
    assert np.array_equal(found[0, :, 0, 0], x[0, :, -1, -5:].sum(axis=1))


def conv2d_backward_bias() -> None:
    x = large()
    assert np.allclose(
        F.conv2d_backward_bias(x), x[0, :, -4:].sum(axis=(1, 2), dtype=float), rtol=1e-6
    )


def max_pool2d() -> None:
    x = large()
    y, indices = F.max_pool2d(x, 4, return_indices=True)
    assert y.shape == (1, CHANNELS, HEIGHT // 4, WIDTH // 4)
    small, at = F.max_pool2d(x[:, :, -4:], 4, return_indices=True)
    assert np.array_equal(y[:, :, -1:], small) and not y[:, :, :-1].any()
    assert np.array_equal(indices[:, :, -1:] - (HEIGHT - 4) * WIDTH, at)


def max_pool2d_backward() -> None:
    shape = (1, CHANNELS, HEIGHT // 4, WIDTH // 4)
    argmax, error = np.full(shape, 15, np.uint8), np.zeros(shape, np.float32)
    error[0, :, -1, -1] = np.arange(CHANNELS) + 1
    grad_x = F.max_pool2d_backward(error, argmax, SHAPE, 4)
    assert np.array_equal(grad_x[0, :, -1, -1], error[0, :, -1, -1])
    assert np.count_nonzero(grad_x[0, -1]) == 1


def avg_pool2d() -> None:
    x = large()
    y = F.avg_pool2d(x, 4)
    end = F.avg_pool2d(x[:, :, -4:], 4)
    assert np.array_equal(y[:, :, -1:], end) and not y[:, :, :-1].any()


def avg_pool2d_backward() -> None:
    error = np.zeros((1, CHANNELS, HEIGHT // 4, WIDTH // 4), np.float32)
    error[0, :, -1, -1] = 16 * (np.arange(CHANNELS) + 1)
    grad_x = F.avg_pool2d_backward(error, SHAPE, 4)
    assert (grad_x[0, :, -4:, -4:] == error[0, :, -1:, -1:] / 16).all()
    assert np.count_nonzero(grad_x[0, -1]) == 16


def batch() -> None:
    """Many images, channels-last: the step from image to image is what is large."""
    images = np.zeros((2**17 + 2**13, 2**7, 2**7, 1), np.float32)
    assert images.size > 2**31
    x = images.transpose(0, 3, 1, 2)
    x[-1] = np.arange(2**14).reshape(2**7, 2**7) % 31
    y = F.max_pool2d(x, 2)
    assert np.array_equal(y[-1], F.max_pool2d(x[-1], 2)) and not y[:-1:997].any()


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        conv2d, conv2d_output, conv2d_backward_input, conv2d_backward_weight,
        conv2d_backward_bias, max_pool2d, max_pool2d_backward, avg_pool2d,
        avg_pool2d_backward, batch,
    )
}  # fmt: skip


def main(names: list[str]) -> None:
    cnn_ext.set_num_threads(2)
    for name in names:
        start = time.monotonic()
        CHECKS[name]()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        took = time.monotonic() - start
        print(f"{name}: fine, {took:.0f} s, {most:.1f} GiB at most", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
