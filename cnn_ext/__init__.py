"""cnn_ext: convolutional networks on CPUs, fast and small."""

from . import _openmp  # noqa: I001, F401  before anything that loads OpenMP
from . import functional, zoo
from ._machine import (
    get_num_threads,
    get_precision,
    set_num_threads,
    set_precision,
    show_config,
)
from ._version import __version__
from .checkpoint import CheckpointError, load, save
from .gradcheck import GradientError, gradcheck
from .layers import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Input,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    ScaledTanh,
    Sigmoid,
    Softmax,
    Subsample2d,
    Tanh,
)
from .losses import CrossEntropy, SquaredError
from .model import Model, Sequential
from .optimizers import SGD
from .training import History, evaluate, fit

__all__ = [
    "SGD",
    "Add",
    "AvgPool2d",
    "CheckpointError",
    "Concat",
    "Conv2d",
    "CrossEntropy",
    "Flatten",
    "GradientError",
    "History",
    "Input",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Model",
    "Parameter",
    "ReLU",
    "ScaledTanh",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SquaredError",
    "Subsample2d",
    "Tanh",
    "__version__",
    "evaluate",
    "fit",
    "functional",
    "get_num_threads",
    "get_precision",
    "gradcheck",
    "load",
    "save",
    "set_num_threads",
    "set_precision",
    "show_config",
    "zoo",
]
