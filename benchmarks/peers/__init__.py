"""What we are compared with: one small adapter a file, all behind `base.Peer`."""

from __future__ import annotations

from importlib import import_module

from .base import Peer, Prepared

__all__ = ["NAMES", "Peer", "Prepared", "load"]

_ADAPTERS = {
    "torch": ("pytorch", "PyTorch"),
    "onnxruntime": ("onnx_runtime", "OnnxRuntime"),
    "openvino": ("open_vino", "OpenVino"),
    "mnn": ("mnn", "Mnn"),
    "ncnn": ("tencent_ncnn", "Ncnn"),
}
NAMES = tuple(_ADAPTERS)


def load(name: str, threads: int) -> Peer:
    """Return the adapter of a peer.

    Raises
    ------
    ValueError
        If there is no adapter of that name.
    ImportError
        If the peer is not installed.
    """
    if name not in _ADAPTERS:
        raise ValueError(f"peer must be one of {', '.join(NAMES)}, got {name!r}")
    module, adapter = _ADAPTERS[name]
    return getattr(import_module(f".{module}", __name__), adapter)(threads)
