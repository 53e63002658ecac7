"""Images and labels from one .npz file."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import IO, BinaryIO

import numpy as np

from cnn_ext.data._dataset import (
    MAX_BYTES,
    MAX_CLASSES,
    DataError,
    Dataset,
    open_regular,
    scale_uint8,
    split_dataset,
)
from cnn_ext.data.idx import DEFLATE_MAX_RATIO

__all__ = ["npz"]

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What zipfile and zlib raise on damaged or unsupported archives; RuntimeError is
# an encrypted member, NotImplementedError an unknown compression.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


def npz(
    path: str | os.PathLike[str],
    *,
    channels_last: bool | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Read images `x` and labels `y` from a file written by ``numpy.savez``.

    Parameters
    ----------
    path : str or path-like
        The file, ``numpy.savez`` or ``numpy.savez_compressed``. Keys: ``x``, ``y``;
        optionally ``x_test``, ``y_test``, otherwise a part is held out.

        ``x`` is (N, H, W) or (N, C, H, W); uint8 is scaled to [0, 1], float32 and
        float64 are taken as they are (finite, stored as float32). ``y`` is (N,),
        integers ``0 .. K-1``.
    channels_last : bool, optional
        True: ``x`` is (N, H, W, C). False: (N, C, H, W) whatever it looks like.
        By default (N, C, H, W), and an error if it looks like (N, H, W, C).
    test_fraction : float
        Share of every class held out where the file has no test part.
    seed : int
        Seed of that split.
    max_bytes : int
        Refuse arrays that take more than this (default 1 GiB).

    Returns
    -------
    Dataset
        Classes are named ``"0" .. "K-1"``.

    Raises
    ------
    DataError
        If the file is damaged, holds Python objects, lacks a key, or an array has
        the wrong dtype, shape or values. Nothing in it is unpickled, and nothing
        is allocated that the file's size does not account for.
    """
    name = os.fspath(path)
    file, size = open_regular(path)
    with file:
        arrays = _read_members(file, name, size, max_bytes)
    has_test = "x_test" in arrays
    if has_test != ("y_test" in arrays):
        raise DataError(f"{name}: has only one of x_test and y_test; give both or none")
    x = _images(arrays["x"], name, "x", channels_last)
    y = _labels(arrays["y"], name, "y", len(x))
    highest = int(y.max())
    if not has_test:
        return split_dataset(
            name, x, y, _names(highest), test_fraction=test_fraction, seed=seed
        )
    x_test = _images(arrays["x_test"], name, "x_test", channels_last)
    y_test = _labels(arrays["y_test"], name, "y_test", len(x_test))
    return Dataset(name, x, y, x_test, y_test, _names(max(highest, int(y_test.max()))))


def _names(highest: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(highest + 1))


def _read_members(
    file: BinaryIO, name: str, size: int, max_bytes: int
) -> dict[str, np.ndarray]:
    """The arrays x, y and, where there, x_test, y_test."""
    try:
        archive = zipfile.ZipFile(file)
    except _ZIP_ERRORS as error:
        raise DataError(
            f"{name}: not an .npz file ({_line(error)}); "
            "write it with numpy.savez(path, x=images, y=labels)"
        ) from error
    with archive:
        members = {info.filename: info for info in archive.infolist()}
        arrays = {}
        for key in ("x", "y", "x_test", "y_test"):
            info = members.get(f"{key}.npy")
            if info is not None:
                arrays[key] = _read_array(archive, info, name, key, size, max_bytes)
            elif key in ("x", "y"):
                found = ", ".join(sorted(m.removesuffix(".npy") for m in members))
                raise DataError(
                    f"{name}: has no key {key!r} (its keys: {_line(found) or 'none'}); "
                    "write it with numpy.savez(path, x=images, y=labels)"
                )
    return arrays


def _read_array(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    name: str,
    key: str,
    size: int,
    max_bytes: int,
) -> np.ndarray:
    """One member: its header is checked against the file's size, then it is read."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{name}: {key} has zip compression {info.compress_type}; "
            "it must be stored or deflated, as numpy.savez writes"
        )
    ratio = DEFLATE_MAX_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1
    try:
        with archive.open(info) as stream:
            shape, fortran, dtype = _read_header(stream, name, key)
            count = 1
            for length in shape:  # Python integers: the product cannot overflow
                count *= length
            wanted = count * dtype.itemsize
            if wanted > min(info.file_size - stream.tell(), size * ratio):
                raise DataError(
                    f"{name}: {key} is truncated: shape {shape} of {dtype} takes "
                    f"{wanted} bytes, more than the file holds"
                )
            if wanted > max_bytes:
                raise DataError(
                    f"{name}: {key} of shape {shape} and {dtype} takes {wanted} "
                    f"bytes; the limit is {max_bytes}"
                )
            flat = np.empty(count, dtype=dtype)
            target = flat.view(np.uint8).data
            done = 0
            while done < wanted:
                got = stream.readinto(  # type: ignore[attr-defined]
                    target[done : done + (1 << 20)]
                )
                if not got:
                    raise DataError(
                        f"{name}: {key} is truncated: shape {shape} of {dtype} takes "
                        f"{wanted} bytes, there are {done}"
                    )
                done += got
            # Reading on also makes zipfile compare the checksum.
            if stream.read(1):
                raise DataError(f"{name}: {key} has bytes after its last element")
    except DataError:
        raise
    except _ZIP_ERRORS as error:
        raise DataError(f"{name}: {key} cannot be read: {_line(error)}") from error
    if dtype.byteorder not in "=|":
        flat = flat.astype(dtype.newbyteorder("="))
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _read_header(
    stream: IO[bytes], name: str, key: str
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an .npy stream, checked."""
    try:
        read_header = _READ_HEADER[np.lib.format.read_magic(stream)]
        shape, fortran, dtype = read_header(stream)
    except (zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:
        # numpy evaluates the header as a Python literal: damage surfaces as any of
        # a dozen exceptions, from tokenize.TokenError to RecursionError.
        raise DataError(f"{name}: {key} has a damaged .npy header") from error
    if dtype.hasobject:
        raise DataError(
            f"{name}: {key} holds Python objects, which are never unpickled; "
            "save it as a numeric array"
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(f"{name}: {key} is {dtype}; it must be an array of numbers")
    if not 1 <= len(shape) <= 4 or any(length < 1 for length in shape):
        raise DataError(
            f"{name}: {key} has shape {_line(shape)}; it must have 1 to 4 dimensions, "
            "none of them zero"
        )
    return shape, fortran, dtype


def _images(
    x: np.ndarray, name: str, key: str, channels_last: bool | None
) -> np.ndarray:
    """`x` as float32 (N, C, H, W), C-contiguous."""
    if x.ndim not in (3, 4):
        raise DataError(
            f"{name}: {key} has shape {x.shape}; "
            "images must be (N, H, W) or (N, C, H, W)"
        )
    if x.ndim == 3:
        x = x[:, np.newaxis]
    elif channels_last:
        x = x.transpose(0, 3, 1, 2)
    elif channels_last is None and x.shape[3] in (1, 3, 4) and x.shape[1] > 4:
        raise DataError(
            f"{name}: {key} has shape {x.shape}, which looks like (N, H, W, C); say "
            "so (channels_last=True, --channels-last) or transpose it to (N, C, H, W)"
        )
    if x.dtype == np.uint8:
        return scale_uint8(np.ascontiguousarray(x))
    if x.dtype not in (np.float32, np.float64):
        raise DataError(
            f"{name}: {key} is {x.dtype}; images must be uint8 (scaled to [0, 1]), "
            "float32 or float64"
        )
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{name}: {key} has NaN or infinite pixels; all must be finite")
    return x


def _labels(y: np.ndarray, name: str, key: str, images: int) -> np.ndarray:
    """`y` as int64 (N,), checked against the number of images."""
    if y.dtype.kind not in "iu":
        raise DataError(f"{name}: {key} is {y.dtype}; labels must be integers")
    if y.shape != (images,):
        raise DataError(
            f"{name}: {key} has shape {y.shape}; it must be ({images},), one label "
            "for each image"
        )
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        raise DataError(
            f"{name}: {key} has labels from {lowest} to {highest}; "
            f"they must lie in 0..{MAX_CLASSES - 1}"
        )
    return y.astype(np.int64)


def _line(thing: object) -> str:
    """str(thing) on one line, printable and of bounded length."""
    line = " ".join(str(thing).split())[:200]
    return "".join(c if c.isprintable() else "?" for c in line)
