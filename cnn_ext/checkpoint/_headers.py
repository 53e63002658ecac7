"""The bytes and the header of a file, checked against each other."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

import numpy as np

from cnn_ext.checkpoint._format import (
    FORMAT_VERSION,
    MAX_HEADER_BYTES,
    METADATA_KEY,
    NONSENSE,
    TRAINING,
    CheckpointError,
    PathLike,
    safetensors,
)

_DTYPES = {"F32": "float32", "F64": "float64"}


def read_file(path: PathLike) -> tuple[bytes, dict[str, Any]]:
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
        header = parse(text, "the header")
        expected = 8 + length + _buffer_size(header)
        if size != expected:
            raise CheckpointError(
                f"is truncated or damaged: by its header it should have {expected} "
                f"bytes, it has {size}"
            )
        return start + text + file.read(), header


def parse(text: bytes | str, what: str) -> dict[str, Any]:
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
    except NONSENSE as error:
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
                f"tensor {name!r} has no sound data_offsets: {clipped(offsets)}"
            )
        end = max(end, offsets[1])
    return end


def dtype_of(header: dict[str, Any]) -> str:
    """Return the one dtype of all tensors."""
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and not name.startswith(TRAINING):
            found[str(entry.get("dtype"))] = name
    for code, name in found.items():
        if code not in _DTYPES:
            raise CheckpointError(
                f"tensor {name!r} has dtype {clipped(code)}; known are F32 and F64"
            )
    if len(found) > 1:
        raise CheckpointError("mixes tensors of dtypes F32 and F64")
    return _DTYPES[next(iter(found))] if found else "float32"


def described(header: dict[str, Any]) -> dict[str, Any]:
    """Return the structure that a header's metadata hold."""
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError("is not a model of cnn_ext: its header describes none")
    structure = parse(text, "the structure")
    version = structure.get("format_version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise CheckpointError(
            f"has format version {clipped(version)}, this cnn_ext reads "
            f"{FORMAT_VERSION}; another cnn_ext may read it"
        )
    return structure


def decoded(data: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors().load(data)
    except ImportError:
        raise
    except Exception as error:  # the library has one error class, and may use others
        raise CheckpointError(f"is damaged: {error}") from error


def clipped(value: Any) -> str:
    """Return a value of the file as text for a message, not longer than a line."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
