"""A model of this package computed by PyTorch, layer by layer, from its parameters.

Only the structure of the graph is shared: values and gradients are PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from checks import torch

from cnn_ext.layers import ScaledTanh


def _apply(layer: Any, inputs: list[Any], held: dict[str, Any]) -> Any:
    """Return what PyTorch makes of the inputs with the tensors held by the layer."""
    F, x, kind = torch.nn.functional, inputs[0], type(layer).__name__
    match kind:
        case "Conv2d":
            return F.conv2d(
                x, held["weight"], held.get("bias"), layer.stride, layer.padding,
                layer.dilation, layer.groups,
            )  # fmt: skip
        case "BatchNorm2d":
            return F.batch_norm(
                x, held["running_mean"], held["running_var"], held["weight"],
                held["bias"], True, layer.momentum, layer.eps,
            )  # fmt: skip
        case "Linear":
            return F.linear(x, held["weight"], held.get("bias"))
        case "MaxPool2d":
            return F.max_pool2d(
                x, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                layer.ceil_mode,
            )  # fmt: skip
        case "AvgPool2d":
            return F.avg_pool2d(
                x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode,
                layer.count_include_pad, layer.divisor_override,
            )  # fmt: skip
        case "Subsample2d":
            sums = F.avg_pool2d(x, layer.kernel_size, divisor_override=1)
            gain, bias = (held[k].reshape(1, -1, 1, 1) for k in ("gain", "bias"))
            return gain * sums + bias
        case "GlobalAvgPool":
            return x.mean((2, 3))
        case "Flatten":
            return x.flatten(1)
        case "ReLU":
            return F.relu(x)
        case "SiLU":
            return F.silu(x)
        case "ReLU6":
            return F.relu6(x)
        case "ScaledTanh":
            return ScaledTanh.amplitude * torch.tanh(ScaledTanh.slope * x)
        case "Add":
            return sum(inputs[1:], x)
    raise NotImplementedError(kind)


def loss_and_gradients(model: Any, x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return cross-entropy, its gradients by parameter ("x": input's), new buffers."""
    leaves = {
        name: torch.from_numpy(p.value.copy()).requires_grad_()
        for name, p in model.named_parameters()
    }
    buffers = {n: torch.from_numpy(b.value.copy()) for n, b in model.named_buffers()}
    leaves["x"] = torch.from_numpy(x.copy()).requires_grad_()
    values = [leaves["x"]]
    for step in model._graph.steps:
        name = model._graph.names[step.layer]
        held = {
            key: (leaves | buffers)[f"{name}.{key}"]
            for key in step.layer.parameters | step.layer.buffers
        }
        values.append(_apply(step.layer, [values[i] for i in step.inputs], held))
    loss = torch.nn.functional.cross_entropy(values[-1], torch.from_numpy(labels))
    loss.backward()
    result = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    result |= {name: buffer.numpy() for name, buffer in buffers.items()}
    return result | {"loss": float(loss.detach())}
