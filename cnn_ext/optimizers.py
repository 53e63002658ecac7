"""Optimisers: what a step does with the gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from cnn_ext.layers.base import Parameter

if TYPE_CHECKING:
    from cnn_ext.model import Model

__all__ = ["SGD"]


class SGD:
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

    Notes
    -----
    Velocities belong to the parameters: an optimiser given another model starts anew,
    given the same one it goes on.

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
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr must be above 0 and finite, got {lr!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in 0 <= m < 1, got {momentum!r}")
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay must not be negative, got {weight_decay!r}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum above 0")
        self.lr = float(lr)
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        self.weight_decay = float(weight_decay)
        self._velocity: WeakKeyDictionary[Parameter, np.ndarray] = WeakKeyDictionary()
        self._scratch = np.empty(0, dtype=np.uint8)

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
        for parameter in parameters:
            self._update(parameter, parameter.value, parameter.grad)

    def _update(self, parameter: Parameter, p: np.ndarray, g: Any) -> None:
        room = self._room(p)
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=room)
            room += g
            g = room
        if self.momentum:
            v = self._velocity.get(parameter)
            if v is None or v.shape != p.shape or v.dtype != p.dtype:
                v = self._velocity[parameter] = g.copy()
            else:
                v *= self.momentum
                v += g
            if self.nesterov:
                # lr * (g + momentum * v), in two subtractions
                np.multiply(g, self.lr, out=room)
                p -= room
                np.multiply(v, self.lr * self.momentum, out=room)
            else:
                np.multiply(v, self.lr, out=room)
        else:
            np.multiply(g, self.lr, out=room)
        p -= room

    def _room(self, p: np.ndarray) -> np.ndarray:
        """Return scratch space like p, kept from one step to the next."""
        if self._scratch.size < p.nbytes:
            self._scratch = np.empty(p.nbytes, dtype=np.uint8)
        return self._scratch[: p.nbytes].view(p.dtype).reshape(p.shape)

    def state_dict(self, model: Model) -> dict[str, np.ndarray]:
        """Return a copy of the velocities of a model, by the names of its parameters.

        Parameters that have not been stepped yet are left out.
        """
        return {
            name: self._velocity[parameter].copy()
            for name, parameter in model.named_parameters()
            if parameter in self._velocity
        }

    def load_state_dict(self, model: Model, state: dict[str, np.ndarray]) -> None:
        """Take over velocities that `state_dict` returned for a model like this one.

        Raises
        ------
        ValueError
            If a name is unknown, or a shape or dtype is not the parameter's; then
            nothing has been changed.
        """
        parameters = dict(model.named_parameters())
        for name, v in state.items():
            if name not in parameters:
                raise ValueError(f"state has {name!r}, the model has no such parameter")
            value = parameters[name].value
            if v.shape != value.shape or v.dtype != value.dtype:
                raise ValueError(
                    f"state {name!r} is {v.dtype} of shape {v.shape}, the parameter is "
                    f"{value.dtype} of shape {value.shape}"
                )
        for name, parameter in parameters.items():
            self._velocity.pop(parameter, None)
            if name in state:
                self._velocity[parameter] = state[name].copy()

    def __repr__(self) -> str:
        return (
            f"SGD(lr={self.lr}, momentum={self.momentum}, nesterov={self.nesterov}, "
            f"weight_decay={self.weight_decay})"
        )
