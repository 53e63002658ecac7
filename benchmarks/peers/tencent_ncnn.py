"""ncnn: a network of one convolution, weights transformed when it is loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ncnn
import numpy as np

from ..shapes import Data, Task
from .base import Engine, Prepared

__all__ = ["Ncnn"]


class Ncnn(Engine):
    """The batch goes in as one Mat where this version can, else image by image."""

    name = "ncnn"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._batches = hasattr(ncnn.Mat, "batch")

    def version(self) -> str:
        how = "batched" if self._batches else "image by image"
        return f"{ncnn.__version__}, CPU, float32, {how}"

    def prepare(self, task: Task, data: Data) -> Prepared:
        net = _net(task, data, self.threads)
        # Results come from pools, not from fresh pages. A pool must outlive every
        # Mat made in it: `run` keeps the pools, and lets no Mat out. The inputs are
        # views of the data, which it keeps, too.
        pools = ncnn.PoolAllocator(), ncnn.PoolAllocator()
        net.opt.blob_allocator, net.opt.workspace_allocator = pools
        if self._batches:
            inputs = [ncnn.Mat(data.x, 0)]
        else:
            inputs = [ncnn.Mat(image) for image in data.x]

        def extract(image: ncnn.Mat) -> ncnn.Mat:
            assert pools and data
            extractor = net.create_extractor()
            extractor.input("x", image)
            return extractor.extract("y")[1]

        def run() -> None:
            for image in inputs:
                extract(image)

        def result() -> np.ndarray:
            y = np.empty(task.shape.y_shape, np.float32)
            if self._batches:
                whole = extract(inputs[0])
                for i, image in enumerate(y):
                    image[...] = np.array(whole.batch(i))
            else:
                for image, target in zip(inputs, y, strict=True):
                    target[...] = np.array(extract(image))
            return y

        return Prepared(run, result)


def _net(task: Task, data: Data, threads: int) -> ncnn.Net:
    s = task.shape
    net = ncnn.Net()
    net.opt.num_threads = threads
    for option in ("fp16_arithmetic", "fp16_packed", "fp16_storage", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    kind = "Convolution" if s.groups == 1 else "ConvolutionDepthWise"
    options = {
        0: s.k, 1: s.s, 11: s.r, 2: s.dilation, 12: s.dilation, 3: s.stride,
        13: s.stride, 4: s.pad_w, 14: s.pad_h, 5: 0, 6: data.weight.size,
    }  # fmt: skip
    if s.groups > 1:
        options[7] = s.groups
    text = " ".join(f"{key}={value}" for key, value in options.items())
    with tempfile.TemporaryDirectory() as folder:
        param, weights = Path(folder, "conv.param"), Path(folder, "conv.bin")
        param.write_text(f"7767517\n2 2\nInput x 0 1 x\n{kind} y 1 1 x y {text}\n")
        # four zero bytes say that float32 weights follow
        weights.write_bytes(bytes(4) + data.weight.tobytes())
        if net.load_param(str(param)) or net.load_model(str(weights)):
            raise RuntimeError("ncnn does not load its model of one convolution")
    return net
