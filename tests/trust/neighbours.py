"""In one process with other numerical libraries, imported before or after.

Usage, from the folder tests: python -m trust.neighbours NAME... with cnn_ext among them
"""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def use(name: str) -> None:
    """Make a library start its threads."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((200, 200))
    if name == "numpy":
        assert np.isfinite(a @ a).all()
    elif name == "torch":
        import torch

        t = torch.from_numpy(a).float()[None, None]
        y = torch.nn.functional.conv2d(t, t[:, :, :5, :5])
        assert bool(torch.isfinite(y).all())
    elif name == "sklearn":
        from sklearn.ensemble import HistGradientBoostingClassifier

        model = HistGradientBoostingClassifier(max_iter=1)
        assert model.fit(a, a[:, 0] > 0).score(a, a[:, 0] > 0) > 0.5
    elif name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(product(a.astype("f")), options)
        assert np.isfinite(session.run(None, {"x": a.astype("f")})[0]).all()
    elif name == "cnn_ext":
        from trust.children import work

        DIGESTS.append(work())


def product(weight: Any) -> bytes:
    """Return an ONNX model, y = x @ weight: a few protocol buffers."""

    def field(number: int, value: Any) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3]) + varint(value)
        value = value.encode() if isinstance(value, str) else value
        return bytes([number << 3 | 2]) + varint(len(value)) + value

    def varint(value: int) -> bytes:
        low = value & 127
        return bytes([low]) if value < 128 else bytes([low | 128]) + varint(value >> 7)

    def of_type(name: str) -> bytes:
        sizes = b"".join(field(1, field(1, size)) for size in weight.shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))

    sizes = b"".join(field(1, size) for size in weight.shape)
    tensor = sizes + field(2, 1) + field(8, "w") + field(9, weight.tobytes())
    node = field(1, "x") + field(1, "w") + field(2, "y") + field(4, "MatMul")
    graph = field(1, node) + field(2, "g") + field(5, tensor)
    graph += field(11, of_type("x")) + field(12, of_type("y"))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


DIGESTS: list[str] = []


def main(names: list[str]) -> None:
    for name in names:
        importlib.import_module(name)
    for name in names * 2:
        use(name)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(use, names))
    assert len(set(DIGESTS)) == 1, DIGESTS
    print(DIGESTS[0])


if __name__ == "__main__":
    main(sys.argv[1:])
