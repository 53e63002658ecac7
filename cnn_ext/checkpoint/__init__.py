"""Models in files: the safetensors format, with the structure in its header.

A file is 8 bytes (the header's length, little-endian), the header in JSON, and the
parameters, one behind the other. Any reader of the format finds the parameters under
their names ("0.weight"); the header's ``__metadata__`` adds, under the one key
``cnn_ext``, the graph in JSON. Nothing in a file is executed, and a file is not
trusted: whatever is wrong with it ends in one `CheckpointError`.

Reference: https://github.com/huggingface/safetensors
"""

from cnn_ext.checkpoint._format import CheckpointError, PathLike
from cnn_ext.checkpoint._reading import load, load_run
from cnn_ext.checkpoint._writing import save, save_run, write_file

__all__ = [
    "CheckpointError",
    "PathLike",
    "load",
    "load_run",
    "save",
    "save_run",
    "write_file",
]
