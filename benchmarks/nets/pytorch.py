"""PyTorch: modules with a model's graph and weights; eager, channels-last, compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from cnn_ext.losses import Loss
from cnn_ext.model import Model

from .base import LEARNING_RATE, MOMENTUM, Prepared, Runner

__all__ = ["ChannelsLast", "Compiled", "Eager", "module_of"]


class _Sum(nn.Module):
    def forward(self, *parts):
        return sum(parts[1:], parts[0])


class _Graph(nn.Module):
    """Modules that take the values of others, as a model of ours does."""

    def __init__(self, modules: list[nn.Module], inputs: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules)
        last = {i: k for k, step in enumerate(inputs) for i in step}
        released = [
            tuple(i for i in set(step) if last[i] == k) for k, step in enumerate(inputs)
        ]
        self.walk = list(zip(inputs, released, strict=True))

    def forward(self, x):
        values = [x]
        for step, (inputs, released) in zip(self.steps, self.walk, strict=True):
            values.append(step(*[values[i] for i in inputs]))
            for i in released:
                values[i] = None
        return values[-1]


def _module(layer: Any, in_place: bool) -> nn.Module:
    """The same layer without its weights; activations in place, as torchvision's."""
    match type(layer).__name__:
        case "Conv2d":
            k, c, *size = layer.weight.shape
            return nn.Conv2d(
                c * layer.groups, k, size, layer.stride, layer.padding, layer.dilation,
                layer.groups, layer.bias is not None,
            )  # fmt: skip
        case "BatchNorm2d":
            return nn.BatchNorm2d(layer.channels, layer.eps, layer.momentum)
        case "Linear":
            return nn.Linear(*layer.weight.shape[::-1], layer.bias is not None)
        case "MaxPool2d":
            return nn.MaxPool2d(
                layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                ceil_mode=layer.ceil_mode,
            )  # fmt: skip
        case "AvgPool2d":
            return nn.AvgPool2d(
                layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode,
                layer.count_include_pad, layer.divisor_override,
            )  # fmt: skip
        case "GlobalAvgPool":
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case "Flatten":
            return nn.Flatten()
        case "ReLU":
            return nn.ReLU(in_place)
        case "ReLU6":
            return nn.ReLU6(in_place)
        case "Add":
            return _Sum()
    raise NotImplementedError(f"no PyTorch module for {layer!r}")


def module_of(model: Model) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the model as a module, and its tensors by our names of parameters."""
    modules, tensors = [], {}
    inputs = [step.inputs for step in model._graph.steps]
    uses = [i for step in inputs for i in step]
    for step in model._graph.steps:
        layer = step.layer
        module = _module(layer, uses.count(step.inputs[0]) == 1 and step.inputs[0] > 0)
        with torch.no_grad():
            for key, held in (layer.parameters | layer.buffers).items():
                tensor = getattr(module, key)
                tensor.data = torch.from_numpy(held.value.copy())
                tensors[f"{model._graph.names[layer]}.{key}"] = tensor
        modules.append(module)
    chain = all(step == (k,) for k, step in enumerate(inputs))
    whole = nn.Sequential(*modules) if chain else _Graph(modules, inputs)
    names = {name for name, _ in model.named_parameters()}
    return whole, {name: t for name, t in tensors.items() if name in names}


class Eager(Runner):
    """As it comes: NCHW."""

    name = "torch eager"
    trains = True
    order = torch.contiguous_format

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    def version(self) -> str:
        return f"{torch.__version__}"

    def ready(self, module: nn.Module) -> Callable[..., torch.Tensor]:
        return module

    def inference(self, model: Model, x: np.ndarray) -> Prepared:
        module, _ = module_of(model)
        module = module.eval().to(memory_format=self.order)
        run, tx = self.ready(module), self._input(x)

        @torch.inference_mode()
        def infer() -> torch.Tensor:
            return run(tx)

        return Prepared(infer, lambda: infer().numpy())

    def training(
        self, model: Model, loss: Loss, x: np.ndarray, labels: np.ndarray
    ) -> Prepared:
        module, tensors = module_of(model)
        module = module.train().to(memory_format=self.order)
        criterion = nn.CrossEntropyLoss(label_smoothing=loss.label_smoothing)
        run, tx, target = self.ready(module), self._input(x), torch.from_numpy(labels)
        optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE, MOMENTUM)

        def gradients() -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            value = criterion(run(tx), target)
            value.backward()
            return value

        def step() -> None:
            gradients()
            optimizer.step()

        def result() -> tuple[float, dict[str, np.ndarray]]:
            value = float(gradients().detach())
            return value, {name: t.grad.numpy().copy() for name, t in tensors.items()}

        return Prepared(step, result)

    def _input(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x.copy()).contiguous(memory_format=self.order)


class ChannelsLast(Eager):
    name = "torch channels-last"
    order = torch.channels_last


class Compiled(Eager):
    """torch.compile, NCHW: it needs a C++ compiler."""

    name = "torch compiled"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        # it compiles in as many processes as there are cores otherwise
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        try:
            double = torch.compile(lambda x: torch.relu(x) * 2)
            double(torch.ones(3))
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ImportError(f"torch.compile fails: {reason}") from error

    def version(self) -> str:
        return f"{torch.__version__}, torch.compile"

    def ready(self, module: nn.Module) -> Callable[..., torch.Tensor]:
        torch._dynamo.reset()
        return torch.compile(module)
