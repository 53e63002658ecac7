"""Labelled images for training: built-in sets, IDX files, npz files, image folders.

Every reader returns a :class:`Dataset` and reports whatever is wrong with its
input as one :class:`DataError` that names the file and the rule it broke.
"""

from cnn_ext.data._dataset import DataError, Dataset
from cnn_ext.data._digits import digits
from cnn_ext.data._folder import folder, read_image
from cnn_ext.data._mnist import MNIST_FILES, mnist
from cnn_ext.data._npz import npz
from cnn_ext.data.idx import read_idx

__all__ = [
    "MNIST_FILES",
    "DataError",
    "Dataset",
    "digits",
    "folder",
    "mnist",
    "npz",
    "read_idx",
    "read_image",
]
