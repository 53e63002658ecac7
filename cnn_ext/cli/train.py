"""cnn-ext train: train a network, print its test accuracy, save it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnn_ext.checkpoint import save
from cnn_ext.cli._arguments import (
    add_command,
    add_threads,
    integer,
    positive,
    set_threads,
)
from cnn_ext.cli._console import UsageError, say
from cnn_ext.cli._networks import report
from cnn_ext.cli._resume import options_of, take_options
from cnn_ext.cli._sources import (
    DATA_HELP,
    add_source_options,
    check_source,
    load_data,
)
from cnn_ext.losses import SquaredError
from cnn_ext.model import Model
from cnn_ext.training import fit
from cnn_ext.zoo import NETS, build

__all__ = ["add_parser", "run"]


class _InterruptedTraining(KeyboardInterrupt):
    """Ctrl-C during training; the message says what became of the model."""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "train", run, "Train a network, print its test accuracy, save it."
    )
    parser.add_argument("source", metavar="DATA", nargs="?", help=DATA_HELP)
    parser.add_argument(
        "--model",
        choices=NETS,
        help="; ".join(f"{name}: {net.about}" for name, net in NETS.items())
        + ". By default lenet5, or digits for images below 16x16",
    )
    count = integer(1, 1_000_000)
    parser.add_argument("--epochs", type=count, metavar="N")
    parser.add_argument("--batch-size", type=count, metavar="N")
    parser.add_argument("--lr", type=positive, metavar="X", help="learning rate")
    parser.add_argument(
        "--seed",
        type=integer(0, 2**63 - 1),
        metavar="N",
        help="of the first parameters and the order of training (default 0): the "
        "same seed gives the same network",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="default MODEL-DATA.safetensors, here"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the run after each epoch, to go on with it after an interruption",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=count,
        metavar="N",
        help="save the run after every N steps too",
    )
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="go on with the run in this file, to the same bits; data, model and "
        "options are those it was started with",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the curves: .svg, .png or .pdf"
    )
    add_source_options(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    set_threads(arguments)
    if arguments.resume is not None:
        take_options(arguments)
    elif arguments.checkpoint_every is not None and arguments.checkpoint is None:
        raise UsageError("--checkpoint-every needs --checkpoint, the file to write")
    arguments.source = arguments.source or "digits"
    arguments.seed = arguments.seed or 0
    if arguments.plot is not None:
        _check_plot(Path(arguments.plot))
    check_source(arguments)
    if arguments.out is not None:
        _check_out(Path(arguments.out), arguments.source)
    dataset = load_data(arguments)
    height, width = dataset.input_shape[1:]
    name = arguments.model or ("lenet5" if min(height, width) >= 16 else "digits")
    stem = Path(os.path.abspath(arguments.source)).stem
    stem = name if name == stem else f"{name}-{stem}"
    out = Path(arguments.out or f"{stem}.safetensors")
    _check_out(out, arguments.source)
    if arguments.checkpoint is not None:
        _check_out(Path(arguments.checkpoint), arguments.source, "--checkpoint")
        if os.path.realpath(arguments.checkpoint) == os.path.realpath(out):
            raise UsageError(f"--checkpoint is {out}, where the network goes")

    net = dataclasses.replace(
        NETS[name],
        **{
            key: value
            for key in ("epochs", "batch_size", "lr")
            if (value := getattr(arguments, key)) is not None
        },
    )
    classes = len(dataset.class_names)
    model = build(name, dataset.input_shape, classes, seed=arguments.seed)
    loss = net.loss()
    model.metadata["class_names"] = list(dataset.class_names)
    if dataset.name in ("digits", "mnist"):
        model.metadata["data"] = dataset.name
    if isinstance(loss, SquaredError):
        model.metadata["targets"] = [loss.off, loss.on]
    say(
        f"{dataset!r}\n{name}: {net.about}; "
        f"{sum(p.size for p in model.parameters())} parameters"
    )
    running: dict[str, Any] = {}
    if arguments.checkpoint is not None:
        model.metadata["run"] = options_of(arguments)
        running |= {
            "checkpoint": arguments.checkpoint,
            "checkpoint_every": arguments.checkpoint_every,
        }
    if arguments.resume is not None:
        running["resume"] = arguments.resume
    try:
        history = fit(
            model,
            dataset.train,
            loss=loss,
            optimizer=net.optimizer(),
            epochs=net.epochs,
            batch_size=net.batch_size,
            validation=dataset.test,
            seed=arguments.seed,
            **running,
        )
    except KeyboardInterrupt:
        # fit promises whole steps: every parameter is as it should be
        model.metadata.pop("run", None)
        _save(model, out)
        raise _InterruptedTraining(
            f"interrupted; the network as it was is saved as {out}"
        ) from None
    model.metadata.pop("run", None)
    _save(model, out)
    report(model, dataset)
    say(f"saved as {out}")
    if arguments.plot is not None:
        from cnn_ext._curves import draw

        draw(history, arguments.plot, f"{name} on {dataset.name}")
        say(f"curves drawn in {arguments.plot}")


def _check_plot(path: Path) -> None:
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise UsageError(f"--plot is {path}; its name must end in .svg, .png or .pdf")
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise UsageError(f"--plot is {path}, but there is no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'cnn_ext[plot]'")


def _check_out(path: Path, source: str, option: str = "--out") -> None:
    """Find out before the training, not after it, that the file cannot be written."""
    if importlib.util.find_spec("safetensors") is None:
        raise UsageError(
            "saving the network needs safetensors: pip install 'cnn_ext[demo]'"
        )
    if path.is_dir():
        raise UsageError(f"{option} is {path}, a folder; give the name of a file")
    folder = Path(os.path.realpath(path)).parent  # a link is followed, as save does
    if not folder.is_dir():
        raise UsageError(f"{option} is {path}, but there is no folder {folder}")
    if path.exists() and os.path.exists(source) and path.samefile(source):
        raise UsageError(f"{option} is {path}, the data to train on; give another file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{option} is {path}, but {folder} cannot be written to: {error.strerror}"
        ) from error


def _save(model: Model, out: Path) -> None:
    with _uninterrupted():
        save(model, out)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C in the main thread, the only one that it reaches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
