"""Training and evaluation: the loop around forward, loss, backward and step."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cnn_ext._geometry import checked_size
from cnn_ext.initializers import Seed, generator
from cnn_ext.losses import CrossEntropy, Loss
from cnn_ext.model import Model
from cnn_ext.optimizers import SGD

__all__ = ["History", "evaluate", "fit"]

Data = tuple[np.ndarray, np.ndarray]


@dataclass
class History:
    """What happened in each epoch; each list has one entry an epoch.

    Attributes
    ----------
    train_loss : list of float
        Mean loss over the epoch, of the model as it changed.
    validation_loss, validation_accuracy : list of float
        After the epoch; empty without validation data.
    seconds : list of float
        Time of the epoch's training, validation left out.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.train_loss)

    def line(self, epoch: int) -> str:
        """Return an epoch, counted from 0, as text."""
        text = f"loss {self.train_loss[epoch]:.4f}"
        if self.validation_loss:
            text += f"  validation loss {self.validation_loss[epoch]:.4f}"
            if not math.isnan(self.validation_accuracy[epoch]):
                text += f"  accuracy {100 * self.validation_accuracy[epoch]:.2f} %"
        return f"{text}  {self.seconds[epoch]:.1f} s"

    def __str__(self) -> str:
        return "\n".join(f"epoch {i + 1}  {self.line(i)}" for i in range(len(self)))


def fit(
    model: Model,
    data: Data,
    *,
    loss: Loss | None = None,
    optimizer: SGD,
    epochs: int = 10,
    batch_size: int = 64,
    validation: Data | None = None,
    seed: Seed = None,
    verbose: int = 1,
) -> History:
    """Train a model.

    Parameters
    ----------
    model : Model
        Its parameters are changed in place.
    data : (numpy.ndarray, numpy.ndarray)
        Inputs, (N, C, H, W) for images, of the model's dtype; and targets that the
        loss takes, integer labels (N,) for `CrossEntropy`.
    loss : Loss, optional
        Default `CrossEntropy`.
    optimizer : SGD
        Keeps its velocities: a second `fit` of the model goes on with them.
    epochs : int, default 10
        How often all data are seen, in an order drawn anew each time.
    batch_size : int, default 64
        Samples a step; the last batch of an epoch may be smaller.
    validation : (numpy.ndarray, numpy.ndarray), optional
        Evaluated after each epoch.
    seed : int, numpy.random.Generator or None
        Source of the orders. The same seed, model and data give the same bits.
    verbose : {0, 1, 2}
        0 prints nothing; 1 shows a progress bar where standard error is a terminal and
        tqdm is installed; 1 and 2 print a line an epoch.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        If data do not fit the model or the loss, before anything is changed.
    FloatingPointError
        If the loss is no longer finite; the step that would follow is not made.
    KeyboardInterrupt
        On Ctrl-C, never within an update: every parameter has made the same number
        of steps.
    """
    loss = CrossEntropy() if loss is None else loss
    x, target = _checked_data(model, data, loss, "data")
    if validation is not None:
        validation = _checked_data(model, validation, loss, "validation")
    epochs = checked_size(epochs, "epochs", 1)
    batch_size = checked_size(batch_size, "batch_size", 1)
    if not model.parameters():
        raise ValueError("the model has no parameters to train")
    rng = generator(seed)
    history = History()
    for epoch in range(epochs):
        title = f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"
        started = time.perf_counter()
        order = rng.permutation(len(x))
        batches = [order[i : i + batch_size] for i in range(0, len(x), batch_size)]
        values, weights = [], []
        with _progress(title, len(batches), verbose) as advance:
            for i, rows in enumerate(batches):
                value, weight = _train_step(
                    model, loss, optimizer, x[rows], target[rows], f"{title}, batch {i}"
                )
                values.append(value)
                weights.append(weight)
                advance(value)
        history.train_loss.append(_combined(loss, values, weights))
        history.seconds.append(time.perf_counter() - started)
        if validation is not None:
            value, accuracy = _evaluate(model, validation, loss, max(batch_size, 256))
            history.validation_loss.append(value)
            history.validation_accuracy.append(accuracy)
        if verbose:
            print(f"{title}  {history.line(epoch)}", flush=True)
    return history


def _train_step(
    model: Model,
    loss: Loss,
    optimizer: SGD,
    x: np.ndarray,
    target: np.ndarray,
    place: str,
) -> tuple[float, float]:
    """Forward, loss, backward, update; return the loss and its weight in a mean."""
    # Overflow shows in the loss, and is reported there.
    with np.errstate(over="ignore", invalid="ignore"):
        y, pullback = model.vjp(x)
        weight = loss.divisor(y.shape, target)
        if not weight:  # all labels ignored: nothing to learn from
            return 0.0, 0.0
        value, grad_y = loss(y, target)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} in {place}: a smaller learning rate than "
                f"{optimizer.lr} may help"
            )
        _, grads = pullback(grad_y, input_gradient=False)
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name]
        with _uninterrupted():
            optimizer.step(model.parameters())
    return value, weight


def evaluate(
    model: Model, data: Data, *, loss: Loss | None = None, batch_size: int = 256
) -> tuple[float, float]:
    """Return the loss and the accuracy of a model on data.

    Parameters
    ----------
    model : Model
        Not changed.
    data : (numpy.ndarray, numpy.ndarray)
        Inputs and targets, as for `fit`.
    loss : Loss, optional
        Default `CrossEntropy`.
    batch_size : int, default 256
        Samples computed at once; changes the memory needed, and no more of the result
        than rounding.

    Returns
    -------
    loss : float
    accuracy : float
        Share of the samples whose largest output is that of their class: of the label,
        or of the largest target where targets are (N, K). Ignored labels do not count.
        NaN where there are no classes.

    Raises
    ------
    TypeError, ValueError
        If data do not fit the model or the loss.
    """
    loss = CrossEntropy() if loss is None else loss
    batch_size = checked_size(batch_size, "batch_size", 1)
    return _evaluate(model, _checked_data(model, data, loss, "data"), loss, batch_size)


def _evaluate(
    model: Model, data: Data, loss: Loss, batch_size: int
) -> tuple[float, float]:
    x, target = data
    values, weights, right, counted = [], [], 0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(0, len(x), batch_size):
            y, t = model(x[i : i + batch_size]), target[i : i + batch_size]
            weight = loss.divisor(y.shape, t)
            if weight:
                values.append(loss(y, t)[0])
                weights.append(weight)
            hits = _hits(y, t, getattr(loss, "ignore_index", None))
            right += int(np.count_nonzero(hits))
            counted += hits.size
    accuracy = right / counted if counted else math.nan
    return _combined(loss, values, weights), accuracy


def _hits(y: np.ndarray, target: np.ndarray, ignore_index: int | None) -> np.ndarray:
    """Return for each sample that counts whether its class was found."""
    if y.ndim < 2 or y.shape[1] < 2:
        return np.empty(0, dtype=bool)
    if target.dtype.kind == "f":  # one target an output: the largest marks the class
        target = target.argmax(axis=1)
    hits = y.argmax(axis=1) == target
    return hits if ignore_index is None else hits[target != ignore_index]


def _combined(loss: Loss, values: list[float], weights: list[float]) -> float:
    """Return the loss of all batches from the losses of each."""
    if loss.reduction == "sum":
        return math.fsum(values)
    total = math.fsum(weights)
    products = (v * w for v, w in zip(values, weights, strict=True))
    return math.fsum(products) / total if total else math.nan


def _checked_data(model: Model, data: Any, loss: Loss, name: str) -> Data:
    """Return (x, target) if the model and the loss can take them."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {type(model).__name__}")
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a Loss, got {type(loss).__name__}")
    if loss.reduction == "none":
        raise ValueError("the loss must be one number: its reduction is 'none'")
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            f"{name} must be a pair (x, targets), got {type(data).__name__}"
        )
    x, target = data
    for part, what in ((x, "x"), (target, "targets")):
        if not isinstance(part, np.ndarray):
            raise TypeError(
                f"{name}: {what} must be a numpy array, got {type(part).__name__}"
            )
    dtype = model.dtype
    if x.dtype != (dtype or x.dtype) or x.dtype.kind != "f":
        dtype = dtype or np.dtype(np.float32)
        raise TypeError(
            f"{name}: x is {x.dtype}, the model works in {dtype}; "
            f"convert with x.astype(numpy.{dtype})"
        )
    if model.input_ndim is not None and x.ndim != model.input_ndim:
        axes = {2: "(N, C)", 4: "(N, C, H, W)"}.get(
            model.input_ndim, f"{model.input_ndim} axes"
        )
        hint = ""
        if (x.ndim, model.input_ndim) == (3, 4):
            hint = "; grey images get their channel axis with x[:, numpy.newaxis]"
        raise ValueError(f"{name}: x has shape {x.shape}, the model takes {axes}{hint}")
    if x.ndim == 0 or target.ndim == 0 or len(x) != len(target):
        raise ValueError(
            f"{name}: x has shape {x.shape}, targets {target.shape}; there must be one "
            "target for each sample"
        )
    if len(x) == 0:
        raise ValueError(f"{name}: there are no samples")
    _check_finite(x, name)
    with np.errstate(over="ignore", invalid="ignore"):
        y_shape = model(x[:1]).shape[1:]
    try:
        loss.check((len(x), *y_shape), target)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error
    return x, target


def _check_finite(x: np.ndarray, name: str) -> None:
    with np.errstate(invalid="ignore"):
        # two reductions, no temporary of the size of the data
        if x.size == 0 or (np.isfinite(x.min()) and np.isfinite(x.max())):
            return
    for i, sample in enumerate(x):
        if not np.isfinite(sample).all():
            value = sample[~np.isfinite(sample)].flat[0]
            raise ValueError(f"{name}: x contains {value}, first in sample {i}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done."""
    previous = signal.getsignal(signal.SIGINT)
    # Signals only interrupt the main thread; a handler that is None was not installed
    # by Python, and could not be put back.
    if threading.current_thread() is not threading.main_thread() or previous is None:
        yield
        return
    pending: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _progress(title: str, steps: int, verbose: int) -> Iterator[Any]:
    """Yield a function to call after each step with its loss."""
    tqdm = _tqdm() if verbose == 1 else None
    if tqdm is None:  # the line after the epoch says enough
        yield lambda value: None
        return
    with tqdm(total=steps, desc=title, unit="batch", leave=False) as bar:

        def advance(value: float) -> None:
            bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
            bar.update()

        yield advance


def _tqdm() -> Any:
    """Return tqdm where it is installed and somebody watches, else None."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
