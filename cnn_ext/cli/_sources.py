"""DATA and its options: digits, mnist, an .npz file or a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from cnn_ext import data
from cnn_ext.cli._arguments import Parser, integer
from cnn_ext.cli._console import UsageError
from cnn_ext.data import MNIST_FILES, Dataset

__all__ = ["DATA_HELP", "add_source_options", "check_source", "load_data"]

DATA_HELP = (
    "digits (scikit-learn's real 8x8 digits, the default), mnist, a file FILE.npz with "
    "the keys x and y, or a folder with one sub-folder of images for each class"
)


def add_source_options(parser: Parser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR",
        help=f"for mnist: folder with {', '.join(MNIST_FILES)}, plain or .gz",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=integer(1, 8192),
        metavar=("H", "W"),
        help="for a folder: resize the images",
    )
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="for an .npz file: x is (N, H, W, C)",
    )


def check_source(arguments: argparse.Namespace) -> None:
    """DATA and the options that go with its kinds, before anything is read."""
    source = arguments.source
    kind = "npz" if source.lower().endswith(".npz") else source
    if kind not in ("digits", "mnist", "npz"):
        kind = "folder"
        path = Path(source)
        forms = [f"{name}{suffix}" for name in MNIST_FILES for suffix in ("", ".gz")]
        if any((path / form).exists() for form in forms):
            raise UsageError(
                f"DATA is {source!r}, a folder with MNIST's files; "
                f"give mnist --data {source}"
            )
        if not path.exists():
            raise UsageError(
                f"DATA is {source!r}, which is not there; give digits, mnist, FILE.npz "
                "or a folder with one sub-folder for each class"
            )
        if not path.is_dir():
            raise UsageError(f"DATA is {source!r}, a file that does not end in .npz")
    for option, value, goes_with in (
        ("--data", arguments.data, "mnist"),
        ("--size", arguments.size, "folder"),
        ("--channels-last", arguments.channels_last or None, "npz"),
    ):
        if value is not None and kind != goes_with:
            named = {"npz": "an .npz file", "folder": "a folder"}
            raise UsageError(
                f"{option} goes with {named.get(goes_with, goes_with)}, not with "
                f"{named.get(kind, kind)}"
            )
    arguments.kind = kind


def load_data(arguments: argparse.Namespace) -> Dataset:
    # The split of a set without a test part is always the same, whatever --seed says:
    # no image that a network was trained on is among those it is evaluated on.
    if arguments.kind == "digits":
        return data.digits()
    if arguments.kind == "mnist":
        return data.mnist(arguments.data)
    if arguments.kind == "npz":
        last = True if arguments.channels_last else None
        return data.npz(arguments.source, channels_last=last)
    size = tuple(arguments.size) if arguments.size else None
    return data.folder(arguments.source, size=size)
