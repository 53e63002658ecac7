"""Models, and training runs, out of files."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from cnn_ext import layers as _layers
from cnn_ext.checkpoint._building import build_model, tensor_of
from cnn_ext.checkpoint._format import TRAINING, CheckpointError, PathLike, safetensors
from cnn_ext.checkpoint._headers import decoded, described, dtype_of, read_file
from cnn_ext.checkpoint._writing import structure_of, tensors_of
from cnn_ext.layers.base import Layer
from cnn_ext.model import Model


def load(path: PathLike, *, layers: Iterable[type[Layer]] = ()) -> Model:
    """Read a model that `save` wrote.

    Parameters
    ----------
    path : path
        The file. It need not be trusted: nothing in it is executed, and no more memory
        is taken than a few times its size.
    layers : iterable of Layer classes, optional
        Classes of your own that the model consists of.

    Returns
    -------
    Model
        Or `Sequential`, as it was saved.

    Raises
    ------
    CheckpointError
        If the file is damaged, or does not hold a model. A ValueError.
    OSError
        If there is no such file, or it cannot be read.
    ImportError
        If the library safetensors is missing.
    """
    safetensors()  # says what to install before anything else is wrong
    known = {name: getattr(_layers, name) for name in _layers.__all__}
    known = {k: v for k, v in known.items() if _is_layer(v)}
    for kind in layers:
        if not _is_layer(kind):
            raise TypeError(f"layers must be Layer classes, got {kind!r}")
        known[kind.__name__] = kind
    try:
        data, header = read_file(path)
        dtype = dtype_of(header)
        structure = described(header)
        tensors = decoded(data)
        for name in [n for n in tensors if n.startswith(TRAINING)]:
            del tensors[name]  # a training run's; its model is what is asked for
        return build_model(structure, known, tensors, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__


def _is_layer(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, Layer)
        and not inspect.isabstract(kind)
    )


def load_run(
    path: PathLike, model: Model
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what `save_run` wrote: state, its arrays, and the arrays of the model.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds no training run, or not one of this model.
    """
    try:
        data, header = read_file(path)
        structure = described(header)
        state = structure.get("training")
        if not isinstance(state, dict):
            raise CheckpointError("holds a model, but no training run to resume")
        ours = json.loads(structure_of(model))
        for key in ("layers", "steps", "input_shape"):
            if structure.get(key) != ours[key]:
                raise CheckpointError(f"is of another model: {key} differ")
        tensors = decoded(data)
        arrays = {
            name.removeprefix(TRAINING): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(TRAINING)
        }
        expected = tensors_of(model)
        if expected.keys() != tensors.keys():
            raise CheckpointError("is of another model: names of tensors differ")
        for name, value in expected.items():
            tensor_of(tensors, name, value.shape)
            if tensors[name].dtype != value.dtype:
                raise CheckpointError(
                    f"is in {tensors[name].dtype}, the model in {value.dtype}"
                )
        return state, arrays, tensors
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__
