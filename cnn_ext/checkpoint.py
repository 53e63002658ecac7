"""Models in files: the safetensors format, with the structure in its header.

A file is 8 bytes (the header's length, little-endian), the header in JSON, and the
parameters, one behind the other. Any reader of the format finds the parameters under
their names ("0.weight"); the header's ``__metadata__`` adds, under the one key
``cnn_ext``, the graph in JSON. Nothing in a file is executed, and a file is not
trusted: whatever is wrong with it ends in one `CheckpointError`.

Reference: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import inspect
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cnn_ext import layers as _layers
from cnn_ext.initializers import Initializer
from cnn_ext.layers.base import Layer, checked_shape
from cnn_ext.model import Model, Sequential, Step

__all__ = ["CheckpointError", "load", "save"]

# One key, for the library writes several in no fixed order: so the same model makes the
# same file.
METADATA_KEY = "cnn_ext"
FORMAT_VERSION = 1
#: A header describes layers and parameters; 8 MB would do for ten thousand.
MAX_HEADER_BYTES = 8 << 20

#: Names of a training run's arrays start so; no layer's name holds a slash.
_TRAINING = "training/"

_DTYPES = {"F32": "float32", "F64": "float64"}
_LAYER_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# What reading a value that makes no sense may raise, inside a layer or in JSON.
_NONSENSE = (TypeError, ValueError, OverflowError, RecursionError)

PathLike = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A file that is not a model; the message names it and says why."""


# -- saving --------------------------------------------------------------------------


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
    encode = _safetensors().save
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {type(model).__name__}")
    metadata = {METADATA_KEY: _structure(model)}
    tensors = _tensors(model)
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
    structure = json.loads(_structure(model)) | {"training": state}
    metadata = {METADATA_KEY: json.dumps(structure, allow_nan=False)}
    tensors = _tensors(model)
    for name, array in arrays.items():
        tensors[_TRAINING + name] = np.ascontiguousarray(array).reshape(array.shape)
    write_file(Path(path), _safetensors().save(tensors, metadata=metadata))


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
        data, header = _read(path)
        structure = _described(header)
        state = structure.get("training")
        if not isinstance(state, dict):
            raise CheckpointError("holds a model, but no training run to resume")
        ours = json.loads(_structure(model))
        for key in ("layers", "steps", "input_shape"):
            if structure.get(key) != ours[key]:
                raise CheckpointError(f"is of another model: {key} differ")
        tensors = _decoded(data)
        arrays = {
            name.removeprefix(_TRAINING): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(_TRAINING)
        }
        expected = _tensors(model)
        if expected.keys() != tensors.keys():
            raise CheckpointError("is of another model: names of tensors differ")
        for name, value in expected.items():
            _tensor(tensors, name, value.shape)
            if tensors[name].dtype != value.dtype:
                raise CheckpointError(
                    f"is in {tensors[name].dtype}, the model in {value.dtype}"
                )
        return state, arrays, tensors
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__


def _tensors(model: Model) -> dict[str, np.ndarray]:
    """Return all arrays of a model, parameters and buffers, by name."""
    held: dict[str, Any] = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
    }
    return {name: np.ascontiguousarray(part.value) for name, part in held.items()}


def _structure(model: Model) -> str:
    """Return the graph as JSON."""
    layers = {}
    for name, layer in model.layers.items():
        record = {"type": type(layer).__name__, "config": layer.config()}
        layers[name] = record if layer.name is None else record | {"name": layer.name}
        try:
            json.dumps(record, allow_nan=False)
        except _NONSENSE as error:
            raise TypeError(
                f"layer {name}, {layer!r}, cannot be saved: its arguments must be "
                f"numbers, strings, None, or tuples of them ({error})"
            ) from error
    structure = {
        "format_version": FORMAT_VERSION,
        "class": "Sequential" if isinstance(model, Sequential) else "Model",
        "input_shape": model.input_shape,
        "layers": layers,
        "steps": [[model._names[step.layer], step.inputs] for step in model._steps],
        "metadata": model.metadata,
    }
    try:
        return json.dumps(structure, allow_nan=False)
    except _NONSENSE as error:
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


# -- loading -------------------------------------------------------------------------


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
    _safetensors()  # says what to install before anything else is wrong
    known = {name: getattr(_layers, name) for name in _layers.__all__}
    known = {k: v for k, v in known.items() if _is_layer(v)}
    for kind in layers:
        if not _is_layer(kind):
            raise TypeError(f"layers must be Layer classes, got {kind!r}")
        known[kind.__name__] = kind
    try:
        data, header = _read(path)
        dtype = _dtype(header)
        structure = _described(header)
        tensors = _decoded(data)
        for name in [n for n in tensors if n.startswith(_TRAINING)]:
            del tensors[name]  # a training run's; its model is what is asked for
        return _model(structure, known, tensors, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__


def _decoded(data: bytes) -> dict[str, np.ndarray]:
    try:
        return _safetensors().load(data)
    except ImportError:
        raise
    except Exception as error:  # the library has one error class, and may use others
        raise CheckpointError(f"is damaged: {error}") from error


def _is_layer(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, Layer)
        and not inspect.isabstract(kind)
    )


def _read(path: PathLike) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a file and its header, if their sizes agree."""
    # Look before opening: opening a pipe would wait for a writer.
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise CheckpointError(f"is {kind}")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"is too short for a model: {size} bytes")
        length = int.from_bytes(start, "little")
        if length > size - 8:
            raise CheckpointError(
                f"is truncated or no safetensors file: its header should have {length} "
                f"bytes, the file has {size}"
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        text = file.read(length)
        header = _json(text, "the header")
        expected = 8 + length + _buffer_size(header)
        if size != expected:
            raise CheckpointError(
                f"is truncated or damaged: by its header it should have {expected} "
                f"bytes, it has {size}"
            )
        return start + text + file.read(), header


def _json(text: bytes | str, what: str) -> dict[str, Any]:
    """Return a JSON object; one with a key twice, or NaN, is refused."""

    def unique(pairs):
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{what} has the key {twice!r} twice")
        return result

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except CheckpointError:
        raise
    except _NONSENSE as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object")
    return value


def _buffer_size(header: dict[str, Any]) -> int:
    """Return the bytes of parameters that a header announces."""
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (
            isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(offset) is int and offset >= 0 for offset in offsets)
        ):
            raise CheckpointError(
                f"tensor {name!r} has no sound data_offsets: {_clipped(offsets)}"
            )
        end = max(end, offsets[1])
    return end


def _dtype(header: dict[str, Any]) -> str:
    """Return the one dtype of all tensors."""
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and not name.startswith(_TRAINING):
            found[str(entry.get("dtype"))] = name
    for code, name in found.items():
        if code not in _DTYPES:
            raise CheckpointError(
                f"tensor {name!r} has dtype {_clipped(code)}; known are F32 and F64"
            )
    if len(found) > 1:
        raise CheckpointError("mixes tensors of dtypes F32 and F64")
    return _DTYPES[next(iter(found))] if found else "float32"


def _described(header: dict[str, Any]) -> dict[str, Any]:
    """Return the structure that a header's metadata hold."""
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError("is not a model of cnn_ext: its header describes none")
    structure = _json(text, "the structure")
    version = structure.get("format_version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise CheckpointError(
            f"has format version {_clipped(version)}, this cnn_ext reads "
            f"{FORMAT_VERSION}; another cnn_ext may read it"
        )
    return structure


def _model(
    structure: dict[str, Any],
    known: dict[str, type[Layer]],
    tensors: dict[str, np.ndarray],
    dtype: str,
) -> Model:
    """Build the graph, its parameters taken from `tensors`."""
    kinds: dict[Any, type[Model]] = {"Model": Model, "Sequential": Sequential}
    kind = structure.get("class")
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(f"has a model of unknown class {_clipped(kind)}")
    built: dict[str, Layer] = {}
    records = structure.get("layers")
    if not isinstance(records, dict) or not records:
        raise CheckpointError("has no layers")
    for name, record in records.items():
        if not _LAYER_NAME.fullmatch(name):
            raise CheckpointError(f"has a layer with the name {_clipped(name)}")
        built[name] = _layer(name, record, known, tensors, dtype)
    if tensors:
        raise CheckpointError(f"has tensors of no layer: {_clipped(sorted(tensors))}")
    steps = _steps(structure.get("steps"), built)
    metadata = structure.get("metadata")
    if not isinstance(metadata, dict):
        raise CheckpointError("has metadata that are no JSON object")
    model = kinds[kind].__new__(kinds[kind])
    try:
        shape = structure.get("input_shape")
        shape = shape if shape is None else checked_shape(shape, "input_shape")
        model._assemble(steps, {v: k for k, v in built.items()}, shape)
    except _NONSENSE as error:
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
            f"layer {name} is of unknown type {_clipped(record.get('type'))}; "
            "give classes of your own to load(path, layers=[...])"
        )
    unknown = config.keys() - set(kind.argument_names())
    if unknown:
        raise CheckpointError(
            f"layer {name}, {kind.__name__}, has unknown arguments "
            f"{_clipped(sorted(unknown))}"
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
                value = _tensor(tensors, f"{name}.{key}", part.shape)
                part.value = value.copy()
            del tensors[f"{name}.{key}"]
    except CheckpointError:
        raise
    except _NONSENSE as error:
        raise CheckpointError(
            f"layer {name}, {kind.__name__}, cannot be built: {_clipped(error)}"
        ) from error
    return layer


def _taken_from(tensors: dict[str, np.ndarray], key: str) -> Initializer:
    """Return an initialiser that gives the tensor of a file."""
    return lambda shape, fan_in, fan_out, rng: _tensor(tensors, key, shape)


def _tensor(
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


def _clipped(value: Any) -> str:
    """Return a value of the file as text for a message, not longer than a line."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "saving and loading models needs the library safetensors: "
            "pip install 'cnn_ext[models]'"
        ) from error
    return safetensors.numpy
