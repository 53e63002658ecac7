"""cnn_ext itself: the plan that `fit` runs, and models called on arrays."""

from __future__ import annotations

import numpy as np

import cnn_ext
from cnn_ext import _runtime
from cnn_ext.losses import Loss
from cnn_ext.model import Model
from cnn_ext.optimizers import SGD

from .base import LEARNING_RATE, MOMENTUM, Prepared, Runner

__all__ = ["Ours"]


class Ours(Runner):
    name = "cnn_ext"
    trains = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        cnn_ext.set_num_threads(threads)

    def version(self) -> str:
        return f"{cnn_ext.__version__}, kernel set {_runtime.kernel_set()}"

    def inference(self, model: Model, x: np.ndarray) -> Prepared:
        frozen = model.freeze(x.shape)  # as the other engines prepare their models
        return Prepared(lambda: frozen(x), lambda: frozen(x))

    def training(
        self, model: Model, loss: Loss, x: np.ndarray, labels: np.ndarray
    ) -> Prepared:
        plan = model.plan(x.shape, dtype=x.dtype)
        named = list(model.named_parameters())
        parameters = [parameter for _, parameter in named]
        optimizer = SGD(LEARNING_RATE, MOMENTUM)

        def gradients() -> tuple[float, dict[str, np.ndarray]]:
            there = plan.start(x)
            value, grad_y = loss(there.y, labels)
            _, grads = there.backward(grad_y, False)
            there.close()
            return value, grads

        def step() -> None:
            _, grads = gradients()
            for name, parameter in named:
                parameter.grad = grads[name]
            optimizer.step(parameters)

        def result() -> tuple[float, dict[str, np.ndarray]]:
            value, grads = gradients()
            return value, {name: grad.copy() for name, grad in grads.items()}

        return Prepared(step, result)
