"""Whole networks of the zoo, run by us and by others from the same weights."""

from __future__ import annotations

from importlib import import_module

from .base import CASES, Case, Prepared, Runner

__all__ = ["CASES", "NAMES", "Case", "Prepared", "Runner", "load"]

_RUNNERS = {
    "cnn_ext": ("ours", "Ours"),
    "torch eager": ("pytorch", "Eager"),
    "torch channels-last": ("pytorch", "ChannelsLast"),
    "torch compiled": ("pytorch", "Compiled"),
    "onnxruntime": ("engines", "OnnxRuntime"),
    "openvino": ("engines", "OpenVino"),
}
NAMES = tuple(_RUNNERS)


def load(name: str, threads: int) -> Runner:
    """Return what runs nets by this name.

    Raises
    ------
    ImportError
        If its library is not installed.
    """
    module, runner = _RUNNERS[name]
    return getattr(import_module(f".{module}", __name__), runner)(threads)
