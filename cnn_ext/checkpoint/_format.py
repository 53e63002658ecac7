"""What a file consists of, for writers and readers."""

from __future__ import annotations

import os
from typing import Any

# One key, for the library writes several in no fixed order: so the same model makes the
# same file.
METADATA_KEY = "cnn_ext"
FORMAT_VERSION = 1
#: A header describes layers and parameters; 8 MB would do for ten thousand.
MAX_HEADER_BYTES = 8 << 20

#: Names of a training run's arrays start so; no layer's name holds a slash.
TRAINING = "training/"

# What reading a value that makes no sense may raise, inside a layer or in JSON.
NONSENSE = (TypeError, ValueError, OverflowError, RecursionError)

PathLike = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A file that is not a model; the message names it and says why."""


def safetensors() -> Any:
    try:
        import safetensors.numpy as library
    except ImportError as error:
        raise ImportError(
            "saving and loading models needs the library safetensors: "
            "pip install 'cnn_ext[models]'"
        ) from error
    return library
