"""The one type that every reader returns, its error, and the seeded split."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

__all__ = ["MAX_BYTES", "MAX_CLASSES", "DataError", "Dataset"]

# What a reader will unpack from one file unless told otherwise. The largest
# common IDX file (EMNIST by class, training images) unpacks to 547 MB.
MAX_BYTES = 1 << 30

# A label beyond this is a mistake (a label file that is not one), and a model
# with one output a class would be built for it.
MAX_CLASSES = 65_536


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the rule it broke."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into a training part and a held-out test part.

    Attributes
    ----------
    name : str
        Short name of the source, e.g. ``"digits"``.
    x_train, x_test : numpy.ndarray
        float32, shape (N, C, H, W), C-contiguous; pixels scaled to [0, 1]
        wherever the source holds integers.
    y_train, y_test : numpy.ndarray
        int64, shape (N,), values ``0 .. len(class_names) - 1``.
    class_names : tuple of str
        One name a class, in the order of the labels.

    Raises
    ------
    DataError
        If shapes, dtypes or labels do not fit together.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise DataError(
                f"{self.name}: has {len(self.class_names)} classes; a classifier needs "
                "at least two"
            )
        for part in ("train", "test"):
            x = getattr(self, f"x_{part}")
            y = getattr(self, f"y_{part}")
            if x.dtype != np.float32 or x.ndim != 4:
                raise DataError(
                    f"{self.name}: x_{part} is {x.dtype} of shape {x.shape}; "
                    "images must be float32 of shape (N, C, H, W)"
                )
            if y.dtype != np.int64 or y.shape != x.shape[:1]:
                raise DataError(
                    f"{self.name}: y_{part} is {y.dtype} of shape {y.shape}; labels "
                    f"must be int64 of shape ({x.shape[0]},), one for each image"
                )
            if 0 in x.shape:
                raise DataError(
                    f"{self.name}: x_{part} has shape {x.shape}; "
                    "it must hold at least one image of at least one pixel"
                )
            if y.min() < 0 or y.max() >= len(self.class_names):
                raise DataError(
                    f"{self.name}: y_{part} has labels from {y.min()} to {y.max()}; "
                    f"they must lie in 0..{len(self.class_names) - 1}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(
                f"{self.name}: training images have (C, H, W) = "
                f"{self.x_train.shape[1:]}, test images {self.x_test.shape[1:]}; "
                "they must agree"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.x_train.shape
        return channels, height, width

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """``(x_train, y_train)``, the pair that :func:`cnn_ext.fit` takes."""
        return self.x_train, self.y_train

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """``(x_test, y_test)``, the pair that :func:`cnn_ext.evaluate` takes."""
        return self.x_test, self.y_test

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.x_train)} training and "
            f"{len(self.x_test)} test images of {self.input_shape}, "
            f"{len(self.class_names)} classes)"
        )


def stratified_split(
    labels: np.ndarray, *, test_fraction: float, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a training and a test part, each class in the same proportion.

    Parameters
    ----------
    labels : numpy.ndarray
        Integer labels, shape (N,).
    test_fraction : float
        Share of every class that goes to the test part, above 0 and below 1;
        a class of two or more images gives at least one and keeps at least one.
        A class of one image stays in the training part.
    seed : int
        Seed of the draw: the same labels and seed give the same split.
    name : str
        Source of the labels, for the error's message.

    Returns
    -------
    train, test : numpy.ndarray
        Increasing indices, disjoint, together ``0 .. N-1``.
    """
    if not 0 < test_fraction < 1:
        raise DataError(
            f"test_fraction is {test_fraction}; it must lie between 0 and 1"
        )
    rng = np.random.default_rng(seed)
    in_test = np.zeros(labels.shape, dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if members.size >= 2:
            count = min(max(round(members.size * test_fraction), 1), members.size - 1)
            in_test[rng.permutation(members)[:count]] = True
    if not in_test.any():
        raise DataError(
            f"{name}: no class has two images, so none can be held out for testing; "
            "give at least two images of a class"
        )
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def split_dataset(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    class_names: tuple[str, ...],
    *,
    test_fraction: float,
    seed: int,
) -> Dataset:
    """A :class:`Dataset` of ``x, y`` by :func:`stratified_split`."""
    train, test = stratified_split(y, test_fraction=test_fraction, seed=seed, name=name)
    return Dataset(name, x[train], y[train], x[test], y[test], class_names)


def open_regular(path: str | os.PathLike[str]) -> tuple[BinaryIO, int]:
    """Open a regular file for reading; return it with its size in bytes.

    Anything else (missing, folder, pipe, device, not permitted) is a DataError:
    reading from a pipe could wait for ever, a device has no size to check against.
    """
    name = os.fspath(path)
    try:
        # Look before opening: opening a pipe for reading blocks until it has a writer.
        mode = os.stat(path).st_mode
        file = open(path, "rb") if stat.S_ISREG(mode) else None  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name!r}: cannot be opened: {reason}") from error
    if file is None:
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise DataError(f"{name}: is {kind}; a data file is needed")
    return file, os.fstat(file.fileno()).st_size


def scale_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 0..255 to float32 [0, 1], without a float64 copy on the way."""
    return np.divide(pixels, np.float32(255), dtype=np.float32)
