"""Side by side with what a user would pick instead.

``python -m benchmarks.ops``
    Every operator and pass against PyTorch, ONNX Runtime, OpenVINO, MNN and ncnn.
``python -m benchmarks.train``
    Nets of the zoo: a training step and an inference against PyTorch (eager,
    channels-last, compiled), ONNX Runtime and OpenVINO.
``python -m benchmarks.small``
    What a tiny call costs from Python, the first call, and the import.
``python -m benchmarks.neighbour``
    Two threads while another process keeps one core busy.
``python -m benchmarks.memory``
    Scratch memory and resident memory over 1,000 shapes.

All of them take ``--help``. Peers are the extra ``bench``; one that is not installed
is named and left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def _prefer_built_package() -> None:
    """Let an installed cnn_ext win over sources that lie here without being built."""
    built = any(
        path.suffix in (".so", ".pyd")
        for path in (_ROOT / "cnn_ext").glob("_runtime.*")
    )
    if not built and "cnn_ext" not in sys.modules:
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _ROOT]


_prefer_built_package()
