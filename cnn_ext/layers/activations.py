"""Activations: the functions that stand behind a layer's sums, element by element.

Each keeps its output y alone: every derivative here is a function of y.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnn_ext._elementwise import quadratic_backward, relu, relu_backward
from cnn_ext.layers.base import Layer, Shape

__all__ = ["ReLU", "ScaledTanh", "Sigmoid", "Softmax", "Tanh"]


class _SameShape(Layer):
    def output_shape(self, input_shape: Any) -> Shape:
        return tuple(input_shape)


class ReLU(_SameShape):
    """``max(x, 0)``; the derivative at 0 is 0. NaN stays NaN."""

    def forward(self, x, train=False):
        y = relu(_floating(x))
        return y, y

    def backward(self, grad_y, saved):
        return relu_backward(grad_y, saved), {}


class Sigmoid(_SameShape):
    """``1 / (1 + exp(-x))``; the delta is ``grad_y * y * (1 - y)``."""

    def forward(self, x, train=False):
        with np.errstate(over="ignore"):  # exp(-x) = inf: y = 0, as it should be
            y = np.exp(-_floating(x))
        y += 1
        np.reciprocal(y, out=y)
        return y, y

    def backward(self, grad_y, saved):
        return quadratic_backward(grad_y, saved, 0, 1, -1), {}


class Tanh(_SameShape):
    """Hyperbolic tangent; the delta is ``grad_y * (1 - y^2)``."""

    def forward(self, x, train=False):
        y = np.tanh(_floating(x))
        return y, y

    def backward(self, grad_y, saved):
        return quadratic_backward(grad_y, saved, 1, 0, -1), {}


class ScaledTanh(_SameShape):
    """``1.7159 tanh(2x/3)``: nearly 1 at 1, where its curvature is largest.

    References
    ----------
    Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998.
    """

    amplitude = 1.7159
    slope = 2 / 3

    def forward(self, x, train=False):
        y = _floating(x) * self.slope
        np.tanh(y, out=y)
        y *= self.amplitude
        return y, y

    def backward(self, grad_y, saved):
        # A S (1 - tanh^2) with tanh = y / A
        a, c = self.slope * self.amplitude, -self.slope / self.amplitude
        return quadratic_backward(grad_y, saved, a, 0, c), {}


class Softmax(_SameShape):
    """``exp(x_k) / sum_j exp(x_j)`` over the classes, which are axis 1.

    For showing probabilities. A net trained with `CrossEntropy` ends with its logits:
    the loss contains the softmax.
    """

    def forward(self, x, train=False):
        y = x - _floating(x).max(axis=1, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(axis=1, keepdims=True)
        return y, y

    def backward(self, grad_y, saved):
        y = saved
        grad_x = grad_y - (grad_y * y).sum(axis=1, keepdims=True)
        grad_x *= y
        return grad_x, {}


def _floating(x: Any) -> np.ndarray:
    """Return x if it is a float32 or float64 array, as the operators demand."""
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(
            f"x must be a float32 or float64 array, got {kind}; "
            "convert with x.astype(numpy.float32)"
        )
    return x
