"""Images from a folder with one sub-folder for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnn_ext.data._dataset import (
    DataError,
    Dataset,
    open_regular,
    scale_uint8,
    split_dataset,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["folder", "read_image"]

# Only decoders that stay in process: Pillow would run Ghostscript for EPS.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
_GREY = frozenset(("1", "L", "LA"))
_COLOUR = frozenset(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
MAX_PIXELS = 1 << 26  # 67 million pixels in one image
MAX_TOTAL_BYTES = 1 << 33  # all images of a folder as float32


def folder(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Read a folder with one sub-folder of images for each class (needs Pillow).

    Parameters
    ----------
    path : str or path-like
        ``path/<class name>/<image>``. If the sub-folders are just ``train`` and
        ``test``, each of them has the class folders and gives its part. Files whose
        suffix is not an image's and names that start with a dot are passed over.
    size : (int, int), optional
        Height and width to resize to (bilinear, antialiased). Without it all images
        must have one size.
    test_fraction : float
        Share of every class held out, where there is no ``test`` folder.
    seed : int
        Seed of that split.

    Returns
    -------
    Dataset
        Pixels scaled to [0, 1]; one channel if every image is grey, else three
        (RGB; transparency is dropped, EXIF rotation is not applied). Classes and
        files are taken in the order of their names, so that the same folder gives
        the same arrays anywhere.

    Raises
    ------
    DataError
        If a class has no image, an image is damaged, truncated, too large or of
        another size, or there are fewer than two classes.
    """
    root = Path(path)
    name = os.fspath(path)
    _check_size(size)
    parts = _subfolders(root)
    if {part.name for part in parts} == {"train", "test"}:
        train, test = _list_images(root / "train"), _list_images(root / "test")
        if list(train) != list(test):
            raise DataError(
                f"{name}: train has the classes {', '.join(train)}, test has "
                f"{', '.join(test)}; they must agree"
            )
    else:
        train, test = _list_images(root), {}
    class_names = tuple(train)
    lists = [
        [(file, label) for label, files in enumerate(part.values()) for file in files]
        for part in (train, test)
    ]
    files = [file for part in lists for file, _ in part]
    x = _load_all(files, name, size)
    y = np.array([label for part in lists for _, label in part], dtype=np.int64)
    if not test:
        return split_dataset(
            name, x, y, class_names, test_fraction=test_fraction, seed=seed
        )
    split = len(lists[0])
    return Dataset(name, x[:split], y[:split], x[split:], y[split:], class_names)


def read_image(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read one image file as float32 (C, H, W) in [0, 1] (needs Pillow).

    Parameters
    ----------
    path : str or path-like
        BMP, GIF (first frame), JPEG, PNG, PNM, TIFF or WebP; 8 bits a channel.
    channels : {1, 3}, optional
        Convert to grey or RGB; by default as the image is.
    size : (int, int), optional
        Height and width to resize to.

    Returns
    -------
    numpy.ndarray
        float32, shape (C, H, W).

    Raises
    ------
    DataError
        If it is no image, damaged, truncated, has more than 67 million pixels or
        more than 8 bits a channel.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"channels is {channels}; images have 1 (grey) or 3 (RGB)")
    _check_size(size)
    with _opened(path) as image:
        grey = image.mode in _GREY if channels is None else channels == 1
        return scale_uint8(_pixels(image, os.fspath(path), grey, size))


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None and not (
        len(size) == 2 and all(isinstance(n, int) and 1 <= n <= 8192 for n in size)
    ):
        raise DataError(f"size is {size}; it must be (height, width), each 1 to 8192")


def _subfolders(root: Path) -> list[Path]:
    """Sub-folders in the order of their names; no dot files."""
    try:
        found = [
            entry
            for entry in root.iterdir()
            if not entry.name.startswith(".") and entry.is_dir()
        ]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{str(root)!r}: cannot be listed: {reason}") from error
    return sorted(found, key=lambda entry: entry.name)


def _list_images(root: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both in the order of their names."""
    classes = {}
    for part in _subfolders(root):
        try:
            files = [
                entry
                for entry in part.iterdir()
                if entry.suffix.lower() in _SUFFIXES and not entry.name.startswith(".")
            ]
        except OSError as error:
            raise DataError(f"{part}: cannot be listed: {error.strerror}") from error
        if not files:
            raise DataError(
                f"{part}: has no image ({' '.join(sorted(_SUFFIXES))}); "
                "every sub-folder is a class and needs at least one"
            )
        classes[part.name] = sorted(files, key=lambda entry: entry.name)
    if len(classes) < 2:
        raise DataError(
            f"{root}: has {len(classes)} sub-folders with images; a classifier needs "
            "at least two, one for each class"
        )
    return classes


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Pillow's image of a file, its header checked; any failure is a DataError."""
    name = os.fspath(path)
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{name}: Pillow, which reads images, is not installed; "
            "pip install 'cnn_ext[demo]'"
        ) from error
    file, _ = open_regular(path)
    with file:
        try:
            with warnings.catch_warnings():
                # Pillow warns of large images on standard error; the check below
                # and its own DecompressionBombError say it once.
                warnings.simplefilter("ignore")
                image = Image.open(file, formats=_FORMATS)
        except Exception as error:
            raise _image_error(name, error) from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{name}: has {width}x{height} pixels; the limit is {MAX_PIXELS} in all"
            )
        if image.mode not in _GREY and image.mode not in _COLOUR:
            raise DataError(
                f"{name}: has pixel mode {image.mode}; convert it to 8 bits a channel, "
                "grey or RGB"
            )
        yield image


def _image_error(name: str, error: Exception) -> DataError:
    """Pillow's decoders raise a dozen exception types on damaged files; one line."""
    if isinstance(error, MemoryError):
        raise error
    kind = type(error).__name__
    if kind == "UnidentifiedImageError":
        return DataError(
            f"{name}: is no image that can be read ({', '.join(_FORMATS)})"
        )
    if kind == "DecompressionBombError":
        return DataError(f"{name}: has too many pixels; the limit is {MAX_PIXELS}")
    text = " ".join(str(error).split())[:200]
    return DataError(f"{name}: damaged image: {text or kind}")


def _pixels(
    image: Image.Image, name: str, grey: bool, size: tuple[int, int] | None
) -> np.ndarray:
    """The opened image as uint8 (C, H, W)."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = image.convert("L" if grey else "RGB")
            if size is not None and converted.size != (size[1], size[0]):
                converted = converted.resize(
                    (size[1], size[0]), Image.Resampling.BILINEAR
                )
            pixels = np.asarray(converted)
    except Exception as error:
        raise _image_error(name, error) from error
    return pixels[np.newaxis] if grey else pixels.transpose(2, 0, 1)


def _load_all(
    files: Sequence[Path], name: str, size: tuple[int, int] | None
) -> np.ndarray:
    """All images as float32 (N, C, H, W): headers first, then pixels."""
    grey = True
    shape = size
    for file in files:
        with _opened(file) as image:
            grey = grey and image.mode in _GREY
            own = (image.size[1], image.size[0])
        if shape is None:
            shape = own
        if size is None and own != shape:
            raise DataError(
                f"{file}: has {own[0]}x{own[1]} pixels (height x width), {files[0]} "
                f"{shape[0]}x{shape[1]}; all must agree, or give a size to resize to "
                "(size=(H, W), --size H W)"
            )
    assert shape is not None  # _list_images found at least two files
    channels = 1 if grey else 3
    total = len(files) * channels * shape[0] * shape[1]
    if total * 4 > MAX_TOTAL_BYTES:
        raise DataError(
            f"{name}: {len(files)} images of {channels}x{shape[0]}x{shape[1]} take "
            f"{total * 4} bytes; the limit is {MAX_TOTAL_BYTES}; give a smaller size"
        )
    x = np.empty((len(files), channels, *shape), dtype=np.float32)
    for target, file in zip(x, files, strict=True):
        with _opened(file) as image:
            target[...] = scale_uint8(_pixels(image, str(file), grey, size))
    return x
