"""An hour of mixed calls with varying shapes: memory stays below a stated bound.

Usage, from the folder tests: python -m trust.soak [SECONDS]

The bound: what the process took in the first tenth of the time, and in 100 rounds at
least, in which it meets each kind of call; and 64 MiB. Scratch blocks are kept for the
next call, 64 at most, each as large as the largest need so far.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from trust.leaks import resident
from trust.workload import models

import cnn_ext
from cnn_ext import _runtime, layers, optimizers
from cnn_ext import functional as F
from cnn_ext.data import augment

BOUND = 64 << 20


def random_calls(rng: random.Random) -> None:
    """All operators once, on sizes drawn anew."""
    n, group = rng.randint(1, 4), rng.choice([1, 1, 1, 2, 8])
    c, k = group * rng.randint(1, 24), group * rng.randint(1, 24)
    if rng.random() < 0.2:
        group = c = k
    r, s = rng.randint(1, 5), rng.randint(1, 5)
    h, w = rng.randint(r, 60), rng.randint(s, 60)
    options = {
        "stride": rng.randint(1, 3), "padding": rng.randint(0, 2), "groups": group
    }  # fmt: skip
    x = np.ones((n, c, h, w), rng.choice(["f", "d"]))
    if rng.random() < 0.5:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    weight = np.ones((k, c // group, r, s), x.dtype)
    y = F.conv2d(x, weight, weight[:, 0, 0, 0], **options)
    F.conv2d_backward_input(y, weight, x.shape, **options)
    F.conv2d_backward_weight(y, x, weight.shape, **options)
    F.conv2d_backward_bias(y)
    window = {"stride": rng.randint(1, 3), "padding": min(r, s) // 2}
    y, argmax = F.max_pool2d(x, (r, s), return_argmax=True, **window)
    F.max_pool2d_backward(y, argmax, x.shape, (r, s), **window)
    y = F.avg_pool2d(x, (r, s), **window)
    F.avg_pool2d_backward(y, x.shape, (r, s), **window)
    gain = np.ones(c, x.dtype)
    y = F.subsample2d(x, gain, gain, (r, s), **window)
    F.subsample2d_backward(y, x, gain, (r, s), **window)
    x, weight = x.reshape(n, -1), np.ones((k, x[0].size), x.dtype)
    y = F.linear(x, weight, weight[:, 0].copy())
    F.linear_backward_input(y, weight)
    F.linear_backward_weight(y, x)
    F.linear_backward_bias(y)
    assert np.isfinite(y).all()


def random_net(rng: random.Random, channels: int) -> cnn_ext.Model:
    """Every kind of layer now and then, in any order; sizes come with the input."""
    kinds = [
        lambda: layers.Conv2d(channels, channels, rng.choice([1, 3, 5]), 1, "same"),
        lambda: layers.DepthwiseConv2d(channels, 3, padding=1),
        lambda: layers.SeparableConv2d(channels, channels, 3, padding=1),
        lambda: layers.ConvTranspose2d(channels, channels, 2, stride=2),
        lambda: layers.BatchNorm2d(channels),
        lambda: layers.LocalResponseNorm(3),
        lambda: layers.Dropout(0.3, seed=rng.randrange(99)),
        lambda: layers.Dropout2d(0.3, seed=rng.randrange(99)),
        lambda: layers.MaxPool2d(3, 2, 1),
        lambda: layers.AvgPool2d(2),
        lambda: layers.Subsample2d(channels, 2),
        lambda: layers.AdaptiveMaxPool2d(5),
        lambda: layers.Upsample(2),
        layers.ReLU6, layers.LeakyReLU, layers.ELU, layers.SiLU, layers.GELU,
        layers.HardSwish, layers.Tanh, layers.Sigmoid, layers.ScaledTanh,
    ]  # fmt: skip
    image = x = cnn_ext.Input((channels, rng.randint(12, 28), rng.randint(12, 28)))
    for _ in range(rng.randint(2, 6)):
        before, x = x, rng.choice(kinds)()(x)
        if x.shape[1] < 6 or x.shape[1] > 60:
            x = layers.AdaptiveAvgPool2d(9)(x)
        if x.shape == before.shape and rng.random() < 0.5:
            x = x + before
    if rng.random() < 0.3:
        x = layers.Concat()(x, layers.ReLU()(x))
    features = layers.GlobalAvgPool()(x)
    return cnn_ext.Model(image, layers.Linear(features.shape[0], 3)(features))


def train(rng: random.Random, model: cnn_ext.Model, folder: Path) -> None:
    """Train two epochs on images of its size; save and load: the same results."""
    shape = model.input_shape
    x = np.random.default_rng(rng.randrange(99)).random((12, *shape), np.float32)
    optimizer = rng.choice(
        [optimizers.SGD(0.01, momentum=0.9), optimizers.Adam(), optimizers.AdamW(),
         optimizers.RMSprop()]
    )  # fmt: skip
    changed = rng.choice(
        [None, augment.Shift(2), augment.Flip(), augment.Affine(9.0, (0.9, 1.1)),
         augment.Cutout(3), augment.Compose(augment.Crop(shape[1:], 2), augment.Flip())]
    )  # fmt: skip
    cnn_ext.fit(
        model, (x, np.arange(12) % 3), optimizer=optimizer, epochs=2,
        batch_size=rng.randint(1, 12), augment=changed, seed=0, verbose=0,
    )  # fmt: skip
    cnn_ext.save(model, folder / "model.safetensors")
    again = cnn_ext.load(folder / "model.safetensors")
    assert again(x).tobytes() == model(x).tobytes()


def soak(seconds: float, report: float = 300) -> tuple[int, int, int]:
    """Return rounds made, memory after a tenth of the time, and the most after it."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        return _soak(rng, Path(folder), seconds, report)


def _soak(
    rng: random.Random, folder: Path, seconds: float, report: float
) -> tuple[int, int, int]:
    old = random_net(rng, 4)  # grows older: statistics, positions of its generators
    steady = list(models().values())
    start = time.monotonic()
    rounds = early = most = 0
    said = start
    while (now := time.monotonic()) < start + seconds:
        random_calls(rng)
        rounds += 1
        if rounds % 50 == 0:
            cnn_ext.set_num_threads(rng.randint(1, 4))
            _runtime.use_kernel_set(rng.choice(_runtime.kernel_sets()))
            cnn_ext.set_precision(rng.choice(["fast", "strict"]))
            cnn_ext.set_flush_subnormals(rng.random() < 0.5)
            for call in steady:
                call()
            train(rng, old, folder)
        if rounds % 10 == 0:
            train(rng, random_net(rng, rng.randint(1, 20)), folder)
        if rounds % 20 == 0:
            gc.collect()
            memory = resident()
            if rounds <= 100 or now < start + seconds / 10:
                early = max(early, memory)
            most = max(most, memory)
        if now > said + report:
            said = now
            print(
                f"{now - start:6.0f} s  {rounds} rounds  {resident() >> 20} MiB, "
                f"{_runtime.scratch_held() >> 20} MiB of it scratch",
                flush=True,
            )
    return rounds, early, most


def main(seconds: float = 3600) -> None:
    rounds, early, most = soak(seconds)
    print(f"{rounds} rounds of 14 calls; {early >> 20} MiB early, {most >> 20} at most")
    if most > early + BOUND:
        sys.exit("memory grows")


if __name__ == "__main__":
    main(*(float(argument) for argument in sys.argv[1:]))
