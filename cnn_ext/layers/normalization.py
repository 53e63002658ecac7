"""Normalisation over a batch and over neighbouring channels, and dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnn_ext._geometry import checked_size
from cnn_ext.initializers import Initializer, Seed, generator, initialize
from cnn_ext.layers.activations import floating
from cnn_ext.layers.base import Buffer, Layer, Parameter, Shape, checked_float

__all__ = ["BatchNorm2d", "Dropout", "Dropout2d", "LocalResponseNorm"]

_PIXELS = (0, 2, 3)  # what a channel's statistics go over


class BatchNorm2d(Layer):
    """Each channel gets mean 0 and variance 1, then a trained gain and shift.

    In training with mean and variance (biased) of the batch, over images and pixels;
    in inference with their running values, which training keeps up:
    ``running = (1 - momentum) * running + momentum * new``, the new variance unbiased.

    Parameters
    ----------
    channels : int
        C.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float, default 0.1
        Weight of the new value in the running one, from 0 to 1.
    affine : bool, default True
        Whether there are gain and shift.
    weight_init, bias_init : str or callable, default "ones" and "zeros"
        First gains and shifts.
    running_mean_init, running_var_init : str or callable
        Default "zeros" and "ones".
    seed, dtype, name
        As in `Conv2d`.

    Attributes
    ----------
    weight, bias : Parameter or None
        Gain and shift, shape (C,).
    running_mean, running_var : Buffer
        Shape (C,). The only thing that a forward pass in training changes.

    Raises
    ------
    ValueError
        In training, if a channel has one value only: it has no variance.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch normalization: accelerating deep network training by
    reducing internal covariate shift", ICML 2015.
    """

    input_ndim = 4

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        weight_init: str | Initializer = "ones",
        bias_init: str | Initializer = "zeros",
        running_mean_init: str | Initializer = "zeros",
        running_var_init: str | Initializer = "ones",
        seed: Seed = None,
        dtype: Any = np.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.channels = checked_size(channels, "channels", 1)
        self.eps = checked_float(eps, "eps", 0.0)
        self.momentum = checked_float(momentum, "momentum", 0.0, 1.0)
        self.affine = bool(affine)
        rng = generator(seed)

        def first(init):
            return initialize(init, (self.channels,), (1, 1), rng, dtype)

        self.weight = Parameter(first(weight_init)) if affine else None
        self.bias = Parameter(first(bias_init)) if affine else None
        self.running_mean = Buffer(first(running_mean_init))
        self.running_var = Buffer(first(running_var_init))

    def forward(self, x, train=False):
        self._check(x)
        if not train:
            return self._with(x, self.running_mean.value, self.running_var.value), None
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if count == 1:
            raise ValueError(
                "training needs more than one value per channel for a variance, x has "
                f"shape {x.shape}"
            )
        if count == 0:  # nothing to learn the statistics from
            return x.copy(), (x, np.ones(self.channels, x.dtype))
        # sums in float64: a float32 one would lose digits of large batches
        mean = x.sum(axis=_PIXELS, dtype=np.float64) / count
        centred = x - _by_channel(mean.astype(x.dtype))
        variance = (centred * centred).sum(axis=_PIXELS, dtype=np.float64) / count
        self._follow(mean, variance * (count / (count - 1)))
        scale = (1 / np.sqrt(variance + self.eps)).astype(x.dtype)
        normal = centred
        normal *= _by_channel(scale)
        if self.weight is None or self.bias is None:
            return normal, (normal, scale)
        y = normal * _by_channel(self.weight.value)
        y += _by_channel(self.bias.value)
        return y, (normal, scale)

    def backward(self, grad_y, saved):
        normal, scale = saved
        count = normal.shape[0] * normal.shape[2] * normal.shape[3]
        sums = grad_y.sum(axis=_PIXELS, dtype=np.float64)
        products = (grad_y * normal).sum(axis=_PIXELS, dtype=np.float64)
        # The mean and the variance depend on every x of the channel: with g the
        # error that arrives at the normalised values z,
        # grad_x = scale * (g - mean(g) - z * mean(g * z))
        grad_x = normal * _by_channel((-products / max(count, 1)).astype(normal.dtype))
        grad_x -= _by_channel((sums / max(count, 1)).astype(normal.dtype))
        grad_x += grad_y
        if self.weight is None:
            grad_x *= _by_channel(scale)
            return grad_x, {}
        grad_x *= _by_channel(scale * self.weight.value)
        return grad_x, {
            "weight": products.astype(normal.dtype),
            "bias": sums.astype(normal.dtype),
        }

    def _with(self, x, mean, variance):
        scale = 1 / np.sqrt(variance.astype(np.float64) + self.eps)
        shift = -mean * scale
        if self.weight is not None and self.bias is not None:
            scale = scale * self.weight.value
            shift = shift * self.weight.value + self.bias.value
        y = x * _by_channel(scale.astype(x.dtype))
        y += _by_channel(shift.astype(x.dtype))
        return y

    def _follow(self, mean, variance):
        """Move the running values towards those of a batch."""
        for buffer, new in ((self.running_mean, mean), (self.running_var, variance)):
            # a new array: a pass of another thread may be reading the old one
            old = buffer.value
            buffer.value = (old + self.momentum * (new - old)).astype(old.dtype)

    def _check(self, x: Any) -> None:
        floating(x)
        if x.dtype != self.running_mean.value.dtype:
            raise TypeError(
                f"x is {x.dtype}, the layer works in {self.running_mean.value.dtype}"
            )
        if x.ndim != 4:
            raise ValueError(f"x must have axes (N, C, H, W), got shape {x.shape}")
        self.output_shape(x.shape[1:])

    def output_shape(self, input_shape: Any) -> Shape:
        shape = tuple(input_shape)
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(
                f"running_mean has {self.channels} channels, x has shape {shape} "
                "(batch axis left out)"
            )
        return shape

    def multiply_adds(self, input_shape: Any) -> int:
        return math.prod(input_shape)


class Dropout(Layer):
    """In training, each value is 0 with probability `p`, else divided by 1 - p.

    In inference nothing happens: the expected value is the same (inverted dropout).

    Parameters
    ----------
    p : float, default 0.5
        From 0 to 1.
    seed : int, numpy.random.Generator or None
        Source of the draws. With None, `fit` lends its own Generator, so that its seed
        decides; elsewhere each pass takes fresh entropy from the system.
    name : str, optional
        See `Layer`.

    Attributes
    ----------
    rng : numpy.random.Generator or None

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, "Dropout:
    a simple way to prevent neural networks from overfitting", JMLR 15, 2014.
    """

    def __init__(
        self, p: float = 0.5, *, seed: Seed = None, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.p = checked_float(p, "p", 0.0, 1.0)
        self.rng = None if seed is None else generator(seed)

    def forward(self, x, train=False):
        floating(x)
        if not train:
            return x, None
        scale = x.dtype.type(0 if self.p == 1 else 1 / (1 - self.p))
        # Drawn in logical order and float32 in either case: the memory order and the
        # dtype of x do not change which values go.
        draws = generator(self.rng).random(self._drawn(x.shape), dtype=np.float32)
        factor = np.where(draws >= self.p, scale, x.dtype.type(0))
        return x * factor, factor

    def backward(self, grad_y, saved):
        factor = saved
        return grad_y * factor, {}

    def _drawn(self, shape: Shape) -> Shape:
        return shape

    def output_shape(self, input_shape: Any) -> Shape:
        return tuple(input_shape)


class Dropout2d(Dropout):
    """In training, each map (n, c) as a whole is 0 with probability `p`.

    Neighbouring pixels say the same: dropping one of them alone would teach little.

    Parameters
    ----------
    p, seed, name
        As in `Dropout`.

    References
    ----------
    J. Tompson, R. Goroshin, A. Jain, Y. LeCun, C. Bregler, "Efficient object
    localization using convolutional networks", CVPR 2015.
    """

    input_ndim = 4

    def _drawn(self, shape: Shape) -> Shape:
        if len(shape) != 4:
            raise ValueError(f"x must have axes (N, C, H, W), got shape {shape}")
        return (*shape[:2], 1, 1)


class LocalResponseNorm(Layer):
    """``x / (k + alpha/size * sum of squares of neighbouring channels)^beta``.

    The window of `size` channels reaches from ``c - size//2`` to
    ``c + (size - 1)//2``; channels that do not exist count as 0.

    Parameters
    ----------
    size : int
        Channels in a window.
    alpha, beta, k : float, default 1e-4, 0.75, 1
        As PyTorch's; alpha and k not negative.
    name : str, optional
        See `Layer`.

    References
    ----------
    A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep
    convolutional neural networks", NIPS 2012 (with alpha * size in place of alpha).
    """

    def __init__(
        self,
        size: int,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.size = checked_size(size, "size", 1)
        self.alpha = checked_float(alpha, "alpha", 0.0)
        self.beta = checked_float(beta, "beta", -math.inf)
        self.k = checked_float(k, "k", 0.0)

    def forward(self, x, train=False):
        floating(x)
        self.output_shape(x.shape[1:])
        base = self._window_sums(x * x, self.size // 2)
        base *= self.alpha / self.size
        base += self.k
        factor = base ** x.dtype.type(-self.beta)
        return x * factor, (x, base, factor)

    def backward(self, grad_y, saved):
        # y_i = x_i b_i^-beta, and b_i contains the square of each x_j of its window:
        # grad_x_j = g_j b_j^-beta - 2 alpha beta / size x_j sum_i g_i x_i b_i^(-beta-1)
        # over the windows i that hold j: the mirrored window
        x, base, factor = saved
        products = grad_y * x
        products *= factor
        products /= base
        grad_x = self._window_sums(products, (self.size - 1) // 2)
        grad_x *= x
        grad_x *= -2 * self.alpha * self.beta / self.size
        grad_x += grad_y * factor
        return grad_x, {}

    def _window_sums(self, values, before):
        """Sum over the channels c - before … c - before + size - 1."""
        channels = values.shape[1]
        sums = values.copy(order="K")
        for offset in range(-before, self.size - before):
            if offset and abs(offset) < channels:
                low, high = max(0, -offset), channels - max(0, offset)
                sums[:, low:high] += values[:, low + offset : high + offset]
        return sums

    def output_shape(self, input_shape: Any) -> Shape:
        if len(input_shape) < 1:
            raise ValueError("x must have channels, got no axis beside the batch axis")
        return tuple(input_shape)

    def multiply_adds(self, input_shape: Any) -> int:
        return self.size * math.prod(input_shape)


def _by_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1, 1, 1)
