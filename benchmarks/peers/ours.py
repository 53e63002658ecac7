"""cnn_ext itself, through its functional API."""

from __future__ import annotations

import cnn_ext
from cnn_ext import _runtime
from cnn_ext import functional as F

from ..shapes import Data, Task, empty
from .base import Peer, Prepared

__all__ = ["Ours"]


class Ours(Peer):
    """New arrays for results; with `reuses_output` as engines work: ``out=``, and the
    weights of a convolution prepared beforehand."""

    name = "cnn_ext"
    takes_channels_last = True

    def __init__(self, threads: int, reuses_output: bool = False) -> None:
        super().__init__(threads)
        self.reuses_output = reuses_output  # type: ignore[misc]
        cnn_ext.set_num_threads(threads)

    def version(self) -> str:
        return f"{cnn_ext.__version__}, kernel set {_runtime.kernel_set()}"

    def refusal(self, task: Task) -> str | None:
        return None

    def prepare(self, task: Task, data: Data) -> Prepared:
        s, options = task.shape, {}
        if self.reuses_output:
            target = {
                "grad_x": s.x_shape,
                "grad_w": s.weight_shape,
            }.get(task.pass_, s.y_shape)
            order = "nchw" if task.pass_ == "grad_w" else task.order
            options["out"] = empty(target, task.dtype, order)
        run = (_conv if s.is_conv else _pool)(task, data, options)
        if task.pass_ == "argmax":
            return Prepared(run, lambda: run()[0])
        return Prepared(run, run)


def _conv(task, data, options):
    s = task.shape
    x, weight, grad_y = data
    options |= {
        "stride": s.stride,
        "padding": s.padding,
        "dilation": s.dilation,
        "groups": s.groups,
    }
    if task.pass_ == "forward" and "out" in options:
        out = options.pop("out")
        last = task.order == "channels_last"
        convolve = F.prepare_conv2d(
            weight, None, s.x_shape, channels_last=last, **options
        )
        return lambda: convolve(x, out=out)
    if task.pass_ == "forward":
        return lambda: F.conv2d(x, weight, **options)
    if task.pass_ == "grad_x":
        return lambda: F.conv2d_backward_input(grad_y, weight, s.x_shape, **options)
    return lambda: F.conv2d_backward_weight(grad_y, x, s.weight_shape, **options)


def _pool(task, data, options):
    s = task.shape
    x, _, grad_y = data
    size = s.r, s.s
    options |= {"stride": s.stride, "padding": s.padding}
    if s.kind == "avg":
        if task.pass_ == "forward":
            return lambda: F.avg_pool2d(x, size, **options)
        return lambda: F.avg_pool2d_backward(grad_y, s.x_shape, size, **options)
    options["dilation"] = s.dilation
    if task.pass_ == "forward":
        return lambda: F.max_pool2d(x, size, **options)
    if task.pass_ == "argmax":
        return lambda: F.max_pool2d(x, size, return_argmax=True, **options)
    forward = {key: value for key, value in options.items() if key != "out"}
    argmax = F.max_pool2d(x, size, return_argmax=True, **forward)[1]
    return lambda: F.max_pool2d_backward(grad_y, argmax, s.x_shape, size, **options)
