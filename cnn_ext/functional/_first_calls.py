"""The calls that are slow because they are the first, made at import."""

from __future__ import annotations

import numpy as np

from .convolution import conv2d, conv2d_backward_input, conv2d_backward_weight
from .linear import linear, linear_backward_input, linear_backward_weight
from .pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward

__all__ = ["make_first_calls"]


def make_first_calls() -> None:
    """Call each operator on some tiny shapes, for one or two milliseconds in all.

    A process's first convolution took ten times as long as its second: functions of
    shared libraries are bound, and their pages mapped, when they are first called, and
    CPython specialises its code in the course of some ten calls.
    """
    weight, square = np.zeros((1, 1, 3, 3), np.float32), np.zeros((2, 2), np.float32)
    for size in range(2, 18):
        x = np.zeros((1, 1, size, 9), np.float32)
        matrix = np.zeros((size, 2), np.float32)
        linear(matrix, square)
        linear_backward_input(matrix, square)
        linear_backward_weight(matrix, matrix)
        y, argmax = max_pool2d(x, 2, return_argmax=True)
        max_pool2d_backward(y, argmax, x.shape, 2)
        y = avg_pool2d(x, 2)
        avg_pool2d_backward(y, x.shape, 2)
        conv2d_backward_input(x, weight, x.shape, padding=1)
        conv2d_backward_weight(x, x, weight.shape, padding=1)
        conv2d(x, weight, padding=1)
