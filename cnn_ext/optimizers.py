"""Optimisers: what a step does with the gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from operator import is_
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, ref

import numpy as np

from cnn_ext import _update
from cnn_ext.layers.base import Parameter

if TYPE_CHECKING:
    from cnn_ext.model import Model

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
]

# What belongs to one parameter, by name.
_State = dict[str, np.ndarray]
# The arrays of it that a compiled update reads and writes, in its order.
_Kept = tuple["np.ndarray | None", ...]


class _Last:
    """The arrays of the last step: most often those of the next one too.

    Finding states in a dictionary of weak keys and looking at arrays would take longer
    than the update of a small net.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        values: list[np.ndarray],
        slots: tuple[str, ...],
        states: list[_State],
    ) -> None:
        # weak, so that an optimiser keeps no model alive
        self.parameters = [ref(parameter) for parameter in parameters]
        self.values = [ref(value) for value in values]
        self.grads: list[ref[np.ndarray]] = []
        self.slots, self.states = slots, states
        self.dense = all(value.flags.c_contiguous for value in values)

    def has(self, parameters: list[Parameter], values: list[np.ndarray]) -> bool:
        return _are(self.parameters, parameters) and _are(self.values, values)

    def has_grads(self, grads: list[Any]) -> bool:
        """Whether gradients are arrays that have been found to fit their values."""
        return _are(self.grads, grads)

    def keep_grads(self, grads: list[np.ndarray]) -> None:
        self.grads = [ref(grad) for grad in grads]


def _are(references: list[Any], objects: list[Any]) -> bool:
    return len(references) == len(objects) and all(
        map(is_, [reference() for reference in references], objects)
    )


class Optimizer(ABC):
    """What the optimisers have in common: the walk over parameters, and their state.

    State (velocities, moments) belongs to the parameters: an optimiser given another
    model starts anew, given the same one it goes on. A parameter's `lr_scale` is a
    factor on the learning rate; one with 0 is left as it is.

    Attributes
    ----------
    lr : float
        Learning rate; may be changed between steps.
    """

    #: Whether the number of steps is kept for each parameter.
    counts: ClassVar[bool] = False
    #: The compiled update, of `cnn_ext._update`.
    _rule: ClassVar[int]

    def __init__(self, lr: float, weight_decay: float) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be above 0 and finite, got {lr!r}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay!r}")
        self.lr = float(lr)
        self.weight_decay = float(weight_decay)
        self._state: WeakKeyDictionary[Parameter, _State]
        self._state = WeakKeyDictionary()
        self._last: _Last | None = None

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that are kept for each parameter."""

    @property
    def _used(self) -> tuple[str, ...]:
        """Those of `slots` that a step reads with the settings as they are."""
        return self.slots

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the numbers that describe the optimiser, the learning rate first."""

    def step(self, parameters: Iterable[Parameter]) -> None:
        """Change each parameter's value, in place, by its gradient.

        Gradients are read only. Nothing is allocated after the first step.

        Raises
        ------
        ValueError
            If a parameter has no gradient yet; then nothing has been changed.
        """
        parameters = list(parameters)
        for i, parameter in enumerate(parameters):
            if parameter.grad is None:
                raise ValueError(
                    f"parameter {i}, of shape {parameter.shape}, has no gradient: "
                    "run a backward pass first"
                )
        moving = [p for p in parameters if p.lr_scale]
        values: list[np.ndarray] = [p.value for p in moving]
        grads: list[Any] = [p.grad for p in moving]
        last, used = self._last, self._used
        if last is None or last.slots != used or not last.has(moving, values):
            states = [self._state_of(p, p.value) for p in moving]
            last = self._last = _Last(moving, values, used, states)
        if not last.has_grads(grads):
            like = [_like(g, v) for g, v in zip(grads, values, strict=True)]
            last.keep_grads(grads if all(map(is_, grads, like)) else [])
            grads = like
        rates = [self.lr * p.lr_scale for p in moving]
        writeable = values
        if not last.dense:
            writeable = [value.copy(order="C") for value in values]
        # One compiled call for all of them: an update is whole or not at all.
        _update.step(
            self._rule,
            writeable,
            grads,
            [self._arrays(state) for state in last.states],
            self._numbers(rates, last.states),
        )
        if not last.dense:
            for value, changed in zip(values, writeable, strict=True):
                value[...] = changed

    @abstractmethod
    def _numbers(
        self, rates: list[float], states: list[_State]
    ) -> list[tuple[float, ...]]:
        """Return the numbers of the compiled rule for each parameter's step."""

    def _arrays(self, state: _State) -> _Kept:
        """Return a parameter's arrays in the order of the compiled rule."""
        return tuple(state[slot] for slot in self.slots)

    def _state_of(self, parameter: Parameter, p: np.ndarray) -> _State:
        """Return a parameter's state, zeros at first or where its array is another."""
        state = self._state.get(parameter)
        if state is None or any(
            slot not in state
            or state[slot].shape != p.shape
            or state[slot].dtype != p.dtype
            for slot in self._used
        ):
            state = {slot: np.zeros(p.shape, p.dtype) for slot in self._used}
            if self.counts:
                state["steps"] = np.zeros((), np.int64)
            self._state[parameter] = state
        return state

    def _key(self, name: str, slot: str) -> str:
        """Name of an array in `state_dict`."""
        alone = len(self.slots) == 1 and not self.counts
        return name if alone else f"{name}/{slot}"

    def state_dict(self, model: Model) -> dict[str, np.ndarray]:
        """Return a copy of a model's state, by the names of its parameters.

        Where there are several arrays a parameter, ``"0.weight/first"`` and the like.
        Parameters that have not been stepped yet are left out.
        """
        return {
            self._key(name, slot): array.copy()
            for name, parameter in model.named_parameters()
            for slot, array in self._state.get(parameter, {}).items()
        }

    def load_state_dict(self, model: Model, state: dict[str, np.ndarray]) -> None:
        """Take over what `state_dict` returned for a model like this one.

        Raises
        ------
        ValueError
            If a name is unknown or missing, a shape or dtype is not the
            parameter's, or a count is below 0; then nothing has been changed.
        """
        rest = dict(state)
        taken: dict[Parameter, dict[str, np.ndarray]] = {}
        slots = (*self.slots, "steps") if self.counts else self.slots
        for name, parameter in model.named_parameters():
            keys = {slot: self._key(name, slot) for slot in slots}
            found = {slot: rest.pop(k) for slot, k in keys.items() if k in rest}
            if found and len(found) < len(slots):
                missing = next(k for slot, k in keys.items() if slot not in found)
                raise ValueError(f"state {missing!r} is missing")
            for slot, array in found.items():
                value = parameter.value
                shape, dtype = (
                    ((), np.dtype(np.int64))
                    if slot == "steps"
                    else (value.shape, value.dtype)
                )
                if array.shape != shape or array.dtype != dtype:
                    raise ValueError(
                        f"state {keys[slot]!r} is {array.dtype} of shape "
                        f"{array.shape}, the parameter is {dtype} of shape {shape}"
                    )
                if slot == "steps" and not 0 <= array < 2**62:
                    raise ValueError(f"state {keys[slot]!r} is {array}, no count")
            taken[parameter] = {slot: array.copy() for slot, array in found.items()}
        for name in rest:
            raise ValueError(f"state has {name!r}, the model has no such parameter")
        self._last = None
        for parameter, arrays in taken.items():
            self._state.pop(parameter, None)
            if arrays:
                self._state[parameter] = arrays

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v}" for k, v in self.config().items())
        return f"{type(self).__name__}({arguments})"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    With g the gradient: ``g += weight_decay * p``; ``v = momentum * v + g`` (v = g in
    the first step); ``p -= lr * v``, or with Nesterov ``p -= lr * (g + momentum * v)``.

    Parameters
    ----------
    lr : float
        Learning rate, above 0. May be changed between steps.
    momentum : float, default 0
        From 0 to below 1.
    nesterov : bool, default False
        Needs momentum.
    weight_decay : float, default 0
        Not negative; pulls every parameter, biases too, towards 0.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization
    and momentum in deep learning", ICML 2013; the formulas are PyTorch's.
    """

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in 0 <= m < 1, got {momentum!r}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum above 0")
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)

    _rule = _update.SGD

    @property
    def slots(self) -> tuple[str, ...]:
        return ("velocity",)

    def config(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }

    @property
    def _used(self) -> tuple[str, ...]:
        return self.slots if self.momentum else ()

    def _arrays(self, state: _State) -> _Kept:
        return (state["velocity"] if self.momentum else None,)

    def _numbers(
        self, rates: list[float], states: list[_State]
    ) -> list[tuple[float, ...]]:
        rest: tuple[float, ...]
        rest = self.momentum, self.weight_decay, self.nesterov
        return [(rate, *rest) for rate in rates]


class Adam(Optimizer):
    """Steps of even length: the mean gradient over the root of its mean square.

    With g the gradient (``g += weight_decay * p``) and t the number of the step:
    ``m = beta1*m + (1-beta1)*g``; ``v = beta2*v + (1-beta2)*g^2``;
    ``p -= lr * (m / (1-beta1^t)) / (sqrt(v / (1-beta2^t)) + eps)``.

    Parameters
    ----------
    lr : float, default 1e-3
        Learning rate, above 0.
    betas : (float, float), default (0.9, 0.999)
        Each from 0 to below 1.
    eps : float, default 1e-8
        Not negative; stands outside the square root.
    weight_decay : float, default 0
        Not negative.

    References
    ----------
    D. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015; the
    formulas are PyTorch's.
    """

    counts = True
    _rule = _update.ADAM

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] must be in 0 <= b < 1, got {beta!r}")
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps must not be negative, got {eps!r}")
        self.betas = float(betas[0]), float(betas[1])
        self.eps = float(eps)

    @property
    def slots(self) -> tuple[str, ...]:
        return "first", "second"

    def config(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def _numbers(
        self, rates: list[float], states: list[_State]
    ) -> list[tuple[float, ...]]:
        beta1, beta2 = self.betas
        numbers: list[tuple[float, ...]] = []
        for lr, state in zip(rates, states, strict=True):
            steps = state["steps"]
            t = int(steps) + 1
            steps[...] = t
            rate, correction = lr / (1 - beta1**t), 1 / (1 - beta2**t)
            numbers.append((rate, beta1, beta2, self.eps, correction, *self._decay(lr)))
        return numbers

    def _decay(self, lr: float) -> tuple[float, float]:
        """Return what is added to the gradient, and what multiplies the parameter."""
        return self.weight_decay, 1.0


class AdamW(Adam):
    """`Adam` whose weight decay goes around the moments: first ``p -= lr * wd * p``.

    Parameters
    ----------
    lr, betas, eps
        As in `Adam`.
    weight_decay : float, default 0.01
        Not negative.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019; the
    formulas are PyTorch's.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def _decay(self, lr: float) -> tuple[float, float]:
        return 0.0, 1 - lr * self.weight_decay


class RMSprop(Optimizer):
    """Gradients over the root of their running mean square.

    With g the gradient (``g += weight_decay * p``): ``v = alpha*v + (1-alpha)*g^2``;
    d is ``g / (sqrt(v) + eps)``, or with `centered` ``g / (sqrt(v - a^2) + eps)`` where
    ``a = alpha*a + (1-alpha)*g``; ``p -= lr * d``, or with momentum
    ``b = momentum*b + d``; ``p -= lr * b``.

    Parameters
    ----------
    lr : float, default 0.01
        Learning rate, above 0.
    alpha : float, default 0.99
        From 0 to 1.
    eps : float, default 1e-8
        Not negative; stands outside the square root.
    weight_decay : float, default 0
        Not negative.
    momentum : float, default 0
        From 0 to below 1.
    centered : bool, default False

    References
    ----------
    G. Hinton, "Neural networks for machine learning", lecture 6e, 2012; the formulas
    are PyTorch's.
    """

    def __init__(
        self,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(lr, weight_decay)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in 0 <= a <= 1, got {alpha!r}")
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps must not be negative, got {eps!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in 0 <= m < 1, got {momentum!r}")
        self.alpha, self.eps = float(alpha), float(eps)
        self.momentum, self.centered = float(momentum), bool(centered)

    _rule = _update.RMSPROP

    @property
    def slots(self) -> tuple[str, ...]:
        mean = ("mean",) if self.centered else ()
        return ("square", *mean, *(("velocity",) if self.momentum else ()))

    def config(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "alpha": self.alpha,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            "centered": self.centered,
        }

    def _arrays(self, state: _State) -> _Kept:
        return state["square"], state.get("mean"), state.get("velocity")

    def _numbers(
        self, rates: list[float], states: list[_State]
    ) -> list[tuple[float, ...]]:
        rest: tuple[float, ...]
        rest = self.alpha, self.eps, self.weight_decay, self.momentum
        return [(rate, *rest) for rate in rates]


def _like(grad: Any, value: np.ndarray) -> np.ndarray:
    """Return a gradient of a parameter's shape and dtype, without gaps."""
    if (
        isinstance(grad, np.ndarray)
        and grad.dtype == value.dtype
        and grad.shape == value.shape
        and grad.flags.c_contiguous
    ):
        return grad
    return np.array(np.broadcast_to(grad, value.shape), value.dtype, order="C")
