"""An ONNX model of one convolution, for the engines that read ONNX."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from ..shapes import Data, Task

__all__ = ["onnx_model"]


def onnx_model(task: Task, data: Data) -> bytes:
    """Return a serialized ONNX model, ``y = Conv(x, weight)``, of the task's shape."""
    s = task.shape
    conv = helper.make_node(
        "Conv",
        ["x", "weight"],
        ["y"],
        kernel_shape=[s.r, s.s],
        strides=[s.stride] * 2,
        pads=[*s.padding, *s.padding],
        dilations=[s.dilation] * 2,
        group=s.groups,
    )
    graph = helper.make_graph(
        [conv],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, s.x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, s.y_shape)],
        [numpy_helper.from_array(data.weight, "weight")],
    )
    # old enough for every ONNX Runtime of these years
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
