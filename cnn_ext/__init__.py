"""cnn_ext: convolutional networks on CPUs, fast and small."""

from . import functional
from ._machine import (
    get_num_threads,
    get_precision,
    set_num_threads,
    set_precision,
    show_config,
)
from ._version import __version__

__all__ = [
    "__version__",
    "functional",
    "get_num_threads",
    "get_precision",
    "set_num_threads",
    "set_precision",
    "show_config",
]
