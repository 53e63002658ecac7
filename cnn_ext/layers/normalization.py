"""Normalisation over a batch and over neighbouring channels, and dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnn_ext import _normalize
from cnn_ext._elementwise import dense, in_order_of, like
from cnn_ext._geometry import checked_size
from cnn_ext.initializers import Initializer, Seed, generator, initialize
from cnn_ext.layers.activations import floating
from cnn_ext.layers.base import Buffer, Layer, Parameter, Shape, checked_float

__all__ = ["BatchNorm2d", "Dropout", "Dropout2d", "LocalResponseNorm"]

# What `_normalize.train` finds out about each channel.
_STATISTICS = 5


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
        x = dense(x)
        y = like(x)
        weight, bias = self._affine
        if not train:
            running = self.running_mean.value, self.running_var.value
            _normalize.infer(x, *running, weight, bias, y, self.eps)
            return y, None
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if count == 1:
            raise ValueError(
                "training needs more than one value per channel for a variance, x has "
                f"shape {x.shape}"
            )
        statistics = np.ones((_STATISTICS, self.channels))
        if count:  # else there is nothing to learn the statistics from
            _normalize.train(x, weight, bias, y, statistics, self.eps)
            self._follow(statistics, count)
        return y, (x, statistics)

    def backward(self, grad_y, saved):
        x, statistics = saved
        grad_x = like(x)
        grads = {name: np.empty(self.channels, x.dtype) for name in self.parameters}
        _normalize.backward(
            in_order_of(x, grad_y), x, statistics, grad_x,
            grads.get("weight"), grads.get("bias"),
        )  # fmt: skip
        return grad_x, grads

    @property
    def _affine(self) -> tuple[Any, Any]:
        """Gain and shift as arrays without gaps, or None and None."""
        if self.weight is None or self.bias is None:
            return None, None
        return (
            np.ascontiguousarray(self.weight.value),
            np.ascontiguousarray(self.bias.value),
        )

    def _follow(self, statistics: np.ndarray, count: int) -> None:
        """Move the running values towards those of a batch."""
        # new arrays: a pass of another thread may be reading the old ones
        old = self.running_mean.value, self.running_var.value
        new = np.empty_like(old[0]), np.empty_like(old[1])
        _normalize.follow(statistics, *old, *new, self.momentum, count)
        self.running_mean.value, self.running_var.value = new

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
        x = dense(x)
        scale = x.dtype.type(0 if self.p == 1 else 1 / (1 - self.p))
        # Drawn in logical order and float32 in either case: the memory order and the
        # dtype of x do not change which values go.
        draws = generator(self.rng).random(self._drawn(x.shape), dtype=np.float32)
        factor = (draws >= self.p) * scale
        if factor.shape == x.shape:
            factor = in_order_of(x, factor)
        return np.multiply(x, factor, out=like(x)), factor

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
