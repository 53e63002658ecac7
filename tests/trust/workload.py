"""Calls of everything that is compiled, small and by name, for the programs here.

Each call is a function without arguments that returns an array or a tuple of arrays;
the same call gives the same bits again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

import cnn_ext
from cnn_ext import functional as F

Call = Callable[[], Any]

#: name: x, weight, options; together they reach every algorithm of every pass
CONVOLUTIONS: dict[str, tuple] = {
    "direct": ((2, 9, 13, 14), (11, 9, 3, 2), {"padding": 1, "stride": (2, 1)}),
    "1x1": ((3, 20, 7, 8), (18, 20, 1, 1), {}),
    "winograd 3x3": ((2, 18, 14, 15), (20, 18, 3, 3), {"padding": 1}),
    "winograd 5x5": ((2, 17, 12, 13), (19, 17, 5, 5), {"padding": 2}),
    "winograd dilated": ((2, 17, 26, 21), (18, 17, 3, 3), {"dilation": (3, 2)}),
    "winograd 1x7": ((2, 33, 12, 17), (50, 33, 1, 7), {"padding": (0, 3)}),
    "winograd 3x1": ((3, 49, 16, 12), (66, 49, 3, 1), {"padding": (1, 0)}),
    "planes": ((3, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "few filters": ((2, 6, 15, 16), (3, 6, 3, 3), {"padding": "same"}),
    "dilated": ((2, 8, 15, 16), (9, 8, 3, 3), {"dilation": 2, "padding": 2}),
    "groups": ((2, 12, 9, 10), (18, 4, 3, 3), {"groups": 3, "padding": 1}),
    "few a group": ((2, 24, 11, 17), (24, 4, 3, 3), {"groups": 6, "padding": 1}),
    "depthwise": ((2, 21, 11, 12), (21, 1, 3, 3), {"groups": 21, "padding": 1}),
    "depthwise strided": ((2, 5, 14, 35), (5, 1, 3, 3), {"groups": 5, "stride": 2}),
    "dots": ((2, 40, 9, 17), (3, 40, 3, 3), {"padding": 1}),
    "wide dilation": ((1, 20, 33, 31), (17, 20, 3, 3), {"dilation": 12, "padding": 12}),
}


def _images(rng: np.random.Generator, shape: tuple, dtype: str, last: bool) -> Any:
    values = rng.standard_normal(shape).astype(dtype)
    if not last:
        return values
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def operators(dtype: str = "float32", channels_last: bool = False) -> dict[str, Call]:
    """Every operator, each convolution once for each algorithm."""
    rng = np.random.default_rng(0)
    calls: dict[str, Call] = {}
    for name, (x_shape, weight_shape, options) in CONVOLUTIONS.items():
        _add_convolution(
            calls, name, _images(rng, x_shape, dtype, channels_last),
            rng.standard_normal(weight_shape).astype(dtype), rng, options,
        )  # fmt: skip
    _add_poolings(calls, _images(rng, (2, 19, 15, 17), dtype, channels_last), rng)
    x, weight, error = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((9, 30), (20, 30), (9, 20))
    )
    bias = weight[:, 0].copy()
    calls["linear"] = lambda: F.linear(x, weight, bias)
    calls["linear_backward_input"] = lambda: F.linear_backward_input(error, weight)
    calls["linear_backward_weight"] = lambda: F.linear_backward_weight(error, x)
    calls["linear_backward_bias"] = lambda: F.linear_backward_bias(error)
    return calls


def _add_convolution(calls, name, x, weight, rng, options) -> None:
    bias = weight[:, 0, 0, 0].copy()
    y = F.conv2d(x, weight, bias, **options)
    grad_y = rng.standard_normal(y.shape).astype(x.dtype)
    calls |= {
        f"{name}: conv2d": lambda: F.conv2d(x, weight, bias, **options),
        f"{name}: conv2d_backward_input": lambda: F.conv2d_backward_input(
            grad_y, weight, x.shape, **options
        ),
        f"{name}: conv2d_backward_weight": lambda: F.conv2d_backward_weight(
            grad_y, x, weight.shape, **options
        ),
        f"{name}: conv2d_backward_bias": lambda: F.conv2d_backward_bias(grad_y),
    }


def _add_poolings(calls, x, rng) -> None:
    for kernel, where in ((2, {}), (3, {"stride": 2, "padding": 1})):
        _add_pooling(calls, x, kernel, where, rng)


def _add_pooling(calls, x, kernel, where, rng) -> None:
    y, argmax = F.max_pool2d(x, kernel, return_argmax=True, **where)
    _, indices = F.max_pool2d(x, kernel, return_indices=True, **where)
    error = rng.standard_normal(y.shape).astype(x.dtype)
    gain, bias = rng.standard_normal((2, x.shape[1])).astype(x.dtype)
    shape, name = x.shape, f"{kernel}x{kernel}"
    calls |= {
        f"{name}: max_pool2d": lambda: F.max_pool2d(x, kernel, **where),
        f"{name}: max_pool2d, argmax": lambda: F.max_pool2d(
            x, kernel, return_argmax=True, **where
        ),
        f"{name}: max_pool2d, indices": lambda: F.max_pool2d(
            x, kernel, return_indices=True, **where
        ),
        f"{name}: max_pool2d_backward": lambda: F.max_pool2d_backward(
            error, argmax, shape, kernel, **where
        ),
        f"{name}: max_pool2d_backward, indices": lambda: F.max_pool2d_backward(
            error, indices, shape, kernel, **where
        ),
        f"{name}: avg_pool2d": lambda: F.avg_pool2d(x, kernel, **where),
        f"{name}: avg_pool2d_backward": lambda: F.avg_pool2d_backward(
            error, shape, kernel, **where
        ),
        f"{name}: subsample2d": lambda: F.subsample2d(x, gain, bias, kernel, **where),
        f"{name}: subsample2d_backward": lambda: F.subsample2d_backward(
            error, x, gain, kernel, **where
        ),
    }


def network(seed: int = 0) -> cnn_ext.Sequential:
    """Build a small network that has every kind of layer with parameters."""
    rng = np.random.default_rng(seed)
    return cnn_ext.Sequential(
        cnn_ext.Conv2d(1, 6, 5, padding=2, seed=rng),
        cnn_ext.Tanh(),
        cnn_ext.Subsample2d(6, 2, seed=rng),
        cnn_ext.Conv2d(6, 16, 3, seed=rng),
        cnn_ext.ReLU(),
        cnn_ext.MaxPool2d(2),
        cnn_ext.Flatten(),
        cnn_ext.Linear(16 * 3 * 3, 10, seed=rng),
        input_shape=(1, 16, 16),
    )


def samples(count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 1, 16, 16) and labels 0..9."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 1, 16, 16)).astype(np.float32)
    return x, rng.integers(0, 10, count)


def models(shared: cnn_ext.Model | None = None) -> dict[str, Call]:
    """Inference and gradients of one shared network, and a training of its own."""
    model = shared or network()
    x, labels = samples()
    error = np.ones((len(x), 10), np.float32)

    def gradients():
        y, pullback = model.vjp(x)
        grad_x, grads = pullback(error)
        return (y, grad_x, *(grads[name] for name in sorted(grads)))

    def training():
        own = network(1)
        cnn_ext.fit(
            own, (x, labels), optimizer=cnn_ext.SGD(lr=0.05, momentum=0.9),
            epochs=2, batch_size=8, seed=0, verbose=0,
        )  # fmt: skip
        return tuple(p.value for p in own.parameters())

    return {"model": lambda: model(x), "vjp": gradients, "fit": training}


def everything() -> dict[str, Call]:
    """Operators in both dtypes and memory orders, and models."""
    calls = models()
    for dtype in ("float32", "float64"):
        for last in (False, True):
            order = "channels-last" if last else "contiguous"
            for name, call in operators(dtype, last).items():
                calls[f"{name} ({dtype}, {order})"] = call
    return calls


def digest(result: Any) -> str:
    """Return a hash of every bit of a call's result."""
    parts = result if isinstance(result, tuple) else (result,)
    found = hashlib.sha256()
    for part in parts:
        found.update(repr((part.shape, part.dtype.str)).encode())
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()
