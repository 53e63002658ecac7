"""Strict reader of IDX files, the format of MNIST and its relatives.

An IDX file is big-endian: two zero bytes, one byte for the element type, one for
the number of dimensions, one unsigned 32-bit size a dimension, then the elements
in row-major order and nothing more (Y. LeCun, C. Cortes, C. Burges, "The MNIST
database of handwritten digits", section "The IDX file format").

Every size in the header is checked against the size of the file before anything
is allocated for it. gzip files are recognised by their content; deflate cannot
pack more than 1032 bytes into one, so that the same check bounds them too.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np

from cnn_ext.data._dataset import MAX_BYTES, DataError, open_regular

__all__ = ["read_idx"]

_DTYPES: dict[int, np.dtype] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAX_NDIM = 8
# The longest match, 258 bytes, takes at least one bit for its length and one for
# its distance (RFC 1951, section 3.2.5): 258 * 8 / 2.
DEFLATE_MAX_RATIO = 1032
_CHUNK = 1 << 20


def read_idx(
    path: str | os.PathLike[str],
    *,
    dtype: np.dtype | type | None = None,
    ndim: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> np.ndarray:
    """Read one IDX file, plain or gzip, told apart by content.

    Parameters
    ----------
    path : str or path-like
        The file. It must be a regular file.
    dtype : numpy dtype, optional
        Element type that the file must have.
    ndim : int, optional
        Number of dimensions that the file must have.
    max_bytes : int
        Refuse files whose elements take more than this (default 1 GiB).

    Returns
    -------
    numpy.ndarray
        C-contiguous, in native byte order, of the file's element type.

    Raises
    ------
    DataError
        If the file cannot be read or breaks a rule of the format: magic number,
        element type, sizes, truncated, trailing bytes, damaged gzip stream.
    """
    name = os.fspath(path)
    file, size = open_regular(path)
    with file:
        try:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                limit = size * DEFLATE_MAX_RATIO
                with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                    return _read(stream, name, limit, False, dtype, ndim, max_bytes)
            file.seek(0)
            return _read(file, name, size, True, dtype, ndim, max_bytes)
        except EOFError as error:
            raise DataError(
                f"{name}: truncated: the gzip stream ends before its end mark"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{name}: damaged gzip stream: {error}") from error
        except OSError as error:
            raise DataError(
                f"{name}: cannot be read: {error.strerror or error}"
            ) from error


def _read(
    stream: BinaryIO | gzip.GzipFile,
    name: str,
    limit: int,
    exact: bool,
    dtype: np.dtype | type | None,
    ndim: int | None,
    max_bytes: int,
) -> np.ndarray:
    """Header, checks, elements; `limit` bytes is all that the file can hold.

    `exact` says that it holds just that many, as a plain file does.
    """
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(
            f"{name}: truncated: {len(magic)} bytes, an IDX file has a header of "
            "at least 8"
        )
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise DataError(
            f"{name}: wrong magic number 0x{magic.hex()}; an IDX file starts with "
            "0x0000, an element type 08, 09, 0b, 0c, 0d or 0e and the number of "
            "dimensions"
        )
    element = _DTYPES[magic[2]]
    if not 1 <= magic[3] <= _MAX_NDIM:
        raise DataError(
            f"{name}: header says {magic[3]} dimensions; it must be 1 to {_MAX_NDIM}"
        )
    if dtype is not None and element != np.dtype(dtype).newbyteorder(">"):
        raise DataError(
            f"{name}: elements are {element.name}; they must be {np.dtype(dtype).name}"
        )
    if ndim is not None and magic[3] != ndim:
        raise DataError(f"{name}: has {magic[3]} dimensions; it must have {ndim}")

    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(
            f"{name}: truncated: the header ends within its {magic[3]} sizes"
        )
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if 0 in shape:
        raise DataError(f"{name}: header says shape {shape}; no size may be zero")
    count = 1
    for length in shape:  # Python integers: the product cannot overflow
        count *= length
    wanted = count * element.itemsize
    header = 4 + 4 * magic[3]
    if exact and header + wanted < limit:
        raise DataError(
            f"{name}: {limit - header - wanted} trailing bytes: shape {shape} of "
            f"{element.name} ends at byte {header + wanted}"
        )
    if header + wanted > limit:
        held = f"the file has {limit}" if exact else f"its gzip stream at most {limit}"
        raise DataError(
            f"{name}: truncated: shape {shape} of {element.name} takes "
            f"{header + wanted} bytes, {held}"
        )
    if wanted > max_bytes:
        raise DataError(
            f"{name}: shape {shape} of {element.name} takes {wanted} bytes; "
            f"the limit is {max_bytes}"
        )

    array = np.empty(count, dtype=element)
    target = array.view(np.uint8).data
    done = 0
    while done < wanted:
        got = stream.readinto(target[done : done + _CHUNK])  # type: ignore[union-attr]
        if not got:
            raise DataError(
                f"{name}: truncated: shape {shape} of {element.name} takes "
                f"{header + wanted} bytes, there are {header + done}"
            )
        done += got
    # Reading on also makes gzip compare its checksum.
    if stream.read(1):
        raise DataError(
            f"{name}: trailing bytes: shape {shape} of {element.name} ends at byte "
            f"{header + wanted}, the file goes on"
        )
    native = array.astype(element.newbyteorder("="), copy=False)
    return native.reshape(shape)
