"""What commands say and want to know about a network."""

from __future__ import annotations

from cnn_ext.cli._console import say
from cnn_ext.data import DataError, Dataset
from cnn_ext.model import Model
from cnn_ext.training import evaluate

__all__ = ["class_names", "report"]


def report(model: Model, dataset: Dataset) -> None:
    _, accuracy = evaluate(model, dataset.test)
    total = len(dataset.x_test)
    say(
        f"test accuracy {100 * accuracy:.2f} % "
        f"({round(accuracy * total)} of {total} held-out images)"
    )


def class_names(model: Model, path: str) -> tuple[str, ...] | None:
    """Names that train stored; the file need not be ours, so they are checked."""
    names = model.metadata.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: its class_names are not a list of names")
    return tuple(names)
