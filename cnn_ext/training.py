"""Training and evaluation: the loop around forward, loss, backward and step."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cnn_ext._geometry import checked_size
from cnn_ext._interrupts import Interrupts
from cnn_ext._progress import Progress, fingerprint
from cnn_ext.callbacks import Callback, History, Run
from cnn_ext.checkpoint import PathLike
from cnn_ext.clipping import clip_grad_norm, clip_grad_value
from cnn_ext.initializers import Seed, generator
from cnn_ext.losses import CrossEntropy, Loss
from cnn_ext.model import Model
from cnn_ext.optimizers import Optimizer
from cnn_ext.schedules import Schedule, rate_factor

__all__ = ["History", "evaluate", "fit"]

Data = tuple[np.ndarray, np.ndarray]
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def fit(
    model: Model,
    data: Data,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer,
    epochs: int = 10,
    batch_size: int = 64,
    validation: Data | None = None,
    seed: Seed = None,
    verbose: int = 1,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    augment: Augment | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: PathLike | None = None,
    checkpoint_every: int | None = None,
    resume: PathLike | None = None,
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
    optimizer : Optimizer
        Keeps its state: a second `fit` of the model goes on with it.
    epochs : int, default 10
        How often all data are seen, in an order drawn anew each time.
    batch_size : int, default 64
        Samples a step; the last batch of an epoch may be smaller.
    validation : (numpy.ndarray, numpy.ndarray), optional
        Evaluated after each epoch.
    seed : int, numpy.random.Generator or None
        Source of the orders, of augmentation, and of the draws of layers that have no
        Generator of their own (dropout). The same seed, model and data give the same
        bits.
    verbose : {0, 1, 2}
        0 prints nothing; 1 shows a progress bar where standard error is a terminal and
        tqdm is installed; 1 and 2 print a line an epoch.
    schedule : Schedule, optional
        Changes the optimiser's rate; when training ends the first rate is back.
    clip_norm, clip_value : float, optional
        Bounds of the gradients' common norm, and of each element (this one first);
        see `clip_grad_norm` and `clip_grad_value`.
    augment : callable, optional
        ``augment(x, rng) -> x`` changes each batch; see `cnn_ext.data.augment`.
    callbacks : sequence of Callback, optional
        See `cnn_ext.callbacks`.
    checkpoint : path, optional
        The run is saved in this file after each epoch: model, optimiser, schedule,
        callbacks, random state, place. The file is always whole; `cnn_ext.load` reads
        the model from it too.
    checkpoint_every : int, optional
        Steps after which the run is saved within an epoch too.
    resume : path, optional
        Go on with the run in this file, to the same bits as if it had not been
        interrupted. Everything else must be given as before; `epochs` may be larger.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        If data do not fit the model or the loss, before anything is changed.
    CheckpointError
        If the file to resume is damaged, or of another run. A ValueError.
    OSError
        If a checkpoint cannot be read or written.
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
    _check_helpers(optimizer, schedule, callbacks)
    if checkpoint_every is not None:
        checkpoint_every = checked_size(checkpoint_every, "checkpoint_every", 1)
        if checkpoint is None:
            raise ValueError("checkpoint_every needs a checkpoint, the file to write")
    for clip, bound in ((clip_grad_norm, clip_norm), (clip_grad_value, clip_value)):
        if bound is not None:
            clip([], bound)  # says what is wrong with the bound
    setting = {
        "optimizer": repr(optimizer),
        "schedule": repr(schedule),
        "loss": repr(loss),
        "batch_size": batch_size,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
        "data": fingerprint(x, target),
    }
    progress = Progress(
        Run(model, optimizer, History()), generator(seed), schedule, callbacks, setting
    )
    trainer = _Trainer(
        progress, loss, epochs, batch_size, validation, verbose, clip_norm, clip_value,
        augment, None if checkpoint is None else Path(checkpoint), checkpoint_every,
    )  # fmt: skip
    borrowers = [
        layer
        for layer in model.layers.values()
        if getattr(layer, "rng", generator) is None
    ]
    try:
        for layer in borrowers:
            layer.rng = progress.rng  # type: ignore[attr-defined]
        if resume is not None:
            progress.resume(resume)
        with trainer.interrupts:
            while progress.run.epoch < epochs and progress.run.history.stopped is None:
                trainer.epoch(x, target)
    finally:
        trainer.keep_gradients()
        for layer in borrowers:
            layer.rng = None  # type: ignore[attr-defined]
        if schedule is not None:
            optimizer.lr = progress.base_lr
    return progress.run.history


def _check_helpers(optimizer: Any, schedule: Any, callbacks: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be an Optimizer, got {type(optimizer).__name__}"
        )
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule, got {type(schedule).__name__}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks must be Callback objects, got {type(callback).__name__}"
            )


class _Trainer:
    """The loop over batches, and what happens around it."""

    def __init__(
        self,
        progress: Progress,
        loss: Loss,
        epochs: int,
        batch_size: int,
        validation: Data | None,
        verbose: int,
        clip_norm: float | None,
        clip_value: float | None,
        augment: Augment | None,
        checkpoint: Path | None,
        checkpoint_every: int | None,
    ) -> None:
        self.progress, self.run = progress, progress.run
        self.loss = loss
        self.epochs, self.batch_size = epochs, batch_size
        self.validation, self.verbose = validation, verbose
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.augment = augment
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.named = list(self.run.model.named_parameters())
        self.parameters = [parameter for _, parameter in self.named]
        self.room: np.ndarray | None = None
        self.interrupts = Interrupts()

    def batch(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return these samples, in memory that the next batch takes over."""
        if self.room is None:
            self.room = np.empty((self.batch_size, *x.shape[1:]), x.dtype)
        # rows are a part of a permutation: none is out of range. Without a mode numpy
        # takes another copy
        return np.take(x, rows, axis=0, out=self.room[: len(rows)], mode="clip")

    def keep_gradients(self) -> None:
        """Leave the parameters gradients of their own: these lie in a plan's memory."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.copy()

    def epoch(self, x: np.ndarray, target: np.ndarray) -> None:
        """Take the rest of an epoch's batches, and what follows them."""
        place, run = self.progress, self.run
        history, epoch = run.history, run.epoch
        title = f"epoch {epoch + 1:{len(str(self.epochs))}}/{self.epochs}"
        started = time.perf_counter() - place.seconds
        order = place.order(len(x))
        size = self.batch_size
        batches = [order[i : i + size] for i in range(0, len(x), size)]
        left = range(place.batch, len(batches))
        with _progress(title, len(left), self.verbose) as advance:
            for i in left:
                rows = batches[i]
                value = self.step(
                    self.batch(x, rows), target[rows], f"{title}, batch {i}"
                )
                if history.stopped is not None:
                    break
                advance(value)
                if i + 1 < len(batches) and self._is_due():
                    place.seconds = time.perf_counter() - started
                    self._save()
        if place.batch < len(batches):  # stopped within
            return
        history.train_loss.append(_combined(self.loss, place.values, place.weights))
        history.seconds.append(time.perf_counter() - started)
        history.learning_rate.append(run.optimizer.lr)
        if self.validation is not None:
            value, accuracy = _evaluate(
                run.model, self.validation, self.loss, max(size, 256)
            )
            history.validation_loss.append(value)
            history.validation_accuracy.append(accuracy)
        if self.verbose:
            print(f"{title}  {history.line(epoch)}", flush=True)
        if place.schedule is not None:
            latest = {name: column[-1] for name, column in history.columns().items()}
            place.schedule.after_epoch(latest)
        for callback in place.callbacks:
            callback.after_epoch(run)
        place.next_epoch()
        self._save()

    def _is_due(self) -> bool:
        every = self.checkpoint_every
        return every is not None and self.run.step % every == 0

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.progress.save(self.checkpoint)

    def step(self, x: np.ndarray, target: np.ndarray, where: str) -> float:
        """Forward, loss, backward, update; return the loss."""
        place, run = self.progress, self.run
        model, optimizer = run.model, run.optimizer
        if place.schedule is not None:
            factor = rate_factor(place.schedule, run.step, run.epoch)
            optimizer.lr = place.base_lr * factor
        if self.augment is not None:
            x = _augmented(self.augment, x, place.rng)
        value = weight = 0.0
        # Overflow shows in the loss, and is reported there.
        with np.errstate(over="ignore", invalid="ignore"):
            there = model._run(x, True)
            y = there.y
            weight = self.loss.divisor(y.shape, target)
            if weight:  # else all labels are ignored: nothing to learn from
                value, grad_y = self.loss(y, target)
                if not math.isfinite(value):
                    if any(c.not_finite(run, value) for c in place.callbacks):
                        return value
                    raise FloatingPointError(
                        f"the loss became {value} in {where}: a smaller learning rate "
                        f"than {optimizer.lr} may help"
                    )
                _, grads = there.backward(grad_y, False)
                for name, parameter in self.named:
                    parameter.grad = grads[name]
                if self.clip_value is not None:
                    clip_grad_value(self.parameters, self.clip_value)
                if self.clip_norm is not None:
                    clip_grad_norm(self.parameters, self.clip_norm)
                self.interrupts.hold(optimizer.step, self.parameters)
            there.close()
        run.step += 1
        run.loss = value
        place.batch += 1
        place.values.append(value)
        place.weights.append(weight)
        for callback in place.callbacks:
            callback.after_step(run)
        return value


def _augmented(augment: Augment, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = augment(x, rng)
    if not isinstance(changed, np.ndarray) or (changed.dtype, len(changed)) != (
        x.dtype,
        len(x),
    ):
        raise TypeError(
            f"augment must return {len(x)} samples of {x.dtype}, got "
            f"{getattr(changed, 'dtype', type(changed).__name__)} of shape "
            f"{getattr(changed, 'shape', ())}"
        )
    return changed


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
