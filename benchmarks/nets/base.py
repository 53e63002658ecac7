"""The interface of what runs a net, and the nets that are run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cnn_ext import zoo
from cnn_ext.losses import Loss
from cnn_ext.model import Model

__all__ = ["CASES", "LEARNING_RATE", "MOMENTUM", "Case", "Prepared", "Runner"]

# Of everybody's SGD: small, so that hundreds of steps on one batch stay finite.
LEARNING_RATE = 1e-3
MOMENTUM = 0.9


class Case(NamedTuple):
    """A net of the zoo and the size of its batch."""

    net: str
    batch: int
    train: bool

    @property
    def name(self) -> str:
        return f"{self.net} b{self.batch}"

    def model(self, dtype: str = "float32") -> Model:
        return zoo.build(self.net, seed=0).astype(dtype)

    def loss(self) -> Loss:
        return zoo.NETS[self.net].loss()

    def data(self, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.batch, *zoo.NETS[self.net].input_shape))
        return x.astype(dtype), rng.integers(0, 10, self.batch)


CASES = (
    Case("lenet5", 64, True),
    Case("lenet5", 1, True),
    Case("cifar-quick", 100, True),
    Case("resnet20", 128, True),
    Case("vgg11", 64, True),
    Case("mobilenet-v2", 32, True),
    Case("resnet18", 32, True),
    *(
        Case(net, batch, False)
        for net in (
            "lenet5", "cifar-quick", "resnet20", "vgg11", "mobilenet-v2", "resnet18"
        )
        for batch in (1, 32)
    ),
)  # fmt: skip


class Prepared(NamedTuple):
    """A step of training, or an inference, ready to run again and again.

    Attributes
    ----------
    run : callable
        What is timed.
    result : callable
        To be called once and before `run`: for an inference the output; for training
        the loss and the gradients of the parameters by our names, of one step.
    """

    run: Callable[[], Any]
    result: Callable[[], Any]


class Runner(ABC):
    """Something that runs nets."""

    name: ClassVar[str]
    trains: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def version(self) -> str:
        """Version and settings that matter, in a few words."""

    @abstractmethod
    def inference(self, model: Model, x: np.ndarray) -> Prepared:
        """Do what a user does once for a net and a shape of its input."""

    def training(
        self, model: Model, loss: Loss, x: np.ndarray, labels: np.ndarray
    ) -> Prepared:
        """A step of SGD with momentum; the model's parameters may be changed."""
        raise NotImplementedError(f"{self.name} does not train")
