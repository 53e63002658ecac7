"""A model from what a file says, none of which is trusted."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np

from cnn_ext.checkpoint._format import NONSENSE, CheckpointError
from cnn_ext.checkpoint._headers import clipped
from cnn_ext.graph import Graph, Step
from cnn_ext.initializers import Initializer
from cnn_ext.layers.base import Layer, checked_shape
from cnn_ext.model import Model
from cnn_ext.sequential import Sequential

_LAYER_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def build_model(
    structure: dict[str, Any],
    known: dict[str, type[Layer]],
    tensors: dict[str, np.ndarray],
    dtype: str,
) -> Model:
    """Build the graph, its parameters taken from `tensors`."""
    kinds: dict[Any, type[Model]] = {"Model": Model, "Sequential": Sequential}
    kind = structure.get("class")
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(f"has a model of unknown class {clipped(kind)}")
    built: dict[str, Layer] = {}
    records = structure.get("layers")
    if not isinstance(records, dict) or not records:
        raise CheckpointError("has no layers")
    for name, record in records.items():
        if not _LAYER_NAME.fullmatch(name):
            raise CheckpointError(f"has a layer with the name {clipped(name)}")
        built[name] = _layer(name, record, known, tensors, dtype)
    if tensors:
        raise CheckpointError(f"has tensors of no layer: {clipped(sorted(tensors))}")
    steps = _steps(structure.get("steps"), built)
    metadata = structure.get("metadata")
    if not isinstance(metadata, dict):
        raise CheckpointError("has metadata that are no JSON object")
    model = kinds[kind].__new__(kinds[kind])
    try:
        shape = structure.get("input_shape")
        shape = shape if shape is None else checked_shape(shape, "input_shape")
        graph = Graph(steps, {v: k for k, v in built.items()})
        model._set_up(graph, shape)
    except NONSENSE as error:
        raise CheckpointError(f"has layers that do not fit: {error}") from error
    model.metadata = metadata
    return model


def _layer(
    name: str,
    record: Any,
    known: dict[str, type[Layer]],
    tensors: dict[str, np.ndarray],
    dtype: str,
) -> Layer:
    """Build one layer, and take its parameters out of `tensors`."""
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict):
        raise CheckpointError(f"layer {name} has no type and config")
    kind = known.get(record["type"]) if isinstance(record.get("type"), str) else None
    if kind is None:
        raise CheckpointError(
            f"layer {name} is of unknown type {clipped(record.get('type'))}; "
            "give classes of your own to load(path, layers=[...])"
        )
    unknown = config.keys() - set(kind.argument_names())
    if unknown:
        raise CheckpointError(
            f"layer {name}, {kind.__name__}, has unknown arguments "
            f"{clipped(sorted(unknown))}"
        )
    # The layer asks for its first values as if they were drawn, and gets those of the
    # file: so no size is believed, and no memory taken, for which there are no data.
    arguments = inspect.signature(kind).parameters
    options: dict[str, Any] = {
        key: _taken_from(tensors, f"{name}.{key.removesuffix('_init')}")
        for key in arguments
        if key.endswith("_init")
    }
    if "dtype" in arguments:
        options["dtype"] = dtype
    if "name" in arguments:
        options["name"] = record.get("name")
    try:
        layer = kind(**config, **options)
        for key, part in (layer.parameters | layer.buffers).items():
            if f"{key}_init" not in options:  # a class of the caller's own
                value = tensor_of(tensors, f"{name}.{key}", part.shape)
                part.value = value.copy()
            del tensors[f"{name}.{key}"]
    except CheckpointError:
        raise
    except NONSENSE as error:
        raise CheckpointError(
            f"layer {name}, {kind.__name__}, cannot be built: {clipped(error)}"
        ) from error
    return layer


def _taken_from(tensors: dict[str, np.ndarray], key: str) -> Initializer:
    """Return an initialiser that gives the tensor of a file."""
    return lambda shape, fan_in, fan_out, rng: tensor_of(tensors, key, shape)


def tensor_of(
    tensors: dict[str, np.ndarray], key: str, shape: tuple[int, ...]
) -> np.ndarray:
    if key not in tensors:
        raise CheckpointError(f"tensor {key!r} is missing")
    if tensors[key].shape != shape:
        raise CheckpointError(
            f"tensor {key!r} has shape {tensors[key].shape}, the layer needs {shape}"
        )
    return tensors[key]


def _steps(steps: Any, built: dict[str, Layer]) -> list[Step]:
    """Return the steps of the graph, if they make one."""
    if not isinstance(steps, list) or not steps:
        raise CheckpointError("has no steps")
    result = []
    used = set()
    for k, entry in enumerate(steps):
        name, inputs = entry if isinstance(entry, list) and len(entry) == 2 else ("", 0)
        layer = built.get(name) if isinstance(name, str) else None
        if layer is None or not isinstance(inputs, list):
            raise CheckpointError(f"step {k} is not a layer with its inputs")
        if not all(type(i) is int and 0 <= i <= k for i in inputs):
            raise CheckpointError(f"step {k} takes values that do not stand before it")
        if (len(inputs) < 2) if layer.joins else (len(inputs) != 1):
            raise CheckpointError(
                f"step {k}, {layer!r}, cannot take {len(inputs)} inputs"
            )
        used.update(inputs)
        result.append(Step(layer, tuple(inputs)))
    if used != set(range(len(steps))):
        raise CheckpointError("has steps whose results are not used")
    if {step.layer for step in result} != set(built.values()):
        raise CheckpointError("has layers that no step uses")
    return result
