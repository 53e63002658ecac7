"""cnn-ext evaluate: print a network"s accuracy on test images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from cnn_ext.checkpoint import load
from cnn_ext.cli._arguments import add_command, add_threads, set_threads
from cnn_ext.cli._console import UsageError
from cnn_ext.cli._networks import class_names, report
from cnn_ext.cli._sources import add_source_options, check_source, load_data
from cnn_ext.data import DataError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "evaluate", run, "Print a network's accuracy on test images."
    )
    parser.add_argument("model", metavar="MODEL", help="file that train wrote")
    parser.add_argument(
        "source",
        metavar="DATA",
        nargs="?",
        help="as for train; by default what the network was trained on",
    )
    add_source_options(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    set_threads(arguments)
    if arguments.source is not None:
        check_source(arguments)
    model = load(arguments.model)
    if arguments.source is None:
        arguments.source = model.metadata.get("data")
        if arguments.source not in ("digits", "mnist"):
            raise UsageError(
                f"{arguments.model} does not say what it was trained on; "
                "give DATA: digits, mnist, FILE.npz or a folder"
            )
        check_source(arguments)
    dataset = load_data(arguments)
    if model.input_shape is not None and model.input_shape != dataset.input_shape:
        raise DataError(
            f"{arguments.model} takes images of {model.input_shape}, "
            f"{dataset.name} has {dataset.input_shape} (C, H, W)"
        )
    names = class_names(model, arguments.model)
    if names is not None and dataset.class_names != names[: len(dataset.class_names)]:
        raise DataError(
            f"{arguments.model} knows the classes {_some(names)}, {dataset.name} has "
            f"{_some(dataset.class_names)}; they must be the same"
        )
    report(model, dataset)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
