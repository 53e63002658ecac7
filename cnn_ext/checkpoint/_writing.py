"""Models into files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from cnn_ext.checkpoint._format import (
    FORMAT_VERSION,
    METADATA_KEY,
    NONSENSE,
    TRAINING,
    PathLike,
    safetensors,
)
from cnn_ext.model import Model
from cnn_ext.sequential import Sequential


def save(model: Model, path: PathLike) -> None:
    """Write a model to a file: structure, parameters and `metadata`.

    The file appears whole or not at all: it is written beside its place, flushed to
    the disk and renamed. If that fails, a file that was there before is still there.

    Parameters
    ----------
    model : Model
    path : path
        By custom ``*.safetensors``.

    Raises
    ------
    TypeError
        If the arguments of a layer, or `model.metadata`, are nothing that JSON holds.
    OSError
        If the file cannot be written.
    ImportError
        If the library safetensors is missing.
    """
    encode = safetensors().save
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {type(model).__name__}")
    metadata = {METADATA_KEY: structure_of(model)}
    tensors = tensors_of(model)
    write_file(Path(path), encode(tensors, metadata=metadata))


def save_run(
    model: Model,
    path: PathLike,
    state: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> None:
    """Write a model together with the state of its training, as `save` does.

    `load` reads the model of such a file, `load_run` the rest.
    """
    structure = json.loads(structure_of(model)) | {"training": state}
    metadata = {METADATA_KEY: json.dumps(structure, allow_nan=False)}
    tensors = tensors_of(model)
    for name, array in arrays.items():
        tensors[TRAINING + name] = np.ascontiguousarray(array).reshape(array.shape)
    write_file(Path(path), safetensors().save(tensors, metadata=metadata))


def tensors_of(model: Model) -> dict[str, np.ndarray]:
    """Return all arrays of a model, parameters and buffers, by name."""
    held: dict[str, Any] = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
    }
    return {name: np.ascontiguousarray(part.value) for name, part in held.items()}


def structure_of(model: Model) -> str:
    """Return the graph as JSON."""
    layers = {}
    for name, layer in model.layers.items():
        record = {"type": type(layer).__name__, "config": layer.config()}
        layers[name] = record if layer.name is None else record | {"name": layer.name}
        try:
            json.dumps(record, allow_nan=False)
        except NONSENSE as error:
            raise TypeError(
                f"layer {name}, {layer!r}, cannot be saved: its arguments must be "
                f"numbers, strings, None, or tuples of them ({error})"
            ) from error
    graph = model._graph
    structure = {
        "format_version": FORMAT_VERSION,
        "class": "Sequential" if isinstance(model, Sequential) else "Model",
        "input_shape": model.input_shape,
        "layers": layers,
        "steps": [[graph.names[step.layer], step.inputs] for step in graph.steps],
        "metadata": model.metadata,
    }
    try:
        return json.dumps(structure, allow_nan=False)
    except NONSENSE as error:
        raise TypeError(f"model.metadata cannot be saved as JSON: {error}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it holds, whatever happens, all of its old or new bytes."""
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; the name of a file is needed")
    beside = path.parent / f".cnn_ext-{os.urandom(8).hex()}.tmp"
    try:
        with beside.open("xb") as file:
            if path.exists():
                os.chmod(beside, stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on the disk when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
