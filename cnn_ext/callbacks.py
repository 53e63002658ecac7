"""Callbacks: what may happen between the steps of a training run.

`fit` calls them after each step and each epoch, in the order given. What one
remembers (`state_dict`) goes into the checkpoints of the run.
"""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_ext._geometry import checked_size
from cnn_ext.checkpoint import save, write_file
from cnn_ext.layers.base import checked_float
from cnn_ext.schedules import checked_monitor, signed

if TYPE_CHECKING:
    from cnn_ext.model import Model
    from cnn_ext.optimizers import Optimizer

__all__ = [
    "BestCheckpoint",
    "CSVLog",
    "Callback",
    "EarlyStopping",
    "History",
    "Run",
    "StopOnNaN",
]

PathLike = str | os.PathLike[str]


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
    learning_rate : list of float
        Of the epoch's last step.
    stopped : str or None
        Why training ended before its last epoch, if it did.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    stopped: str | None = None

    def __len__(self) -> int:
        return len(self.train_loss)

    def columns(self) -> dict[str, list[float]]:
        """Return the lists that are not empty, by name."""
        return {k: v for k, v in vars(self).items() if isinstance(v, list) and v}

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


@dataclass
class Run:
    """A training run as callbacks see it.

    Attributes
    ----------
    model : Model
    optimizer : Optimizer
    history : History
    epoch, step : int
        Number of the epoch, and of steps made since the first epoch.
    loss : float
        Of the last step.
    """

    model: Model
    optimizer: Optimizer
    history: History
    epoch: int = 0
    step: int = 0
    loss: float = math.nan

    def stop(self, reason: str) -> None:
        """End the training after what is under way; `History.stopped` tells why."""
        self.history.stopped = reason


class Callback:
    """Base class of all callbacks, and of yours: override what you need."""

    def after_step(self, run: Run) -> None:
        """Take notice of an update that was made."""

    def after_epoch(self, run: Run) -> None:
        """Take notice of an epoch; its entries are the last of ``run.history``."""

    def not_finite(self, run: Run, value: float) -> bool:
        """Say whether a loss that is not finite has been dealt with.

        Where nobody has, `fit` raises FloatingPointError.
        """
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive in a checkpoint, as JSON takes it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} remembers nothing, got {state}")


def _latest(history: History) -> dict[str, float]:
    return {name: column[-1] for name, column in history.columns().items()}


class _Best(Callback):
    """What watches for the best value."""

    def __init__(self, monitor: str, min_delta: float) -> None:
        self.monitor = checked_monitor(monitor)
        self.min_delta = checked_float(min_delta, "min_delta", 0.0)
        self.best = math.inf  # smaller is better
        self.waited = 0

    def _improved(self, history: History) -> bool:
        value = signed(_latest(history), self.monitor)
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            best, waited = state["best"], int(state["waited"])
            self.best = math.inf if best is None else float(best)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"not the state of {type(self).__name__}: {state}"
            ) from error
        self.waited = waited


class EarlyStopping(_Best):
    """Training ends when nothing has become better for `patience` epochs.

    Parameters
    ----------
    patience : int, default 10
        At least 1.
    monitor : str, default "validation_loss"
        Entry of `History`; "validation_accuracy" is better when larger, others when
        smaller.
    min_delta : float, default 0
        Better means by more than this.
    """

    def __init__(
        self,
        patience: int = 10,
        monitor: str = "validation_loss",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(monitor, min_delta)
        self.patience = checked_size(patience, "patience", 1)

    def after_epoch(self, run: Run) -> None:
        if not self._improved(run.history) and self.waited >= self.patience:
            run.stop(f"no better {self.monitor} in {self.patience} epochs")


class BestCheckpoint(_Best):
    """The model is saved whenever it has become better.

    Parameters
    ----------
    path : path
        File that `cnn_ext.save` writes; the last one written is the best.
    monitor, min_delta
        As in `EarlyStopping`.
    """

    def __init__(
        self,
        path: PathLike,
        monitor: str = "validation_loss",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(monitor, min_delta)
        self.path = path

    def after_epoch(self, run: Run) -> None:
        if self._improved(run.history):
            save(run.model, self.path)


class CSVLog(Callback):
    """The history as a table, a line an epoch, written anew after each.

    Parameters
    ----------
    path : path
        The file appears whole or not at all, so a resumed run has no line twice.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path

    def after_epoch(self, run: Run) -> None:
        columns = run.history.columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *columns])
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([i + 1, *(repr(float(value)) for value in row)])
        write_file(Path(self.path), text.getvalue().encode())


class StopOnNaN(Callback):
    """Training ends, without an exception, where the loss is no longer finite.

    The parameters are those before the step that would have followed.
    """

    def not_finite(self, run: Run, value: float) -> bool:
        run.stop(f"the loss became {value} after {run.step} steps")
        return True
