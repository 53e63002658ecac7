"""Prints digests of every operator's result, for each kernel set and thread count.

A program of its own: the number of threads that OpenMP may start is fixed by the
environment when a process starts. See test_threads.py.
"""

import hashlib
import json

import numpy as np
from cases import KERNEL_SETS, THREADS, lay_out, machine

from cnn_ext import functional as F
from cnn_ext.clipping import clip_grad_norm
from cnn_ext.layers import GELU, Add, BatchNorm2d, Parameter, ReLU, Tanh
from cnn_ext.losses import CrossEntropy
from cnn_ext.optimizers import Adam


def operators(dtype: str, order: str) -> dict:
    """Calls that are large enough for several threads, by name."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return lay_out(rng.standard_normal(shape).astype(dtype), order)

    calls = {}

    def conv(name, x_shape, weight_shape, **options):
        x = draw(*x_shape)
        weight = rng.standard_normal(weight_shape).astype(dtype)
        bias = rng.standard_normal(weight_shape[0]).astype(dtype)
        y = F.conv2d(x, weight, bias, **options)
        grad_y = draw(*y.shape)
        calls[name] = lambda: F.conv2d(x, weight, bias, **options)
        calls[f"{name}, input"] = lambda: F.conv2d_backward_input(
            grad_y, weight, x.shape, **options
        )
        calls[f"{name}, weight"] = lambda: F.conv2d_backward_weight(
            grad_y, x, weight.shape, **options
        )
        calls[f"{name}, bias"] = lambda: F.conv2d_backward_bias(grad_y)

    conv("3x3", (3, 21, 29, 31), (37, 21, 3, 3), padding=1)
    conv("3x3 many images", (33, 16, 9, 9), (24, 16, 3, 3), padding=1)
    conv("3x3 one image", (1, 32, 33, 35), (48, 32, 3, 3), padding=1)
    conv("3x3 many weights", (2, 90, 15, 13), (105, 90, 3, 3), padding=1)
    conv("5x5", (3, 18, 25, 27), (33, 18, 5, 5), padding=2)
    conv("few channels", (5, 3, 40, 41), (20, 3, 7, 7), stride=2, padding=3)
    conv("sums of taps", (5, 3, 40, 41), (25, 3, 7, 7), stride=2, padding=3)
    conv("sums of taps, many images", (33, 6, 14, 14), (16, 6, 5, 5))
    conv("strided", (3, 21, 29, 31), (37, 21, 3, 3), stride=2, padding=1)
    conv("dilated", (3, 21, 29, 31), (37, 21, 3, 3), dilation=2)
    conv("groups", (3, 24, 29, 31), (36, 8, 3, 3), groups=3, padding=1)
    conv("few a group", (4, 72, 33, 34), (72, 4, 3, 3), groups=18, padding=1)
    conv("depthwise", (4, 70, 33, 34), (70, 1, 3, 3), groups=70, padding=1)
    conv("1x1", (3, 65, 30, 31), (70, 65, 1, 1))

    image = draw(4, 19, 61, 67)
    window = {"stride": 2, "padding": 1}
    y, argmax = F.max_pool2d(image, 3, return_argmax=True, **window)
    _, indices = F.max_pool2d(image, 3, return_indices=True, **window)
    grad_y = draw(*y.shape)
    gain, bias = rng.standard_normal((2, 19)).astype(dtype)
    shape = image.shape
    calls |= {
        "max_pool2d": lambda: F.max_pool2d(image, 3, return_argmax=True, **window),
        "max_pool2d indices": lambda: F.max_pool2d(
            image, 3, return_indices=True, **window
        ),
        "max_pool2d_backward": lambda: F.max_pool2d_backward(
            grad_y, argmax, shape, 3, **window
        ),
        "max_pool2d_backward, indices": lambda: F.max_pool2d_backward(
            grad_y, indices, shape, 3, **window
        ),
        "avg_pool2d": lambda: F.avg_pool2d(image, 3, **window),
        "avg_pool2d_backward": lambda: F.avg_pool2d_backward(
            grad_y, shape, 3, **window
        ),
        "subsample2d": lambda: F.subsample2d(image, gain, bias, 3, **window),
        "subsample2d_backward": lambda: F.subsample2d_backward(
            grad_y, image, gain, 3, **window
        ),
    }
    for layer in (BatchNorm2d(19, dtype=dtype), GELU(), Tanh(), ReLU()):
        calls[f"{layer!r}"] = lambda layer=layer: (
            *layer.forward(image, train=True)[:1],
            *layer.backward(image, layer.forward(image, train=True)[1])[:1],
        )
    calls["add"] = lambda: Add().forward((image, image))[0]
    logits = rng.standard_normal((3000, 19)).astype(dtype)
    labels = rng.integers(0, 19, 3000)
    calls["cross-entropy"] = lambda: CrossEntropy()(logits, labels)[1]
    calls["Adam"] = lambda: _step(logits)
    x, weight, error = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((130, 170), (90, 170), (130, 90))
    )
    calls |= {
        "linear": lambda: F.linear(x, weight, weight[:, 0].copy()),
        "linear_backward_input": lambda: F.linear_backward_input(error, weight),
        "linear_backward_weight": lambda: F.linear_backward_weight(error, x),
        "linear_backward_bias": lambda: F.linear_backward_bias(error),
    }
    return calls


def _step(values):
    """Two steps of an optimiser on clipped gradients."""
    parameters = [Parameter(values.copy()), Parameter(values[:7].copy())]
    optimizer = Adam()
    for _ in range(2):
        for p in parameters:
            p.grad = p.value**3
        clip_grad_norm(parameters, 1.0)
        optimizer.step(parameters)
    return tuple(p.value for p in parameters)


def digest(result) -> str:
    parts = result if isinstance(result, tuple) else (result,)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def main() -> None:
    found: dict[str, dict[str, str]] = {}
    for dtype, order in (
        ("float32", "contiguous"),
        ("float32", "channels_last"),
        ("float64", "contiguous"),
    ):
        for name, call in operators(dtype, order).items():
            for kernel_set in KERNEL_SETS:
                key = f"{kernel_set}: {name} ({dtype}, {order})"
                for threads in THREADS:
                    with machine(kernel_set, threads):
                        found.setdefault(key, {})[str(threads)] = digest(call())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
