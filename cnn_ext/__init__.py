"""cnn_ext: convolutional networks on CPUs, fast and small.

The operators are imported with the package. Layers, models, losses, training and all
else are imported when they are first asked for: `_LAZY` names their modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import (
    _openmp,  # noqa: F401  before anything that loads OpenMP
    functional,
)
from ._machine import (
    get_flush_subnormals,
    get_num_threads,
    get_precision,
    set_flush_subnormals,
    set_num_threads,
    set_precision,
    show_config,
)
from ._version import __version__
from .functional._first_calls import make_first_calls

# at once, for the function has the name of its module
from .gradcheck import GradientError, gradcheck

if TYPE_CHECKING:
    from . import schedules, zoo
    from .callbacks import BestCheckpoint, Callback, CSVLog, EarlyStopping, StopOnNaN
    from .checkpoint import CheckpointError, load, save
    from .clipping import clip_grad_norm, clip_grad_value
    from .layers import (
        ELU,
        GELU,
        AdaptiveAvgPool2d,
        AdaptiveMaxPool2d,
        Add,
        AvgPool2d,
        BatchNorm2d,
        Buffer,
        Concat,
        Conv2d,
        ConvTranspose2d,
        DepthwiseConv2d,
        Dropout,
        Dropout2d,
        Flatten,
        GlobalAvgPool,
        HardSwish,
        Input,
        Layer,
        LeakyReLU,
        Linear,
        LocalResponseNorm,
        MaxPool2d,
        Parameter,
        ReLU,
        ReLU6,
        ScaledTanh,
        SeparableConv2d,
        Sigmoid,
        SiLU,
        Softmax,
        Subsample2d,
        Tanh,
        Upsample,
    )
    from .losses import BCEWithLogits, CrossEntropy, Huber, SquaredError
    from .model import Model
    from .optimizers import (
        SGD,
        Adam,
        AdamW,
        RMSprop,
    )
    from .sequential import Sequential
    from .training import History, evaluate, fit

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "Add",
    "AvgPool2d",
    "BCEWithLogits",
    "BatchNorm2d",
    "BestCheckpoint",
    "Buffer",
    "CSVLog",
    "Callback",
    "CheckpointError",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropy",
    "DepthwiseConv2d",
    "Dropout",
    "Dropout2d",
    "EarlyStopping",
    "Flatten",
    "GlobalAvgPool",
    "GradientError",
    "HardSwish",
    "History",
    "Huber",
    "Input",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Model",
    "Parameter",
    "RMSprop",
    "ReLU",
    "ReLU6",
    "ScaledTanh",
    "SeparableConv2d",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SquaredError",
    "StopOnNaN",
    "Subsample2d",
    "Tanh",
    "Upsample",
    "__version__",
    "clip_grad_norm",
    "clip_grad_value",
    "evaluate",
    "fit",
    "functional",
    "get_flush_subnormals",
    "get_num_threads",
    "get_precision",
    "gradcheck",
    "load",
    "save",
    "schedules",
    "set_flush_subnormals",
    "set_num_threads",
    "set_precision",
    "show_config",
    "zoo",
]

# Modules that are imported when they, or their names in `__all__`, are asked for, each
# behind those that it needs.
_LAZY = (
    "layers",
    "graph",
    "model",
    "sequential",
    "losses",
    "optimizers",
    "clipping",
    "schedules",
    "checkpoint",
    "callbacks",
    "training",
    "zoo",
    "data",
    "initializers",
    "reference",
)


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        for module in _LAZY:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})


make_first_calls()
