"""The layers of a network; `base` says what a layer is.

Sums with trained weights: `Conv2d`, `Linear`, `Subsample2d`. Pooling: `MaxPool2d`,
`AvgPool2d`. Activations: `ReLU`, `Sigmoid`, `Tanh`, `ScaledTanh`, `Softmax`. Shape:
`Flatten`. Where paths of a graph join: `Add`, `Concat`; where it starts: `Input`.
"""

from cnn_ext.layers.activations import ReLU, ScaledTanh, Sigmoid, Softmax, Tanh
from cnn_ext.layers.base import Input, Layer, Node, Parameter
from cnn_ext.layers.convolution import Conv2d
from cnn_ext.layers.joins import Add, Concat
from cnn_ext.layers.linear import Flatten, Linear
from cnn_ext.layers.pooling import AvgPool2d, MaxPool2d, Subsample2d

__all__ = [
    "Add",
    "AvgPool2d",
    "Concat",
    "Conv2d",
    "Flatten",
    "Input",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Node",
    "Parameter",
    "ReLU",
    "ScaledTanh",
    "Sigmoid",
    "Softmax",
    "Subsample2d",
    "Tanh",
]
