"""The real 8x8 handwritten digits that scikit-learn ships."""

from __future__ import annotations

import numpy as np

from cnn_ext.data._dataset import DataError, Dataset, split_dataset

__all__ = ["digits"]


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 real handwritten digits, 8x8 pixels; nothing is downloaded.

    Parameters
    ----------
    test_fraction : float
        Share of every class that is held out for testing.
    seed : int
        Seed of the split; the same seed gives the same split.

    Returns
    -------
    Dataset
        Images (N, 1, 8, 8), the 17 grey levels scaled to [0, 1]; 10 classes.

    Raises
    ------
    DataError
        If scikit-learn, which holds the data, is not installed, or
        `test_fraction` is out of range.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998; the copy in :mod:`sklearn.datasets`.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits: scikit-learn, which holds these images, is not installed; "
            "pip install 'cnn_ext[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    names = tuple(str(digit) for digit in range(10))
    return split_dataset(
        "digits",
        x,
        labels.astype(np.int64),
        names,
        test_fraction=test_fraction,
        seed=seed,
    )
