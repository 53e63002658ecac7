"""PyTorch on the CPU: every pass, both memory orders, float32 and float64."""

from __future__ import annotations

import torch
import torch.nn.functional as TF

from ..shapes import Data, Task
from .base import Peer, Prepared

__all__ = ["PyTorch"]


class PyTorch(Peer):
    """Eager operators without autograd; a result is a new tensor, as users get it."""

    name = "torch"
    takes_channels_last = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    def version(self) -> str:
        return torch.__version__

    def refusal(self, task: Task) -> str | None:
        return None

    def prepare(self, task: Task, data: Data) -> Prepared:
        order = torch.contiguous_format if task.order == "nchw" else torch.channels_last
        x, weight, grad_y = (
            None if a is None else torch.from_numpy(a).contiguous(memory_format=order)
            for a in data
        )
        make = _conv if task.shape.is_conv else _pool
        run = torch.inference_mode()(make(task, x, weight, grad_y))
        return Prepared(run, lambda: run().numpy())


def _conv(task, x, weight, grad_y):
    s = task.shape
    stride, dilation = [s.stride] * 2, [s.dilation] * 2
    padding = list(s.padding)
    if task.pass_ == "forward":
        return lambda: TF.conv2d(x, weight, None, stride, padding, dilation, s.groups)
    wanted = [task.pass_ == "grad_x", task.pass_ == "grad_w", False]
    which = wanted.index(True)
    backward = torch.ops.aten.convolution_backward
    rest = [None, stride, padding, dilation, False, [0, 0], s.groups, wanted]
    return lambda: backward(grad_y, x, weight, *rest)[which]


def _pool(task, x, weight, grad_y):
    s = task.shape
    size, stride, padding = [s.r, s.s], [s.stride] * 2, list(s.padding)
    if s.kind == "avg":
        rest = [size, stride, padding, False, True, None]
        if task.pass_ == "forward":
            return lambda: TF.avg_pool2d(x, *rest)
        return lambda: torch.ops.aten.avg_pool2d_backward(grad_y, x, *rest)
    rest = [size, stride, padding, [s.dilation] * 2, False]
    if task.pass_ == "forward":
        return lambda: TF.max_pool2d(x, *rest)
    if task.pass_ == "argmax":
        return lambda: TF.max_pool2d(x, *rest, return_indices=True)[0]
    indices = TF.max_pool2d(x, *rest, return_indices=True)[1]
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    return lambda: backward(grad_y, x, *rest, indices)
