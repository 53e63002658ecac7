"""Small data files for the tests (IDX, MNIST-like folders, images), and checks."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cnn_ext.data import DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array, *, magic=None, shape=None):
    """`array` as an IDX file; `magic` and `shape` overrule what is true."""
    code = CODES[array.dtype.str[1:]]
    shape = array.shape if shape is None else shape
    magic = bytes([0, 0, code, len(shape)]) if magic is None else magic
    sizes = struct.pack(f">{len(shape)}I", *shape)
    return magic + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def stripes(count, size, classes, seed=0):
    """uint8 images, separable by class (a bright row), and their labels."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.uint8)
    images = rng.integers(0, 60, (count, size, size), dtype=np.uint8)
    images[np.arange(count), labels % size] += 180
    return images, labels


def write_mnist(folder, *, train=40, test=20, size=8, classes=4, compress=False):
    """The four files of a small set in MNIST's format."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = stripes(count, size, classes, seed)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            path = folder / f"{part}-{kind}-ubyte"
            if compress:
                Path(f"{path}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                path.write_bytes(content)
    return folder


def write_images(folder, *, per_class=6, size=8, classes=("cat", "dog"), mode="L"):
    """One sub-folder of PNG files for each class."""
    from PIL import Image

    images, labels = stripes(per_class * len(classes), size, len(classes))
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        part = Path(folder) / classes[label]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(part / f"{number:03}.png")
    return Path(folder)


def real_mnist():
    """Folder with the real MNIST files, or None: CNN_EXT_DATA, then ../shared/data."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    for place in (os.environ.get("CNN_EXT_DATA"), beside):
        for folder in (Path(place), Path(place) / "mnist") if place else ():
            if list(folder.glob("train-images-idx3-ubyte*")):
                return folder
    return None


def refused(match, function, *args, **keywords):
    """The call raises one DataError of one line that says `match`."""
    with pytest.raises(DataError, match=match) as caught:
        function(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_whole(dataset):
    for x, y in (dataset.train, dataset.test):
        assert x.dtype == np.float32 and x.flags.c_contiguous and y.dtype == np.int64
        assert x.shape == (len(y), *dataset.input_shape)
        assert x.min() >= 0 and x.max() <= 1
