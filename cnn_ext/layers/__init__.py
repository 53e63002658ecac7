"""The layers of a network; `base` says what a layer is.

Sums with trained weights: `Conv2d`, `ConvTranspose2d`, `DepthwiseConv2d`,
`SeparableConv2d`, `Linear`, `Subsample2d`. Pooling: `MaxPool2d`, `AvgPool2d`,
`AdaptiveMaxPool2d`, `AdaptiveAvgPool2d`, `GlobalAvgPool`; the way back up: `Upsample`.
Activations: `ReLU`, `ReLU6`, `LeakyReLU`, `ELU`, `SiLU`, `HardSwish`, `GELU`,
`Sigmoid`, `Tanh`, `ScaledTanh`, `Softmax`. Normalisation: `BatchNorm2d`,
`LocalResponseNorm`; noise: `Dropout`, `Dropout2d`. Shape: `Flatten`. Where paths of a
graph join: `Add`, `Concat`; where it starts: `Input`.
"""

from cnn_ext.layers.activations import (
    ELU,
    GELU,
    HardSwish,
    LeakyReLU,
    ReLU,
    ReLU6,
    ScaledTanh,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from cnn_ext.layers.base import Buffer, Input, Layer, Node, Parameter
from cnn_ext.layers.convolution import (
    Conv2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    SeparableConv2d,
)
from cnn_ext.layers.joins import Add, Concat
from cnn_ext.layers.linear import Flatten, Linear
from cnn_ext.layers.normalization import (
    BatchNorm2d,
    Dropout,
    Dropout2d,
    LocalResponseNorm,
)
from cnn_ext.layers.pooling import AvgPool2d, MaxPool2d, Subsample2d
from cnn_ext.layers.resizing import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    GlobalAvgPool,
    Upsample,
)

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "Add",
    "AvgPool2d",
    "BatchNorm2d",
    "Buffer",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "DepthwiseConv2d",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "GlobalAvgPool",
    "HardSwish",
    "Input",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Node",
    "Parameter",
    "ReLU",
    "ReLU6",
    "ScaledTanh",
    "SeparableConv2d",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Subsample2d",
    "Tanh",
    "Upsample",
]
