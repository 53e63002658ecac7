"""Where a training run stands, and how it gets into a checkpoint and back.

Bit-identical continuation needs all that the next step depends on: parameters and
buffers, the optimiser's arrays, the rate, the schedule, every random generator, and
the place in the epoch's order. The order itself is not kept: it is drawn again from
the state that the generator had at the epoch's start.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_ext.callbacks import Callback, History, Run
from cnn_ext.checkpoint import CheckpointError, PathLike, load_run, save_run
from cnn_ext.schedules import Schedule

__all__ = ["Progress"]

_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_NONSENSE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)


class Progress:
    """A run and its place: epoch, batch, losses so far, generators.

    Parameters
    ----------
    run : Run
    rng : numpy.random.Generator
        `fit`'s own.
    schedule : Schedule or None
    callbacks : sequence of Callback
    setting : dict
        What must not change when the run is resumed, as JSON takes it.
    """

    def __init__(
        self,
        run: Run,
        rng: np.random.Generator,
        schedule: Schedule | None,
        callbacks: Sequence[Callback],
        setting: dict[str, Any],
    ) -> None:
        self.run, self.rng = run, rng
        self.schedule, self.callbacks = schedule, callbacks
        self.base_lr = run.optimizer.lr
        self.setting = setting
        self.batch = 0
        self.seconds = 0.0
        self.values: list[float] = []
        self.weights: list[float] = []
        self.order_state = rng.bit_generator.state

    def order(self, samples: int) -> np.ndarray:
        """Return the order of the epoch, drawn anew or again."""
        if not self.batch:
            self.order_state = self.rng.bit_generator.state
            return self.rng.permutation(samples)
        now = self.rng.bit_generator.state
        self.rng.bit_generator.state = self.order_state
        order = self.rng.permutation(samples)
        self.rng.bit_generator.state = now
        return order

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.run.epoch += 1
        self.batch, self.seconds = 0, 0.0
        self.values, self.weights = [], []

    # -- there -------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write everything to a file; it appears whole or not at all."""
        run = self.run
        generators, of_layers = self._generators()
        state = {
            "setting": self.setting,
            "epoch": run.epoch,
            "step": run.step,
            "batch": self.batch,
            "lr": run.optimizer.lr,
            "base_lr": self.base_lr,
            "seconds": self.seconds,
            "order": _plain(self.order_state),
            "generators": [_plain(g.bit_generator.state) for g in generators],
            "generators_of_layers": of_layers,
            "lr_scales": {
                name: p.lr_scale
                for name, p in run.model.named_parameters()
                if p.lr_scale != 1
            },
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "history": _without_nan(vars(run.history)),
        }
        arrays = {
            f"optimizer/{name}": array
            for name, array in run.optimizer.state_dict(run.model).items()
        }
        arrays["losses"] = np.array([self.values, self.weights], dtype=np.float64)
        save_run(run.model, path, state, arrays)

    def _generators(self) -> tuple[list[np.random.Generator], dict[str, int]]:
        """Return the generators, `fit`'s first, and which layer has which."""
        found = [self.rng]
        of_layers = {}
        for name, layer in self.run.model.layers.items():
            rng = getattr(layer, "rng", None)
            if isinstance(rng, np.random.Generator):
                index = next((i for i, g in enumerate(found) if g is rng), len(found))
                if index == len(found):
                    found.append(rng)
                of_layers[name] = index
        return found, of_layers

    # -- and back ----------------------------------------------------------------

    def resume(self, path: PathLike) -> None:
        """Take over everything from a file that `save` wrote.

        Raises
        ------
        CheckpointError
            If the file is damaged or of another run; then nothing has been changed
            but, in a damaged file of ours, generators.
        """
        state, arrays, tensors = load_run(path, self.run.model)
        try:
            self._check_setting(state["setting"])
            self._take(state, arrays, tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error.__cause__
        except _NONSENSE as error:
            raise CheckpointError(
                f"{path}: its training state makes no sense: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error

    def _check_setting(self, saved: dict[str, Any]) -> None:
        for key, ours in self.setting.items():
            if saved[key] != ours:
                raise CheckpointError(
                    f"the run was started with {key} {saved[key]!s:.200}, not {ours}"
                )

    def _take(
        self,
        state: dict[str, Any],
        arrays: dict[str, np.ndarray],
        tensors: dict[str, np.ndarray],
    ) -> None:
        run = self.run
        history = _history(state["history"], _count(state["epoch"]))
        generators = [self.rng]
        generators += [_generator(s) for s in state["generators"][1:]]
        of_layers = {
            run.model.layers[name]: generators[index]
            for name, index in state["generators_of_layers"].items()
        }
        values, weights = arrays.pop("losses").astype(float).tolist()
        place = [_count(state[key]) for key in ("epoch", "step", "batch")]
        numbers = [float(state[key]) for key in ("lr", "base_lr", "seconds")]
        scales = {k: float(v) for k, v in state["lr_scales"].items()}
        parameters = dict(run.model.named_parameters())
        if len(values) != place[2] or scales.keys() - parameters.keys():
            raise ValueError("numbers do not agree")
        if len(state["callbacks"]) != len(self.callbacks):
            raise CheckpointError(
                f"the run was started with {len(state['callbacks'])} callbacks, "
                f"not {len(self.callbacks)}"
            )
        self.order_state = _generator(state["order"]).bit_generator.state
        moments = {
            name.removeprefix("optimizer/"): array for name, array in arrays.items()
        }
        self.rng.bit_generator.state = _arrays(state["generators"][0])
        run.optimizer.load_state_dict(run.model, moments)
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for callback, kept in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(kept)
        # from here on nothing can fail
        run.epoch, run.step, self.batch = place
        run.optimizer.lr, self.base_lr, self.seconds = numbers
        vars(run.history).update(vars(history))
        self.values, self.weights = values, weights
        for layer, rng in of_layers.items():
            layer.rng = rng  # type: ignore[attr-defined]
        for name, parameter in parameters.items():
            parameter.value[...] = tensors[name]
            parameter.lr_scale = scales.get(name, 1.0)
        for name, buffer in run.model.named_buffers():
            buffer.value = tensors[name].copy()


def fingerprint(x: np.ndarray, target: np.ndarray) -> str:
    """Return what tells training data from others: shape, dtype, sums of some bytes."""
    sums = [
        zlib.crc32(np.ascontiguousarray(part).tobytes())
        for part in (target, x[0], x[-1])
    ]
    return f"{x.dtype}{list(x.shape)} {sums}"


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _generator(state: dict[str, Any]) -> np.random.Generator:
    """Return a new generator in a state."""
    kind = state["bit_generator"]
    if kind not in _BIT_GENERATORS:
        raise ValueError(f"unknown bit generator {kind!r}")
    bits = getattr(np.random, kind)()
    bits.state = _arrays(state)
    return np.random.Generator(bits)


def _plain(state: Any) -> Any:
    """Return a generator's state as JSON takes it."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return {"dtype": str(state.dtype), "values": state.tolist()}
    return state.item() if isinstance(state, np.generic) else state


def _arrays(state: Any) -> Any:
    """Undo `_plain`."""
    if not isinstance(state, dict):
        return state
    if state.keys() == {"dtype", "values"}:
        return np.array(state["values"], dtype=np.dtype(state["dtype"]))
    return {key: _arrays(value) for key, value in state.items()}


def _without_nan(values: Any) -> Any:
    """Return lists of numbers as JSON takes them: what is not finite as text."""
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return (
        str(values)
        if isinstance(values, float) and not math.isfinite(values)
        else values
    )


def _history(saved: dict[str, Any], epochs: int) -> History:
    """Undo `_without_nan`; every column has an entry an epoch, or validation none."""
    history = History()
    for name, column in vars(history).items():
        value = saved[name]
        if name == "stopped":
            if not (value is None or isinstance(value, str)):
                raise ValueError(f"{value!r} is no reason to stop")
            history.stopped = value
        else:
            none = name.startswith("validation") and value == []
            if not isinstance(value, list) or not (none or len(value) == epochs):
                raise ValueError(f"history: {name} has not {epochs} entries")
            column += map(float, value)
    return history
