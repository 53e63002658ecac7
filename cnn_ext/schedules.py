"""Schedules: how the learning rate changes while a model is trained.

A schedule is a function of a count, of steps or of epochs as `per` says: `factor(k)`
is what the optimiser's first learning rate is multiplied with for step or epoch k,
counted from 0. `fit` sets the rate before each step. Only `Plateau` remembers
anything: it looks at what was reached.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from cnn_ext._geometry import checked_size
from cnn_ext.layers.base import checked_float

__all__ = ["Cosine", "OneCycle", "Plateau", "Schedule", "Step", "WarmUp"]


class Schedule(ABC):
    """Base class of all schedules, and of yours.

    Attributes
    ----------
    per : {"step", "epoch"}
        What `factor` counts.
    """

    per: str = "epoch"

    @abstractmethod
    def factor(self, count: int) -> float:
        """Return the factor on the first learning rate."""

    def after_epoch(self, values: dict[str, float]) -> None:  # noqa: B027
        """Take notice of what an epoch reached: the last entries of `History`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule remembers; nothing where it only counts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if state:
            raise ValueError(f"{self!r} remembers nothing, got {sorted(state)}")

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_")
        )
        return f"{type(self).__name__}({arguments})"


def _checked_per(per: str) -> str:
    if per not in ("step", "epoch"):
        raise ValueError(f"per must be 'step' or 'epoch', got {per!r}")
    return per


class Step(Schedule):
    """The rate is multiplied with `gamma` every so many epochs.

    Parameters
    ----------
    every : int or sequence of int
        Every this many; or the counts, rising, at which it happens.
    gamma : float, default 0.1
        Above 0.
    per : {"epoch", "step"}
        What is counted.
    """

    def __init__(self, every: Any, gamma: float = 0.1, *, per: str = "epoch") -> None:
        if isinstance(every, (tuple, list)):
            every = tuple(checked_size(e, f"every[{i}]") for i, e in enumerate(every))
            if list(every) != sorted(set(every)):
                raise ValueError(f"every must rise, got {every}")
        else:
            every = checked_size(every, "every", 1)
        self.every = every
        self.gamma = checked_float(gamma, "gamma", 0.0, above=True)
        self.per = _checked_per(per)

    def factor(self, count: int) -> float:
        if isinstance(self.every, tuple):
            return self.gamma ** sum(count >= place for place in self.every)
        return self.gamma ** (count // self.every)


class Cosine(Schedule):
    """From 1 down to `minimum` along half a cosine, and there it stays.

    ``minimum + (1 - minimum) * (1 + cos(pi * k / length)) / 2``.

    Parameters
    ----------
    length : int
        Steps or epochs until the minimum.
    minimum : float, default 0
        From 0 to 1.
    per : {"step", "epoch"}
        What is counted.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts",
    ICLR 2017.
    """

    def __init__(self, length: int, minimum: float = 0.0, *, per: str = "step") -> None:
        self.length = checked_size(length, "length", 1)
        self.minimum = checked_float(minimum, "minimum", 0.0, 1.0)
        self.per = _checked_per(per)

    def factor(self, count: int) -> float:
        part = min(count / self.length, 1.0)
        return self.minimum + (1 - self.minimum) * (1 + math.cos(math.pi * part)) / 2


class OneCycle(Schedule):
    """Up to the optimiser's rate along half a cosine, then down to almost nothing.

    From ``1 / start`` up to 1 at step ``rise * length - 1``, then down to
    ``1 / (start * end)`` at step ``length - 1``, where it stays.

    Parameters
    ----------
    length : int
        Steps in all: ``epochs * ceil(samples / batch_size)``.
    rise : float, default 0.3
        Share of the steps in which it rises, above 0, at most 1.
    start : float, default 25
        First rate: the optimiser's divided by this.
    end : float, default 1e4
        Last rate: the first divided by this.
    per : {"step", "epoch"}
        What is counted.

    Notes
    -----
    As PyTorch's ``OneCycleLR``, without its change of the momentum.

    References
    ----------
    L. Smith, N. Topin, "Super-convergence: very fast training of neural networks using
    large learning rates", arXiv:1708.07120, 2018.
    """

    def __init__(
        self,
        length: int,
        rise: float = 0.3,
        start: float = 25.0,
        end: float = 1e4,
        *,
        per: str = "step",
    ) -> None:
        self.length = checked_size(length, "length", 2)
        self.rise = checked_float(rise, "rise", 0.0, 1.0, above=True)
        self.start = checked_float(start, "start", 1.0)
        self.end = checked_float(end, "end", 1.0)
        self.per = _checked_per(per)

    def factor(self, count: int) -> float:
        top, last = self.rise * self.length - 1, self.length - 1
        low, lowest = 1 / self.start, 1 / (self.start * self.end)
        if count <= top:
            return _between(low, 1.0, count / top if top > 0 else 1.0)
        if count >= last:
            return lowest
        return _between(1.0, lowest, (count - top) / (last - top))


def _between(first: float, last: float, part: float) -> float:
    """Along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


class WarmUp(Schedule):
    """In a straight line up to 1, then another schedule.

    Parameters
    ----------
    length : int
        Steps of the rise: step k has the factor ``start + (1 - start) * k / length``.
    then : Schedule, optional
        What follows, its count starting where the rise ends if it counts steps;
        epochs are counted from the first. By default the rate stays.
    start : float, default 0.01
        First factor, above 0, at most 1.

    References
    ----------
    P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour",
    arXiv:1706.02677, 2017.
    """

    per = "step"

    def __init__(
        self, length: int, then: Schedule | None = None, start: float = 0.01
    ) -> None:
        self.length = checked_size(length, "length", 1)
        if then is not None and not isinstance(then, Schedule):
            raise TypeError(f"then must be a Schedule, got {type(then).__name__}")
        if isinstance(then, WarmUp):
            raise TypeError("then must be another kind of schedule, got WarmUp")
        self.then = then
        self.start = checked_float(start, "start", 0.0, 1.0, above=True)

    def factor(self, count: int) -> float:
        """Return the factor of the rise alone; 1 behind it."""
        return min(self.start + (1 - self.start) * count / self.length, 1.0)

    def after_epoch(self, values: dict[str, float]) -> None:
        if self.then is not None:
            self.then.after_epoch(values)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.then is None else self.then.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.then is None:
            super().load_state_dict(state)
        else:
            self.then.load_state_dict(state)


class Plateau(Schedule):
    """The rate falls when nothing has become better for a while.

    Parameters
    ----------
    gamma : float, default 0.1
        What it is multiplied with, above 0 and below 1.
    patience : int, default 10
        Epochs without a better value that are borne; at the next it falls.
    monitor : str, default "validation_loss"
        Entry of `History`; "validation_accuracy" is better when larger, others when
        smaller.
    threshold : float, default 1e-4
        Better means by this share of the best value.
    minimum : float, default 0
        The factor falls no further.

    Notes
    -----
    As PyTorch's ``ReduceLROnPlateau``.
    """

    def __init__(
        self,
        gamma: float = 0.1,
        patience: int = 10,
        monitor: str = "validation_loss",
        threshold: float = 1e-4,
        minimum: float = 0.0,
    ) -> None:
        self.gamma = checked_float(gamma, "gamma", 0.0, above=True)
        if self.gamma >= 1:
            raise ValueError(f"gamma must be below 1, got {gamma!r}")
        self.patience = checked_size(patience, "patience")
        self.monitor = checked_monitor(monitor)
        self.threshold = checked_float(threshold, "threshold", 0.0)
        self.minimum = checked_float(minimum, "minimum", 0.0, 1.0)
        self._factor, self._best, self._waited = 1.0, math.inf, 0

    def factor(self, count: int) -> float:
        return self._factor

    def after_epoch(self, values: dict[str, float]) -> None:
        value = signed(values, self.monitor)
        # by a share of the best value, whatever its sign
        if value < self._best - self.threshold * (
            abs(self._best) if math.isfinite(self._best) else 0.0
        ):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self._factor = max(self._factor * self.gamma, self.minimum)
            self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        best = None if math.isinf(self._best) else self._best
        return {"factor": self._factor, "best": best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            factor, best = float(state["factor"]), state["best"]
            best, waited = math.inf if best is None else float(best), state["waited"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of {self!r}: {state}") from error
        self._factor, self._best, self._waited = factor, best, int(waited)


MONITORS = ("train_loss", "validation_loss", "validation_accuracy")


def checked_monitor(monitor: str) -> str:
    """Return the name of an entry of `History` that can become better."""
    if monitor not in MONITORS:
        raise ValueError(
            f"monitor must be one of {', '.join(MONITORS)}, got {monitor!r}"
        )
    return monitor


def signed(values: dict[str, float], monitor: str) -> float:
    """Return a monitored value such that smaller is better; inf where it is NaN."""
    if monitor not in values:
        raise ValueError(f"there is no {monitor} to monitor: give validation data")
    value = values[monitor]
    if math.isnan(value):
        return math.inf
    return -value if monitor == "validation_accuracy" else value


def rate_factor(schedule: Schedule | None, step: int, epoch: int) -> float:
    """Return the factor for a step of an epoch, both counted from 0 over the run."""
    if schedule is None:
        return 1.0
    if isinstance(schedule, WarmUp):
        if schedule.then is None or step < schedule.length:
            return schedule.factor(step)
        return rate_factor(schedule.then, step - schedule.length, epoch)
    return schedule.factor(step if schedule.per == "step" else epoch)
