"""The networks for 32x32 colour images; `zoo` names them.

Each function takes (input shape, classes, Generator) and returns a model. They end in
a mean over each map, or sizes that follow from the input, so that other image sizes
work too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnn_ext.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool,
    Input,
    Linear,
    MaxPool2d,
    Node,
    ReLU,
    ReLU6,
)
from cnn_ext.layers.base import Shape
from cnn_ext.model import Model
from cnn_ext.sequential import Sequential

__all__ = ["cifar_quick", "mobilenet_v2", "resnet18", "resnet20", "vgg11"]

Rng = np.random.Generator


def cifar_quick(shape: Shape, classes: int, rng: Rng) -> Model:
    """Caffe's ``cifar10_quick``: three convolutions of 5x5, overlapping pools."""
    he: Any = {"weight_init": "he_normal", "bias_init": "zeros", "seed": rng}
    x = Input(shape)
    h: Node = Conv2d(shape[0], 32, 5, padding=2, **he)(x)
    h = ReLU()(MaxPool2d(3, 2, ceil_mode=True)(h))
    h = ReLU()(Conv2d(32, 32, 5, padding=2, **he)(h))
    h = AvgPool2d(3, 2, ceil_mode=True)(h)
    h = ReLU()(Conv2d(32, 64, 5, padding=2, **he)(h))
    h = Flatten()(AvgPool2d(3, 2, ceil_mode=True)(h))
    h = Linear(h.shape[0], 64, **he)(h)
    return _chain(x, Linear(64, classes, **he)(h))


def vgg11(shape: Shape, classes: int, rng: Rng) -> Model:
    """VGG-11 with batch normalisation and a single linear layer."""
    x = Input(shape)
    h: Node = x
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if isinstance(width, int):
            h = ReLU()(_normed(h, width, 3, rng))
        else:
            h = MaxPool2d(2)(h)
    return _chain(x, _head(h, classes, rng))


def resnet20(shape: Shape, classes: int, rng: Rng) -> Model:
    """Three stages of three blocks, 16, 32 and 64 maps."""
    return _resnet(shape, classes, rng, (16, 32, 64), 3)


def resnet18(shape: Shape, classes: int, rng: Rng) -> Model:
    """Four stages of two blocks, 64 to 512 maps; the first convolution is 3x3."""
    return _resnet(shape, classes, rng, (64, 128, 256, 512), 2)


def _resnet(
    shape: Shape, classes: int, rng: Rng, widths: tuple[int, ...], blocks: int
) -> Model:
    x = Input(shape)
    h = ReLU()(_normed(x, widths[0], 3, rng))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            h = _residual(h, width, 2 if stage and not block else 1, rng)
    return Model(x, _head(h, classes, rng))


def _residual(h: Node, width: int, stride: int, rng: Rng) -> Node:
    """Two convolutions and a way past them, 1x1 where the sizes differ."""
    way = ReLU()(_normed(h, width, 3, rng, stride))
    way = _normed(way, width, 3, rng)
    past = h
    if stride != 1 or h.shape[0] != width:
        past = _normed(h, width, 1, rng, stride)
    return ReLU()(way + past)


#: MobileNetV2's blocks: expansion, maps, how many, stride of the first.
_MOBILE = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # 2 for images of 224x224
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(shape: Shape, classes: int, rng: Rng) -> Model:
    """MobileNetV2 with strides for small images: 32x32 leaves maps of 4x4."""
    x = Input(shape)
    h = ReLU6()(_normed(x, 32, 3, rng))
    for expansion, width, count, stride in _MOBILE:
        for i in range(count):
            h = _inverted(h, expansion, width, 1 if i else stride, rng)
    h = ReLU6()(_normed(h, 1280, 1, rng))
    return Model(x, _head(h, classes, rng))


def _inverted(h: Node, expansion: int, width: int, stride: int, rng: Rng) -> Node:
    """Widen, filter each map by itself, narrow; and past it where sizes agree."""
    way, wide = h, expansion * h.shape[0]
    if expansion != 1:
        way = ReLU6()(_normed(way, wide, 1, rng))
    way = ReLU6()(_normed(way, wide, 3, rng, stride, groups=wide))
    way = _normed(way, width, 1, rng)
    return way + h if stride == 1 and h.shape[0] == width else way


def _normed(
    h: Node, width: int, size: int, rng: Rng, stride: int = 1, groups: int = 1
) -> Node:
    """A convolution that keeps the size (but for stride), and batch normalisation.

    It has no bias: the normalisation would take it away again.
    """
    conv = Conv2d(
        h.shape[0], width, size, stride, size // 2, groups=groups, bias=False,
        weight_init="he_normal", seed=rng,
    )  # fmt: skip
    return BatchNorm2d(width)(conv(h))


def _head(h: Node, classes: int, rng: Rng) -> Node:
    h = GlobalAvgPool()(h)
    return Linear(h.shape[0], classes, seed=rng)(h)


def _chain(x: Input, y: Node) -> Sequential:
    """A model without branches as what it is."""
    return Sequential(*Model(x, y).layers.values(), input_shape=x.shape)
