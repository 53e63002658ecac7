"""The options of a training run, kept in its checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from cnn_ext.checkpoint import load
from cnn_ext.cli._console import UsageError
from cnn_ext.data import DataError
from cnn_ext.zoo import NETS

__all__ = ["options_of", "take_options"]

#: What decides a training run, and so goes into its checkpoints.
_RUN = {
    "source": str,
    "data": str,
    "size": list,
    "channels_last": bool,
    "model": str,
    "epochs": int,
    "batch_size": int,
    "lr": float,
    "seed": int,
    "out": str,
    "checkpoint_every": int,
}


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, as its checkpoints keep them."""
    return {name: getattr(arguments, name) for name in _RUN}


def take_options(arguments: argparse.Namespace) -> None:
    """Set the options to those that a run was started with."""
    path = arguments.resume
    kept = load(path).metadata.get("run")
    if not isinstance(kept, dict) or kept.keys() != _RUN.keys():
        raise UsageError(
            f"{path} is no checkpoint of a training run; "
            "they are written by cnn-ext train --checkpoint FILE"
        )
    for name, kind in _RUN.items():
        value = kept[name]
        if value is not None and type(value) is not kind:
            raise DataError(f"{path}: its option {name} is {value!r:.80}")
        # only what says where things lie or how often to save may be given anew
        given = getattr(arguments, name)
        if name in ("out", "data", "checkpoint_every"):
            value = value if given is None else given
        elif given not in (None, False, value):
            option = "DATA" if name == "source" else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} is {given}, but the run in {path} was started with {value}"
            )
        setattr(arguments, name, value)
    if arguments.model is not None and arguments.model not in NETS:
        raise DataError(f"{path}: its model {arguments.model!r:.80} is unknown")
    arguments.checkpoint = arguments.checkpoint or path
