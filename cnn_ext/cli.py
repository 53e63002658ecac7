"""The command `cnn-ext`: train, evaluate, predict, bench, info.

Exit status: 0, or 2 with one line on standard error that says what is wrong and what
to do, or 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cnn_ext._machine import set_num_threads, show_config
from cnn_ext._version import __version__
from cnn_ext.checkpoint import load, save
from cnn_ext.data import MNIST_FILES, DataError, Dataset
from cnn_ext.layers import Softmax
from cnn_ext.losses import SquaredError
from cnn_ext.model import Model
from cnn_ext.training import evaluate, fit
from cnn_ext.zoo import NETS, build

__all__ = ["main"]

_DATA_HELP = (
    "digits (scikit-learn's real 8x8 digits, the default), mnist, a file FILE.npz with "
    "the keys x and y, or a folder with one sub-folder of images for each class"
)
# What a user's input can cause; anything else is a bug and shows its traceback.
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, RuntimeError)


class _UsageError(ValueError):
    """The command line itself is wrong."""


class _InterruptedTraining(KeyboardInterrupt):
    """Ctrl-C during training; the message says what became of the model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, 2 (one line on standard error says why), 130 (Ctrl-C).
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.command(arguments)
        sys.stdout.flush()  # here a closed pipe or a full disk still gives one line
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        _complain(str(interrupt) or "interrupted; nothing was written")
        return 130
    except BrokenPipeError:
        _complain("standard output was closed before the end")
        return _without_stdout(2)
    except MemoryError:
        _complain("not enough memory; give fewer or smaller images, or --batch-size")
        return 2
    except _EXPECTED as error:
        _complain(_text(error))
        return _without_stdout(2)
    return 0


def _complain(text: str) -> None:
    """One line on standard error, whatever the message holds."""
    line = _printable(f"cnn-ext: {' '.join(text.split())}", sys.stderr)
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _printable(text: str, stream: Any, keep: str = "") -> str:
    """`text` without control characters, and in letters that the stream can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def _say(text: str) -> None:
    print(_printable(text, sys.stdout, keep="\n"), flush=True)


def _text(error: Exception) -> str:
    """An exception as a sentence; OSError's own form has its number in front."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return place + error.strerror
    return str(error) or type(error).__name__


def _without_stdout(status: int) -> int:
    """Keep the interpreter from flushing, at exit, what cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


# --- the command line ------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print its usage, several lines, in front
        raise _UsageError(f"{message}; see {self.prog} --help")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if text.strip().isdecimal() and len(text) <= 20 and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"must be an integer from {low} to {high}, got {text!r}"
        )

    return convert


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _parser() -> _Parser:
    parser = _Parser(
        prog="cnn-ext",
        description="Train and use convolutional networks on CPUs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cnn-ext {__version__}")
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=_Parser
    )

    def add(name: str, command: Callable[[Any], None], about: str) -> _Parser:
        sub = commands.add_parser(
            name, help=about, description=about, allow_abbrev=False
        )
        sub.set_defaults(command=command)
        return sub

    train = add("train", _train, "Train a network, print its test accuracy, save it.")
    train.add_argument("source", metavar="DATA", nargs="?")
    train.add_argument(
        "--model",
        choices=NETS,
        help="; ".join(f"{name}: {net.about}" for name, net in NETS.items())
        + ". By default lenet5, or digits for images below 16x16",
    )
    positive = _integer(1, 1_000_000)
    train.add_argument("--epochs", type=positive, metavar="N")
    train.add_argument("--batch-size", type=positive, metavar="N")
    train.add_argument("--lr", type=_positive, metavar="X", help="learning rate")
    train.add_argument(
        "--seed",
        type=_integer(0, 2**63 - 1),
        metavar="N",
        help="of the first parameters and the order of training (default 0): the "
        "same seed gives the same network",
    )
    train.add_argument(
        "--out", metavar="FILE", help="default MODEL-DATA.safetensors, here"
    )
    train.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the run after each epoch, to go on with it after an interruption",
    )
    train.add_argument(
        "--checkpoint-every",
        type=positive,
        metavar="N",
        help="save the run after every N steps too",
    )
    train.add_argument(
        "--resume",
        metavar="FILE",
        help="go on with the run in this file, to the same bits; data, model and "
        "options are those it was started with",
    )
    train.add_argument(
        "--plot", metavar="FILE", help="draw the curves: .svg, .png or .pdf"
    )

    evaluate = add("evaluate", _evaluate, "Print a network's accuracy on test images.")
    evaluate.add_argument("model", metavar="MODEL", help="file that train wrote")
    evaluate.add_argument(
        "source",
        metavar="DATA",
        nargs="?",
        help="as for train; by default what the network was trained on",
    )

    predict = add(
        "predict", _predict, "Print class and probability of images, one line each."
    )
    predict.add_argument("model", metavar="MODEL", help="file that train wrote")
    predict.add_argument("images", metavar="IMAGE", nargs="+")
    predict.add_argument(
        "--invert",
        action="store_true",
        help="dark on light, where the network learned light on dark, as MNIST is",
    )

    bench = add("bench", _bench, "Check the operators, then time them on this machine.")
    bench.add_argument(
        "--seconds", type=_positive, default=0.2, metavar="X", help="for each operator"
    )
    add("info", _info, "Print version, kernel set, CPU features, threads.")

    for sub in (train, evaluate):
        source = next(a for a in sub._actions if a.dest == "source")
        source.help = source.help or _DATA_HELP
        sub.add_argument(
            "--data",
            metavar="DIR",
            help=f"for mnist: folder with {', '.join(MNIST_FILES)}, plain or .gz",
        )
        sub.add_argument(
            "--size",
            nargs=2,
            type=_integer(1, 8192),
            metavar=("H", "W"),
            help="for a folder: resize the images",
        )
        sub.add_argument(
            "--channels-last",
            action="store_true",
            help="for an .npz file: x is (N, H, W, C)",
        )
    for sub in (train, evaluate, predict, bench):
        sub.add_argument("--threads", type=_integer(1, 1024), metavar="N")
    return parser


# --- commands --------------------------------------------------------------------


def _train(arguments: argparse.Namespace) -> None:
    _set_threads(arguments)
    if arguments.resume is not None:
        _take_options(arguments)
    elif arguments.checkpoint_every is not None and arguments.checkpoint is None:
        raise _UsageError("--checkpoint-every needs --checkpoint, the file to write")
    arguments.source = arguments.source or "digits"
    arguments.seed = arguments.seed or 0
    if arguments.plot is not None:
        _check_plot(Path(arguments.plot))
    _check_source(arguments)
    if arguments.out is not None:
        _check_out(Path(arguments.out), arguments.source)
    dataset = _load_data(arguments)
    height, width = dataset.input_shape[1:]
    name = arguments.model or ("lenet5" if min(height, width) >= 16 else "digits")
    stem = Path(os.path.abspath(arguments.source)).stem
    stem = name if name == stem else f"{name}-{stem}"
    out = Path(arguments.out or f"{stem}.safetensors")
    _check_out(out, arguments.source)
    if arguments.checkpoint is not None:
        _check_out(Path(arguments.checkpoint), arguments.source, "--checkpoint")
        if os.path.realpath(arguments.checkpoint) == os.path.realpath(out):
            raise _UsageError(f"--checkpoint is {out}, where the network goes")

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
    _say(
        f"{dataset!r}\n{name}: {net.about}; "
        f"{sum(p.size for p in model.parameters())} parameters"
    )
    running: dict[str, Any] = {}
    if arguments.checkpoint is not None:
        model.metadata["run"] = _options(arguments)
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
    _report(model, dataset)
    _say(f"saved as {out}")
    if arguments.plot is not None:
        from cnn_ext._curves import draw

        draw(history, arguments.plot, f"{name} on {dataset.name}")
        _say(f"curves drawn in {arguments.plot}")


def _evaluate(arguments: argparse.Namespace) -> None:
    _set_threads(arguments)
    if arguments.source is not None:
        _check_source(arguments)
    model = load(arguments.model)
    if arguments.source is None:
        arguments.source = model.metadata.get("data")
        if arguments.source not in ("digits", "mnist"):
            raise _UsageError(
                f"{arguments.model} does not say what it was trained on; "
                "give DATA: digits, mnist, FILE.npz or a folder"
            )
        _check_source(arguments)
    dataset = _load_data(arguments)
    if model.input_shape is not None and model.input_shape != dataset.input_shape:
        raise DataError(
            f"{arguments.model} takes images of {model.input_shape}, "
            f"{dataset.name} has {dataset.input_shape} (C, H, W)"
        )
    names = _class_names(model, arguments.model)
    if names is not None and dataset.class_names != names[: len(dataset.class_names)]:
        raise DataError(
            f"{arguments.model} knows the classes {_some(names)}, {dataset.name} has "
            f"{_some(dataset.class_names)}; they must be the same"
        )
    _report(model, dataset)


def _predict(arguments: argparse.Namespace) -> None:
    from cnn_ext.data import read_image

    _set_threads(arguments)
    model = load(arguments.model)
    shape = model.input_shape
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"{arguments.model} takes inputs of {shape}; predict needs a network for "
            "images of (1, H, W) or (3, H, W), built with input_shape="
        )
    names = _class_names(model, arguments.model)
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
        print("\t".join(_printable(part, sys.stdout) for part in row), flush=True)


def _bench(arguments: argparse.Namespace) -> None:
    from cnn_ext._bench import timings

    _set_threads(arguments)
    _say(show_config() + "\n")
    _say(f"{'layer, float32':24} {'operator':24} {'ms':>9} {'rate':>8}")
    for row in timings(seconds=arguments.seconds):
        _say(
            f"{row.layer:24} {row.operator:24} {row.milliseconds:9.3f} "
            f"{row.rate:8.1f} {row.unit}"
        )


def _info(arguments: argparse.Namespace) -> None:
    _say(show_config())


# --- what they share -------------------------------------------------------------


def _set_threads(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:
        set_num_threads(arguments.threads)


def _check_source(arguments: argparse.Namespace) -> None:
    """DATA and the options that go with its kinds, before anything is read."""
    source = arguments.source
    kind = "npz" if source.lower().endswith(".npz") else source
    if kind not in ("digits", "mnist", "npz"):
        kind = "folder"
        path = Path(source)
        forms = [f"{name}{suffix}" for name in MNIST_FILES for suffix in ("", ".gz")]
        if any((path / form).exists() for form in forms):
            raise _UsageError(
                f"DATA is {source!r}, a folder with MNIST's files; "
                f"give mnist --data {source}"
            )
        if not path.exists():
            raise _UsageError(
                f"DATA is {source!r}, which is not there; give digits, mnist, FILE.npz "
                "or a folder with one sub-folder for each class"
            )
        if not path.is_dir():
            raise _UsageError(f"DATA is {source!r}, a file that does not end in .npz")
    for option, value, goes_with in (
        ("--data", arguments.data, "mnist"),
        ("--size", arguments.size, "folder"),
        ("--channels-last", arguments.channels_last or None, "npz"),
    ):
        if value is not None and kind != goes_with:
            named = {"npz": "an .npz file", "folder": "a folder"}
            raise _UsageError(
                f"{option} goes with {named.get(goes_with, goes_with)}, not with "
                f"{named.get(kind, kind)}"
            )
    arguments.kind = kind


def _load_data(arguments: argparse.Namespace) -> Dataset:
    from cnn_ext import data

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


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, as its checkpoints keep them."""
    return {name: getattr(arguments, name) for name in _RUN}


def _take_options(arguments: argparse.Namespace) -> None:
    """Set the options to those that a run was started with."""
    path = arguments.resume
    kept = load(path).metadata.get("run")
    if not isinstance(kept, dict) or kept.keys() != _RUN.keys():
        raise _UsageError(
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
            raise _UsageError(
                f"{option} is {given}, but the run in {path} was started with {value}"
            )
        setattr(arguments, name, value)
    if arguments.model is not None and arguments.model not in NETS:
        raise DataError(f"{path}: its model {arguments.model!r:.80} is unknown")
    arguments.checkpoint = arguments.checkpoint or path


def _check_plot(path: Path) -> None:
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise _UsageError(f"--plot is {path}; its name must end in .svg, .png or .pdf")
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise _UsageError(f"--plot is {path}, but there is no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise _UsageError("--plot needs matplotlib: pip install 'cnn_ext[plot]'")


def _check_out(path: Path, source: str, option: str = "--out") -> None:
    """Find out before the training, not after it, that the file cannot be written."""
    if importlib.util.find_spec("safetensors") is None:
        raise _UsageError(
            "saving the network needs safetensors: pip install 'cnn_ext[demo]'"
        )
    if path.is_dir():
        raise _UsageError(f"{option} is {path}, a folder; give the name of a file")
    folder = Path(os.path.realpath(path)).parent  # a link is followed, as save does
    if not folder.is_dir():
        raise _UsageError(f"{option} is {path}, but there is no folder {folder}")
    if path.exists() and os.path.exists(source) and path.samefile(source):
        raise _UsageError(
            f"{option} is {path}, the data to train on; give another file"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _UsageError(
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


def _report(model: Model, dataset: Dataset) -> None:
    _, accuracy = evaluate(model, dataset.test)
    total = len(dataset.x_test)
    _say(
        f"test accuracy {100 * accuracy:.2f} % "
        f"({round(accuracy * total)} of {total} held-out images)"
    )


def _class_names(model: Model, path: str) -> tuple[str, ...] | None:
    """Names that train stored; the file need not be ours, so they are checked."""
    names = model.metadata.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: its class_names are not a list of names")
    return tuple(names)


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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


if __name__ == "__main__":
    sys.exit(main())
