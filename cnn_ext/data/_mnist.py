"""MNIST, or any set in its four IDX files: from a folder, else downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cnn_ext.data._dataset import DataError, Dataset, scale_uint8
from cnn_ext.data.idx import read_idx

__all__ = ["MNIST_FILES", "mnist"]

# File name -> SHA-256 of its gzip form on the mirrors.
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_ADVICE = (
    "pass --data DIR (or set CNN_EXT_DATA) with " + ", ".join(MNIST_FILES) + ", "
    "plain or .gz"
)


def mnist(dir: str | os.PathLike[str] | None = None) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28x28.

    Parameters
    ----------
    dir : path, optional
        Folder with the four files ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``, in it or in its
        sub-folder ``mnist``. Without it the folder that the environment variable
        ``CNN_EXT_DATA`` names is used; without that the files are downloaded once
        (needs pooch, extra `demo`; SHA-256 checked) and kept in the user's cache.

    Returns
    -------
    Dataset
        Images (N, 1, 28, 28) scaled to [0, 1]. Any set in the same files, such as
        Fashion-MNIST, is read as well: sizes and labels come from the files.

    Raises
    ------
    DataError
        If a file is missing, damaged, does not fit the others, or cannot be
        downloaded.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to
    document recognition", Proceedings of the IEEE 86(11), 1998.
    """
    given = dir if dir is not None else os.environ.get("CNN_EXT_DATA") or None
    if given is not None:
        source = "" if dir is not None else "CNN_EXT_DATA: "
        files = [_find(Path(given), name, source) for name in MNIST_FILES]
    else:
        files = _download()
    x_train, y_train = _pair(files[0], files[1])
    x_test, y_test = _pair(files[2], files[3])
    classes = int(max(y_train.max(), y_test.max())) + 1
    return Dataset(
        "mnist",
        x_train,
        y_train,
        x_test,
        y_test,
        tuple(str(label) for label in range(classes)),
    )


def _find(folder: Path, name: str, source: str) -> Path:
    """`name`, plain or .gz, in `folder` or its sub-folder mnist."""
    if not folder.is_dir():
        raise DataError(f"{source}{folder}: no such folder; {_ADVICE}")
    for place in (folder, folder / "mnist"):
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.exists():
                return candidate
    raise DataError(f"{source}{folder}: has no {name}, plain or .gz; {_ADVICE}")


def _pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """One images file with its labels file, as (N, 1, H, W) and (N,)."""
    pixels = read_idx(images, dtype=np.uint8, ndim=3)
    classes = read_idx(labels, dtype=np.uint8, ndim=1)
    if len(pixels) != len(classes):
        raise DataError(
            f"{labels}: has {len(classes)} labels, {images.name} has {len(pixels)} "
            "images; the counts must agree"
        )
    return scale_uint8(pixels)[:, np.newaxis], classes.astype(np.int64)


def _download() -> list[Path]:
    """The four files from the mirrors, or from the cache of an earlier download."""
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"mnist: {_ADVICE}; or, to download them, pip install 'cnn_ext[demo]'"
        ) from error
    # pooch tells of each download on standard error; our caller reports instead.
    pooch.get_logger().setLevel("ERROR")
    cache = pooch.os_cache("cnn_ext") / "mnist"
    files = []
    for name, sha256 in MNIST_FILES.items():
        failures = []
        for mirror in MIRRORS:
            try:
                # Written to a temporary file, checked, then moved into place.
                found = pooch.retrieve(
                    f"{mirror}{name}.gz",
                    known_hash=f"sha256:{sha256}",
                    fname=f"{name}.gz",
                    path=cache,
                )
            # requests' errors are OSErrors; ValueError is a wrong hash.
            except (OSError, ValueError) as error:
                failures.append(f"{mirror.split('/')[2]}: {_why(error)}")
            else:
                files.append(Path(found))
                break
        else:
            raise DataError(
                f"mnist: {name}.gz could not be downloaded "
                f"({'; '.join(failures)}); {_ADVICE}"
            )
    return files


def _why(error: Exception) -> str:
    """A download's failure in a few words on one line."""
    if isinstance(error, ValueError) and "hash" in str(error):
        return "its SHA-256 is not the known one"
    text = getattr(error, "strerror", None) or type(error).__name__
    response = getattr(error, "response", None)
    if response is not None:
        text = f"HTTP status {response.status_code}"
    return text
