"""MNN: a model of one convolution, converted from ONNX, in a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The converter's compiled part alone: importing MNN.tools would run pip and report
# usage. A model built with MNN.expr has its weights as an input and is slower.
import _tools
import MNN
import numpy as np

from ..shapes import Data, Task
from .base import Engine, Prepared
from .onnx_model import onnx_model

__all__ = ["Mnn"]


class Mnn(Engine):
    """Its session reads and writes tensors of its own; filling them is not timed."""

    name = "mnn"

    def version(self) -> str:
        return f"{MNN.version()}, CPU, precision high, session"

    def prepare(self, task: Task, data: Data) -> Prepared:
        options = {"backend": "CPU", "precision": "high", "numThread": self.threads}
        with _quiet():
            interpreter = _interpreter(task, data)
            session = interpreter.createSession(options)
        x = _tensor(data.x)
        x_session = interpreter.getSessionInput(session)
        x_session.copyFrom(x)

        def run() -> None:
            interpreter.runSession(session)

        def result() -> np.ndarray:
            # the session may have put other values where its input was
            x_session.copyFrom(x)
            run()
            y = interpreter.getSessionOutput(session)
            host = _tensor(np.empty(task.shape.y_shape, np.float32))
            y.copyToHostTensor(host)
            return np.array(host.getNumpyData()).reshape(task.shape.y_shape)

        return Prepared(run, result)


def _tensor(array: np.ndarray) -> MNN.Tensor:
    return MNN.Tensor(
        array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe
    )


def _interpreter(task: Task, data: Data) -> MNN.Interpreter:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "conv.onnx"), Path(folder, "conv.mnn")
        source.write_bytes(onnx_model(task, data))
        options = ["-f", "ONNX", "--modelFile", source, "--MNNModel", target]
        _tools.mnnconvert(["mnnconvert", *map(str, options), "--bizCode", "benchmark"])
        return MNN.Interpreter(str(target))


@contextmanager
def _quiet() -> Iterator[None]:
    """The converter and the sessions print to the process's standard output."""
    saved = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
