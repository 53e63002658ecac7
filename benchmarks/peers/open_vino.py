"""OpenVINO: a model of one convolution, compiled beforehand, tensors shared."""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset8 as ops

from ..shapes import Data, Task
from .base import Engine, Prepared

__all__ = ["OpenVino"]


class OpenVino(Engine):
    name = "openvino"

    def version(self) -> str:
        return f"{openvino.get_version()}, CPU, f32, shared tensors"

    def prepare(self, task: Task, data: Data) -> Prepared:
        s = task.shape
        x = ops.parameter(list(s.x_shape), np.float32)
        where = ([s.stride] * 2, list(s.padding), list(s.padding), [s.dilation] * 2)
        if s.groups == 1:
            y = ops.convolution(x, ops.constant(data.weight), *where)
        else:
            c, k = s.c // s.groups, s.k // s.groups
            weight = data.weight.reshape(s.groups, k, c, s.r, s.s)
            y = ops.group_convolution(x, ops.constant(weight), *where)
        compiled = openvino.Core().compile_model(
            openvino.Model([y], [x]),
            "CPU",
            {
                # on CPUs with bfloat16 units the default is not float32
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                # everything here shares the cores
                "ENABLE_CPU_PINNING": False,
            },
        )
        request = compiled.create_infer_request()
        y = np.empty(s.y_shape, np.float32)
        request.set_input_tensor(openvino.Tensor(data.x, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(y, shared_memory=True))

        def run() -> np.ndarray:
            request.infer()
            return y  # named here, so that the memory lives as long as `run`

        return Prepared(run, run)
