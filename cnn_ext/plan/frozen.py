"""A model for inference on one shape, its weights folded and packed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_ext.plan import Plan
from cnn_ext.plan.run import Idle

if TYPE_CHECKING:
    from cnn_ext.model import Model

__all__ = ["FrozenModel"]


class FrozenModel:
    """What `cnn_ext.Model.freeze` returns: a function from a batch to the output.

    Several threads may call it at once.

    Attributes
    ----------
    shape : tuple of int
        Shape of the batches that it takes.
    dtype : numpy.dtype
    plan : Plan
        Its steps and their memory; the packed weights come on top.
    """

    def __init__(self, model: Model, shape: tuple[int, ...], dtype: Any) -> None:
        self._idle = Idle()
        copy = model.copy()
        self.plan = Plan(copy, shape, dtype, False, frozen=True, idle=self._idle)
        self.shape, self.dtype = self.plan.shape, self.plan.dtype

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the output for a batch.

        Parameters
        ----------
        x : numpy.ndarray
            Of `shape` and `dtype`, in any memory order.

        Raises
        ------
        TypeError, ValueError
            If x is something else.
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a numpy array, got {type(x).__name__}")
        run = self.plan.start(x)
        y = run.y.copy()
        run.close()
        return y

    def __repr__(self) -> str:
        return f"FrozenModel({self.shape}, {self.dtype})"
