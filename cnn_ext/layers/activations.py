"""Activations: the functions that stand behind a layer's sums, element by element.

Where the derivative is a function of the output y, y alone is kept: the layer behind
keeps it too, as its input, so that it costs no memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnn_ext._elementwise import quadratic_backward, relu, relu_backward
from cnn_ext._erf import normal_cdf
from cnn_ext.layers.base import Layer, Shape, checked_float

__all__ = [
    "ELU",
    "GELU",
    "HardSwish",
    "LeakyReLU",
    "ReLU",
    "ReLU6",
    "ScaledTanh",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]


class _SameShape(Layer):
    def output_shape(self, input_shape: Any) -> Shape:
        return tuple(input_shape)


class ReLU(_SameShape):
    """``max(x, 0)``; the derivative at 0 is 0. NaN stays NaN."""

    def forward(self, x, train=False):
        y = relu(floating(x))
        return y, y

    def backward(self, grad_y, saved):
        return relu_backward(grad_y, saved), {}


class ReLU6(_SameShape):
    """``min(max(x, 0), 6)``; the derivative at 0 and at 6 is 0. NaN stays NaN.

    References
    ----------
    A. Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010.
    """

    def forward(self, x, train=False):
        y = np.maximum(floating(x), x.dtype.type(0))
        np.minimum(y, x.dtype.type(6), out=y)
        return y, y

    def backward(self, grad_y, saved):
        y = saved
        return np.where((y <= 0) | (y >= 6), grad_y.dtype.type(0), grad_y), {}


class LeakyReLU(_SameShape):
    """``x`` above 0, ``negative_slope * x`` elsewhere.

    Parameters
    ----------
    negative_slope : float, default 0.01
        Not negative; it is the derivative at 0 too.
    name : str, optional
        See `Layer`.

    References
    ----------
    A. Maas, A. Hannun, A. Ng, "Rectifier nonlinearities improve neural network
    acoustic models", ICML 2013.
    """

    def __init__(self, negative_slope: float = 0.01, *, name: str | None = None):
        super().__init__(name=name)
        # y has the sign of x, so y says which of the two slopes it was
        self.negative_slope = checked_float(negative_slope, "negative_slope", 0.0)

    def forward(self, x, train=False):
        y = floating(x) * x.dtype.type(self.negative_slope)
        np.copyto(y, x, where=x > 0)
        return y, y

    def backward(self, grad_y, saved):
        y = saved
        grad_x = grad_y * grad_y.dtype.type(self.negative_slope)
        np.copyto(grad_x, grad_y, where=y > 0)
        return grad_x, {}


class ELU(_SameShape):
    """``x`` above 0, ``alpha * (exp(x) - 1)`` elsewhere.

    Parameters
    ----------
    alpha : float, default 1
        Not negative; ``-alpha`` is the least value.
    name : str, optional
        See `Layer`.

    References
    ----------
    D.-A. Clevert, T. Unterthiner, S. Hochreiter, "Fast and accurate deep network
    learning by exponential linear units", ICLR 2016.
    """

    def __init__(self, alpha: float = 1.0, *, name: str | None = None):
        super().__init__(name=name)
        self.alpha = checked_float(alpha, "alpha", 0.0)

    def forward(self, x, train=False):
        y = np.minimum(floating(x), x.dtype.type(0))
        np.expm1(y, out=y)
        y *= x.dtype.type(self.alpha)
        np.copyto(y, x, where=x > 0)
        return y, y

    def backward(self, grad_y, saved):
        y = saved
        grad_x = y + y.dtype.type(self.alpha)  # alpha exp(x)
        grad_x *= grad_y
        np.copyto(grad_x, grad_y, where=y > 0)
        return grad_x, {}


class SiLU(_SameShape):
    """``x * sigmoid(x)``, also called swish.

    The derivative is ``s + y * (1 - s)`` with s = sigmoid(x).

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-weighted linear units for neural network
    function approximation in reinforcement learning", Neural Networks 107, 2018.
    """

    def forward(self, x, train=False):
        sigmoid, _ = Sigmoid().forward(x)
        with np.errstate(invalid="ignore"):  # -inf * 0 is NaN, as in PyTorch
            y = x * sigmoid
        return y, (y, sigmoid)

    def backward(self, grad_y, saved):
        y, sigmoid = saved
        grad_x = 1 - sigmoid
        grad_x *= y
        grad_x += sigmoid
        grad_x *= grad_y
        return grad_x, {}


class HardSwish(_SameShape):
    """``x * min(max(x + 3, 0), 6) / 6``: swish in straight pieces.

    The derivative is 0 below -3, 1 above 3, ``x/3 + 1/2`` between.

    References
    ----------
    A. Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    def forward(self, x, train=False):
        y = floating(x) + x.dtype.type(3)
        np.clip(y, 0, 6, out=y)
        with np.errstate(invalid="ignore"):
            y *= x
        y *= x.dtype.type(1 / 6)
        return y, x

    def backward(self, grad_y, saved):
        x = saved
        grad_x = x * x.dtype.type(1 / 3)
        grad_x += x.dtype.type(0.5)
        grad_x *= grad_y
        np.copyto(grad_x, 0, where=x <= -3)
        np.copyto(grad_x, grad_y, where=x >= 3)
        return grad_x, {}


class GELU(_SameShape):
    """``x * Phi(x)``, Phi the normal distribution function: exact, no tanh in place.

    The derivative is ``Phi(x) + x * phi(x)`` with the density phi.

    References
    ----------
    D. Hendrycks, K. Gimpel, "Gaussian error linear units", arXiv:1606.08415, 2016.
    """

    def forward(self, x, train=False):
        share = normal_cdf(floating(x))
        with np.errstate(invalid="ignore"):
            return x * share, (x, share)

    def backward(self, grad_y, saved):
        x, share = saved
        grad_x = x * x
        grad_x *= -0.5
        np.exp(grad_x, out=grad_x)
        grad_x *= x
        grad_x *= 1 / math.sqrt(2 * math.pi)
        grad_x += share
        grad_x *= grad_y
        return grad_x, {}


class Sigmoid(_SameShape):
    """``1 / (1 + exp(-x))``; the delta is ``grad_y * y * (1 - y)``."""

    def forward(self, x, train=False):
        with np.errstate(over="ignore"):  # exp(-x) = inf: y = 0, as it should be
            y = np.exp(-floating(x))
        y += 1
        np.reciprocal(y, out=y)
        return y, y

    def backward(self, grad_y, saved):
        return quadratic_backward(grad_y, saved, 0, 1, -1), {}


class Tanh(_SameShape):
    """Hyperbolic tangent; the delta is ``grad_y * (1 - y^2)``."""

    def forward(self, x, train=False):
        y = np.tanh(floating(x))
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
        y = floating(x) * self.slope
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
        y = x - floating(x).max(axis=1, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(axis=1, keepdims=True)
        return y, y

    def backward(self, grad_y, saved):
        y = saved
        grad_x = grad_y - (grad_y * y).sum(axis=1, keepdims=True)
        grad_x *= y
        return grad_x, {}


def floating(x: Any) -> np.ndarray:
    """Return x if it is a float32 or float64 array, as the operators demand."""
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(
            f"x must be a float32 or float64 array, got {kind}; "
            "convert with x.astype(numpy.float32)"
        )
    return x
