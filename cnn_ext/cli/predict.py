"""cnn-ext predict: print class and probability of images."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from cnn_ext.checkpoint import load
from cnn_ext.cli._arguments import add_command, add_threads, set_threads
from cnn_ext.cli._console import printable
from cnn_ext.cli._networks import class_names
from cnn_ext.data import DataError, read_image
from cnn_ext.layers import Softmax
from cnn_ext.model import Model

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "predict",
        run,
        "Print class and probability of images, one line each.",
    )
    parser.add_argument("model", metavar="MODEL", help="file that train wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument(
        "--invert",
        action="store_true",
        help="dark on light, where the network learned light on dark, as MNIST is",
    )
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    set_threads(arguments)
    model = load(arguments.model)
    shape = model.input_shape
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"{arguments.model} takes inputs of {shape}; predict needs a network for "
            "images of (1, H, W) or (3, H, W), built with input_shape="
        )
    names = class_names(model, arguments.model)
    targets = _targets(model, arguments.model)
    for path in arguments.images:
        image = read_image(path, channels=shape[0], size=(shape[1], shape[2]))
        if arguments.invert:
            image = 1 - image
        x = image.astype(model.dtype or np.float32)
        with np.errstate(all="ignore"):  # the weights are whatever the file holds
            y = model(x[np.newaxis])
        if y.ndim != 2 or (names is not None and len(names) != y.shape[1]):
            raise DataError(
                f"{arguments.model}: outputs of shape {y.shape[1:]} are not one for "
                f"each class{'' if names is None else f' of {len(names)}'}"
            )
        best = int(y[0].argmax())
        name = str(best) if names is None else names[best]
        with np.errstate(all="ignore"):
            probability = _probabilities(model, y, targets)[0, best]
        row = (path, name, f"{probability:.4f}")
        print("\t".join(printable(part, sys.stdout) for part in row), flush=True)


def _targets(model: Model, path: str) -> tuple[float, float] | None:
    """What squared error was told to reach for the other classes and for the class."""
    targets = model.metadata.get("targets")
    if targets is None:
        return None
    if isinstance(targets, list) and all(type(t) in (int, float) for t in targets):
        match targets:
            case [off, on] if 1e-3 <= on - off <= 1e3 and abs(on) <= 1e3:
                return off, on
    raise DataError(f"{path}: its targets are not two numbers, the second the larger")


def _probabilities(
    model: Model, y: np.ndarray, targets: tuple[float, float] | None
) -> np.ndarray:
    """Probabilities of the classes from the network's outputs."""
    if targets is not None:
        off, on = targets
        # The least squared error is reached at the mean of the targets,
        # off + (on - off) * probability; scaled so that the classes add up to one.
        share = np.clip((y - off) / (on - off), np.finfo(y.dtype).tiny, 1)
        return share / share.sum(axis=1, keepdims=True)
    layers = list(model.layers.values())
    return y if isinstance(layers[-1], Softmax) else Softmax()(y)
