"""Activations: the functions that stand behind a layer's sums, element by element.

Where the derivative is a function of the output y, y alone is kept: the layer behind
keeps it too, as its input, so that it costs no memory. Else x is kept, and what the
forward pass had found out is worked out again.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from cnn_ext._elementwise import Pass, activate, delta
from cnn_ext._pointwise import KINDS
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


class _Activation(_SameShape):
    """A compiled pass element by element."""

    @property
    @abstractmethod
    def _pass(self) -> Pass:
        """What to compute, in words of the compiled code."""

    def forward(self, x, train=False):
        return activate(self._pass, floating(x))

    def backward(self, grad_y, saved):
        return delta(self._pass, grad_y, saved), {}


class ReLU(_Activation):
    """``max(x, 0)``; the derivative at 0 is 0. NaN stays NaN."""

    _pass = Pass(KINDS["relu"])


class ReLU6(_Activation):
    """``min(max(x, 0), 6)``; the derivative at 0 and at 6 is 0. NaN stays NaN.

    References
    ----------
    A. Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010.
    """

    _pass = Pass(KINDS["relu6"])


class LeakyReLU(_Activation):
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

    @property
    def _pass(self) -> Pass:
        slope = self.negative_slope
        return Pass(KINDS["leaky"], (slope, 0.0), (slope, 0.0, 0.0))


class ELU(_Activation):
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

    @property
    def _pass(self) -> Pass:
        return Pass(KINDS["elu"], (self.alpha, 0.0), (self.alpha, 0.0, 0.0))


class SiLU(_Activation):
    """``x * sigmoid(x)``, also called swish; NaN at -inf, as in PyTorch.

    The derivative is ``s + x * s * (1 - s)`` with s = sigmoid(x).

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-weighted linear units for neural network
    function approximation in reinforcement learning", Neural Networks 107, 2018.
    """

    _pass = Pass(KINDS["silu"], keeps_y=False)


class HardSwish(_Activation):
    """``x * min(max(x + 3, 0), 6) / 6``: swish in straight pieces.

    The derivative is 0 below -3, 1 above 3, ``x/3 + 1/2`` between.

    References
    ----------
    A. Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    _pass = Pass(KINDS["hardswish"], keeps_y=False)


class GELU(_Activation):
    """``x * Phi(x)``, Phi the normal distribution function: exact, no tanh in place.

    The derivative is ``Phi(x) + x * phi(x)`` with the density phi.

    References
    ----------
    D. Hendrycks, K. Gimpel, "Gaussian error linear units", arXiv:1606.08415, 2016.
    """

    _pass = Pass(KINDS["gelu"], keeps_y=False)


class Sigmoid(_Activation):
    """``1 / (1 + exp(-x))``; the delta is ``grad_y * y * (1 - y)``."""

    _pass = Pass(KINDS["sigmoid"], backward=(0.0, 1.0, -1.0))


class Tanh(_Activation):
    """Hyperbolic tangent; the delta is ``grad_y * (1 - y^2)``."""

    _pass = Pass(KINDS["tanh"], (1.0, 1.0), (1.0, 0.0, -1.0))


class ScaledTanh(_Activation):
    """``1.7159 tanh(2x/3)``: nearly 1 at 1, where its curvature is largest.

    References
    ----------
    Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998.
    """

    amplitude = 1.7159
    slope = 2 / 3

    # A S (1 - tanh^2) with tanh = y / A
    _pass = Pass(
        KINDS["tanh"], (amplitude, slope), (slope * amplitude, 0.0, -slope / amplitude)
    )


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
