"""Augmentation: training images changed at random, so that the net learns what counts.

Each takes a batch and a Generator and returns a new batch: ``augment(x, rng)``, x of
shape (N, C, H, W), float32 or float64. `cnn_ext.fit` does so with each batch and its
own Generator, which makes the changes part of what its seed decides. Every image is
changed in its own way. What comes in from outside an image is `fill`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnn_ext._geometry import checked_size, pair
from cnn_ext.layers.base import checked_float

__all__ = ["Affine", "Compose", "Crop", "Cutout", "Flip", "Shift"]

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class _Augment:
    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a changed copy of a batch.

        Parameters
        ----------
        x : numpy.ndarray
            (N, C, H, W), float32 or float64; it is not changed.
        rng : numpy.random.Generator

        Returns
        -------
        numpy.ndarray
            C-contiguous, of x's dtype.
        """
        if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
            kind = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"x must be a float32 or float64 array, got {kind}")
        if x.ndim != 4:
            raise ValueError(f"x must have axes (N, C, H, W), got shape {x.shape}")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng must be a numpy.random.Generator, got {type(rng).__name__}"
            )
        return self._changed(x, rng)

    def _changed(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


def _windows(
    x: np.ndarray, top: np.ndarray, left: np.ndarray, size: tuple[int, int], fill: float
) -> np.ndarray:
    """Return the window of each image that starts at (top, left), maybe outside."""
    n, c, h, w = x.shape
    y = np.full((n, c, *size), fill, x.dtype)
    for i in range(n):
        t, s = int(top[i]), int(left[i])
        rows = slice(max(t, 0), min(t + size[0], h))
        columns = slice(max(s, 0), min(s + size[1], w))
        if rows.start < rows.stop and columns.start < columns.stop:
            y[
                i,
                :,
                rows.start - t : rows.stop - t,
                columns.start - s : columns.stop - s,
            ] = x[i, :, rows, columns]
    return y


class Shift(_Augment):
    """Each image moved by up to so many whole pixels.

    Parameters
    ----------
    reach : int or (int, int)
        Largest shift, (vertical, horizontal), in either direction.
    fill : float, default 0
        Value of the pixels that come in.
    """

    def __init__(self, reach: Any, fill: float = 0.0) -> None:
        self.reach = pair(reach, "reach", 0)
        self.fill = checked_float(fill, "fill", -math.inf)

    def _changed(self, x, rng):
        down, right = (rng.integers(-r, r + 1, len(x)) for r in self.reach)
        return _windows(x, -down, -right, x.shape[2:], self.fill)


class Crop(_Augment):
    """A window of each image, at a random place, after a margin has been added.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window.
    padding : int or (int, int), default 0
        Margin on either side; for CIFAR ``Crop(32, 4)``.
    fill : float, default 0
        Value of the margin.

    Raises
    ------
    ValueError
        When called, if the window is larger than the image with its margin.
    """

    def __init__(self, size: Any, padding: Any = 0, fill: float = 0.0) -> None:
        self.size = pair(size, "size")
        self.padding = pair(padding, "padding", 0)
        self.fill = checked_float(fill, "fill", -math.inf)

    def _changed(self, x, rng):
        places = []
        for i, name in enumerate(("high", "wide")):
            room = x.shape[2 + i] + 2 * self.padding[i] - self.size[i]
            if room < 0:
                raise ValueError(
                    f"the window of {self.size[0]}x{self.size[1]} is too {name} for "
                    f"images of {x.shape[2]}x{x.shape[3]} with a margin of "
                    f"{self.padding[0]}x{self.padding[1]}"
                )
            places.append(rng.integers(0, room + 1, len(x)) - self.padding[i])
        return _windows(x, *places, self.size, self.fill)


class Flip(_Augment):
    """Each image mirrored with probability `p`.

    Parameters
    ----------
    p : float, default 0.5
        From 0 to 1.
    vertical : bool, default False
        Top and bottom change places instead of left and right.
    """

    def __init__(self, p: float = 0.5, vertical: bool = False) -> None:
        self.p = checked_float(p, "p", 0.0, 1.0)
        self.vertical = bool(vertical)

    def _changed(self, x, rng):
        chosen = rng.random(len(x)) < self.p
        y = np.array(x, order="C")
        y[chosen] = x[chosen][:, :, ::-1] if self.vertical else x[chosen][..., ::-1]
        return y


class Affine(_Augment):
    """Each image turned, scaled, sheared and moved about its centre, bilinear.

    Parameters
    ----------
    degrees : float, default 0
        Largest turn in either direction.
    scale : (float, float), default (1, 1)
        Least and largest factor, above 0.
    shear : float, default 0
        Largest horizontal shear in either direction, in degrees below 90.
    shift : float, default 0
        Largest move in either direction, in pixels.
    fill : float, default 0
        Value outside the image.
    """

    def __init__(
        self,
        degrees: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        shift: float = 0.0,
        fill: float = 0.0,
    ) -> None:
        self.degrees = checked_float(degrees, "degrees", 0.0, 180.0)
        if not isinstance(scale, (tuple, list)) or len(scale) != 2:
            raise ValueError(f"scale must be two numbers, got {scale!r}")
        low = checked_float(scale[0], "scale[0]", 0.0, above=True)
        self.scale = low, checked_float(scale[1], "scale[1]", low)
        self.shear = checked_float(shear, "shear", 0.0, 89.0)
        self.shift = checked_float(shift, "shift", 0.0)
        self.fill = checked_float(fill, "fill", -math.inf)

    def _changed(self, x, rng):
        n, _, h, w = x.shape
        turn = np.radians(rng.uniform(-self.degrees, self.degrees, n))
        factor = rng.uniform(*self.scale, n)
        slant = np.tan(np.radians(rng.uniform(-self.shear, self.shear, n)))
        moves = rng.uniform(-self.shift, self.shift, (n, 2))
        row, column = np.meshgrid(
            np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij"
        )
        y = np.empty(x.shape, x.dtype)
        for i in range(n):
            # backwards, from a pixel of the result to where it comes from
            r, s = row - moves[i, 0], column - moves[i, 1]
            cos, sin = math.cos(turn[i]) / factor[i], math.sin(turn[i]) / factor[i]
            r, s = cos * r + sin * s, cos * s - sin * r
            s = s - slant[i] * r
            y[i] = _bilinear(x[i], r + (h - 1) / 2, s + (w - 1) / 2, self.fill)
        return y


def _bilinear(
    image: np.ndarray, row: np.ndarray, column: np.ndarray, fill: float
) -> np.ndarray:
    """Return an image's values at places between its pixels."""
    _, h, w = image.shape
    # a margin of two pixels holds all that lies outside
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), constant_values=fill)
    row = np.clip(row + 2, 0, h + 2.0)
    column = np.clip(column + 2, 0, w + 2.0)
    r, s = row.astype(np.intp), column.astype(np.intp)
    down = (row - r).astype(image.dtype)
    right = (column - s).astype(image.dtype)
    upper = padded[:, r, s] * (1 - right) + padded[:, r, s + 1] * right
    lower = padded[:, r + 1, s] * (1 - right) + padded[:, r + 1, s + 1] * right
    return upper * (1 - down) + lower * down


class Cutout(_Augment):
    """A square of each image is blotted out; its centre lies anywhere in the image.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the square.
    fill : float, default 0

    References
    ----------
    T. DeVries, G. Taylor, "Improved regularization of convolutional neural networks
    with cutout", arXiv:1708.04552, 2017.
    """

    def __init__(self, size: Any, fill: float = 0.0) -> None:
        self.size = pair(size, "size")
        self.fill = checked_float(fill, "fill", -math.inf)

    def _changed(self, x, rng):
        n, _, h, w = x.shape
        rows = rng.integers(0, h, n) - self.size[0] // 2
        columns = rng.integers(0, w, n) - self.size[1] // 2
        y = np.array(x, order="C")
        for i in range(n):
            top, left = max(int(rows[i]), 0), max(int(columns[i]), 0)
            bottom, right = rows[i] + self.size[0], columns[i] + self.size[1]
            y[i, :, top:bottom, left:right] = self.fill
        return y


class Compose(_Augment):
    """Several, one behind the other.

    Parameters
    ----------
    *parts : callable
        Each ``part(x, rng) -> x``.

    Examples
    --------
    >>> augment = Compose(Crop(32, 4), Flip(), Cutout(8))
    """

    def __init__(self, *parts: Augment) -> None:
        for part in parts:
            if not callable(part):
                raise TypeError(f"parts must be callable, got {type(part).__name__}")
        self.parts = parts
        checked_size(len(parts), "number of parts", 1)

    def _changed(self, x, rng):
        for part in self.parts:
            x = part(x, rng)
        return x
