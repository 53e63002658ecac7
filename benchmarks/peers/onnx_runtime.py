"""ONNX Runtime: a model of one Conv, weights as an initializer, IO bound beforehand."""

from __future__ import annotations

import numpy as np
import onnxruntime

from ..shapes import Data, Task
from .base import Engine, Prepared
from .onnx_model import onnx_model

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Engine):
    name = "onnxruntime"

    def version(self) -> str:
        return f"{onnxruntime.__version__}, CPU provider, IO binding"

    def prepare(self, task: Task, data: Data) -> Prepared:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            onnx_model(task, data), options, providers=["CPUExecutionProvider"]
        )
        y = np.empty(task.shape.y_shape, np.float32)
        # these share the arrays' memory
        x_value = onnxruntime.OrtValue.ortvalue_from_numpy(data.x)
        y_value = onnxruntime.OrtValue.ortvalue_from_numpy(y)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x_value)
        binding.bind_ortvalue_output("y", y_value)

        def run() -> np.ndarray:
            session.run_with_iobinding(binding)
            assert x_value is not None
            return y  # both named here, so that their memory lives as long as `run`

        return Prepared(run, run)
