"""The curves of a training run as a picture."""

from __future__ import annotations

import os
from typing import Any

from cnn_ext.callbacks import History

__all__ = ["draw"]


def draw(history: History, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw losses and accuracy over the epochs.

    Parameters
    ----------
    history : History
    path : path
        Its ending says what is written: .svg, .png, .pdf.
    title : str, optional

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    try:
        # not pyplot: that would look for a screen
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing needs matplotlib: pip install 'cnn_ext[plot]'"
        ) from error
    figure: Any = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = range(1, len(history) + 1)
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss", title=title)
    axes.plot(epochs, history.train_loss, ".-", label="training loss")
    if history.validation_loss:
        axes.plot(epochs, history.validation_loss, ".-", label="validation loss")
        right = axes.twinx()
        right.set_ylabel("accuracy, %")
        percent = [100 * value for value in history.validation_accuracy]
        right.plot(epochs, percent, ".-", color="tab:green", label="accuracy")
        right.legend(loc="center right")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    figure.savefig(path)
