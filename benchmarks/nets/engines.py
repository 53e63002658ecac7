"""ONNX Runtime and OpenVINO: inference of a model in ONNX's format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnn_ext.layers import ReLU6
from cnn_ext.model import Model

from .base import Prepared, Runner

__all__ = ["OnnxRuntime", "OpenVino", "onnx_net"]


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _nodes(layer: Any, inputs: list[str], y: str, held: dict[str, str]) -> Iterator:
    """The nodes of one layer; `held` names its arrays."""
    node, kind = helper.make_node, type(layer).__name__
    weights = [held[key] for key in ("weight", "bias") if key in held]
    match kind:
        case "Conv2d":
            yield node(
                "Conv", [*inputs, *weights], [y], strides=_pair(layer.stride),
                pads=_pair(layer.padding) * 2, dilations=_pair(layer.dilation),
                group=layer.groups,
            )  # fmt: skip
        case "BatchNorm2d":
            statistics = [held["running_mean"], held["running_var"]]
            names = [*inputs, *weights, *statistics]
            yield node("BatchNormalization", names, [y], epsilon=layer.eps)
        case "Linear":
            yield node("Gemm", [*inputs, *weights], [y], transB=1)
        case "MaxPool2d" | "AvgPool2d":
            options = {
                "kernel_shape": _pair(layer.kernel_size),
                "strides": _pair(layer.stride or layer.kernel_size),
                "pads": _pair(layer.padding) * 2,
                "ceil_mode": int(layer.ceil_mode),
            }
            operator = "MaxPool" if kind == "MaxPool2d" else "AveragePool"
            yield node(operator, inputs, [y], **options)
        case "GlobalAvgPool":
            yield node("GlobalAveragePool", inputs, [f"{y}_map"])
            yield node("Flatten", [f"{y}_map"], [y])
        case "Flatten":
            yield node("Flatten", inputs, [y])
        case "ReLU":
            yield node("Relu", inputs, [y])
        case "ReLU6":
            yield node("Clip", [*inputs, "zero", "six"], [y])
        case "Add":
            yield node("Add", inputs, [y])
        case _:
            raise NotImplementedError(f"no ONNX operator for {layer!r}")


def onnx_net(model: Model, shape: tuple[int, ...]) -> bytes:
    """Return a float32 model in inference as a serialized ONNX model, x to y."""
    nodes, arrays = [], []
    if any(isinstance(step.layer, ReLU6) for step in model._graph.steps):
        for value, name in ((0, "zero"), (6, "six")):
            arrays.append(numpy_helper.from_array(np.array(value, np.float32), name))
    names = ["x", *(f"v{k}" for k in range(len(model._graph.steps)))]
    names[-1] = "y"
    for k, step in enumerate(model._graph.steps):
        place = model._graph.names[step.layer]
        held = {}
        for key, array in (step.layer.parameters | step.layer.buffers).items():
            held[key] = f"{place}.{key}"
            arrays.append(numpy_helper.from_array(array.value, held[key]))
        inputs = [names[i] for i in step.inputs]
        nodes += _nodes(step.layer, inputs, names[k + 1], held)
    y_shape = (shape[0], *model.output_shape(shape[1:]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)],
        arrays,
    )
    # old enough for every ONNX Runtime of these years
    opset = [helper.make_opsetid("", 17)]
    whole = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(whole)
    return whole.SerializeToString()


class OnnxRuntime(Runner):
    """Graph optimisations as they come; input and output bound beforehand."""

    name = "onnxruntime"

    def version(self) -> str:
        import onnxruntime

        return f"{onnxruntime.__version__}, CPU provider, IO binding"

    def inference(self, model: Model, x: np.ndarray) -> Prepared:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            onnx_net(model, x.shape), options, providers=["CPUExecutionProvider"]
        )
        y = np.empty((len(x), *model.output_shape(x.shape[1:])), np.float32)
        # these share the arrays' memory
        x_value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        y_value = onnxruntime.OrtValue.ortvalue_from_numpy(y)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x_value)
        binding.bind_ortvalue_output("y", y_value)

        def run() -> np.ndarray:
            session.run_with_iobinding(binding)
            assert x is not None and x_value is not None
            return y  # all named here, so that their memory lives as long as `run`

        return Prepared(run, run)


class OpenVino(Runner):
    """Compiled beforehand, float32, tensors shared."""

    name = "openvino"

    def version(self) -> str:
        import openvino

        return f"{openvino.get_version()}, CPU, f32, shared tensors"

    def inference(self, model: Model, x: np.ndarray) -> Prepared:
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(onnx_net(model, x.shape)),
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
        y = np.empty((len(x), *model.output_shape(x.shape[1:])), np.float32)
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(y, shared_memory=True))

        def run() -> np.ndarray:
            request.infer()
            assert x is not None
            return y  # both named here, so that their memory lives as long as `run`

        return Prepared(run, run)
