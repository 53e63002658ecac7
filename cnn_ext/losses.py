"""Losses: the value and, in the same call, the error that goes back into the net."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from cnn_ext import _softmax

__all__ = ["BCEWithLogits", "CrossEntropy", "Huber", "Loss", "SquaredError"]


class Loss(ABC):
    """A function of a model's output and the targets, and its gradient.

    ``loss(y, target)`` returns ``(value, grad_y)``. `reduction` says how the values of
    the samples become one; `divisor` is what a mean divides by, so that the means of
    several batches can be combined: ``sum(value * divisor) / sum(divisor)``.
    """

    reductions: tuple[str, ...] = ("mean", "sum", "none")

    def __init__(self, reduction: str) -> None:
        if reduction not in self.reductions:
            raise ValueError(
                f"reduction must be one of {', '.join(self.reductions)}, "
                f"got {reduction!r}"
            )
        self.reduction = reduction

    @abstractmethod
    def __call__(self, y: np.ndarray, target: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return the loss and its gradient with respect to y."""

    @abstractmethod
    def check(self, y_shape: tuple[int, ...], target: np.ndarray) -> None:
        """Raise ValueError or TypeError where targets do not fit outputs."""

    @abstractmethod
    def divisor(self, y_shape: tuple[int, ...], target: np.ndarray) -> float:
        """Return what the value was divided by; 1 where it was not."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class CrossEntropy(Loss):
    """Softmax and the negative log-likelihood of the right class, in one.

    ``loss_n = -sum_k q_nk log softmax(y_n)_k`` where q_n is 1 at the label, or with
    smoothing e: ``(1 - e) + e/K`` there and ``e/K`` at each other of the K classes.
    For the plain loss ``grad_y = (softmax(y) - q) / N``.

    Parameters
    ----------
    weight : array of shape (K,), optional
        Weight of each class; the mean divides by the sum of the labels' weights.
    label_smoothing : float, default 0
        e, from 0 to 1.
    ignore_index : int, default -100
        A label that stands for "none": the sample has no loss and no gradient.
    reduction : {"mean", "sum", "none"}
        "none" gives one value a sample, and the gradient of their sum.

    Notes
    -----
    As PyTorch's. The mean over no labels at all is NaN, its gradient 0.
    """

    def __init__(
        self,
        weight: Any = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        if weight is not None:
            weight = np.array(weight, dtype=np.float64)
            if weight.ndim != 1 or not (np.isfinite(weight) & (weight >= 0)).all():
                raise ValueError(
                    "weight must be one finite, non-negative number a class, "
                    f"got shape {weight.shape}, values {weight}"
                )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")
        self.class_weight = weight
        self.label_smoothing = float(label_smoothing)
        self.ignore_index = int(ignore_index)

    def __call__(self, y: np.ndarray, target: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return the loss and its gradient.

        Parameters
        ----------
        y : numpy.ndarray
            Logits, (N, K) or (N, K, ...), float32 or float64.
        target : numpy.ndarray
            Integer labels, (N,) or (N, ...), from 0 to K - 1, or `ignore_index`.

        Returns
        -------
        loss : float, or numpy.ndarray of target's shape with reduction "none"
        grad_y : numpy.ndarray
            Like y.
        """
        _check_output(y)
        # the compiled pass tells whether labels are in range; all else is checked here
        if not self._fits(y.shape, target):
            self.check(y.shape, target)
        classes = y.shape[1]
        rows = np.ascontiguousarray(y if y.ndim == 2 else np.moveaxis(y, 1, -1))
        grads = np.empty_like(rows)
        losses = np.empty(target.shape, y.dtype)
        sums = _softmax.cross_entropy(
            rows.reshape(-1, classes),
            np.ascontiguousarray(target, np.int64).reshape(-1),
            self.class_weight,
            self.label_smoothing,
            self.ignore_index,
            self.reduction == "mean",
            grads.reshape(-1, classes),
            losses,
        )
        if sums is None:
            self.check(y.shape, target)  # says which label is wrong
        assert sums is not None
        if y.ndim == 2:
            grad_y = grads
        else:
            grad_y = np.empty_like(y)
            grad_y[...] = np.moveaxis(grads, -1, 1)
        if self.reduction == "none":
            return losses, grad_y
        value, count = sums
        if self.reduction == "mean":
            value = value / count if count else float("nan")
        return value, grad_y

    def _fits(self, y_shape: tuple[int, ...], target: Any) -> bool:
        """Whether shapes and dtypes do, found out in little time."""
        return (
            isinstance(target, np.ndarray)
            and target.dtype.kind in "iu"
            and target.dtype != np.uint64  # of which int64 would make other numbers
            and len(y_shape) > 1
            and target.shape == (y_shape[0], *y_shape[2:])
            and (self.class_weight is None or len(self.class_weight) == y_shape[1])
        )

    def divisor(self, y_shape: tuple[int, ...], target: np.ndarray) -> float:
        if self.reduction != "mean":
            return 1.0
        counted = target != self.ignore_index
        if self.class_weight is None:
            return float(np.count_nonzero(counted))
        return float(self.class_weight[target[counted]].sum())

    def check(self, y_shape: tuple[int, ...], target: np.ndarray) -> None:
        if len(y_shape) < 2:
            raise ValueError(f"y must have shape (N, classes, ...), got {y_shape}")
        n, classes, *rest = y_shape
        if self.class_weight is not None and len(self.class_weight) != classes:
            raise ValueError(
                f"weight has {len(self.class_weight)} classes, the output has {classes}"
            )
        check_labels(target, (n, *rest), classes, self.ignore_index)


class _Elementwise(Loss):
    """A loss that is a sum over the outputs, each with its own target."""

    #: What integer labels (N,) stand for where the output is (N, K).
    on, off = 1.0, 0.0

    @abstractmethod
    def _of_elements(
        self, y: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss of each element, and the gradient of their sum, both new."""

    def __call__(self, y: np.ndarray, target: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return the loss and its gradient.

        Parameters
        ----------
        y : numpy.ndarray
            Outputs, float32 or float64, of any shape with a batch axis.
        target : numpy.ndarray
            Like y, or integer labels (N,) where y is (N, K).

        Returns
        -------
        loss : float, or numpy.ndarray of y's shape with reduction "none"
        grad_y : numpy.ndarray
            Like y.
        """
        _check_output(y)
        self.check(y.shape, target)
        if _are_labels(y.shape, target):
            codes = np.full(y.shape, self.off, dtype=y.dtype)
            np.put_along_axis(codes, target[:, np.newaxis], self.on, axis=1)
            target = codes
        elif target.dtype != y.dtype:
            raise TypeError(f"target is {target.dtype}, the output is {y.dtype}")
        losses, grad_y = self._of_elements(y, target)
        if self.reduction == "none":
            return losses, grad_y
        count = self.divisor(y.shape, target)
        value = float(losses.sum(dtype=np.float64))
        value = value / count if count else float("nan")
        grad_y *= 1 / count if count else 0.0
        return value, grad_y

    def divisor(self, y_shape: tuple[int, ...], target: np.ndarray) -> float:
        if self.reduction == "batch":
            return float(y_shape[0])
        return float(np.prod(y_shape)) if self.reduction == "mean" else 1.0

    def check(self, y_shape: tuple[int, ...], target: np.ndarray) -> None:
        if not y_shape:
            raise ValueError("y must have a batch axis, got shape ()")
        if _are_labels(y_shape, target):
            check_labels(target, y_shape[:1], y_shape[1], None)
            return
        _check_array(target)
        if target.dtype not in (np.float32, np.float64):
            raise TypeError(
                f"target must be float, like the output, got {target.dtype} of shape "
                f"{target.shape} for outputs {y_shape}"
            )
        if target.shape != y_shape:
            raise ValueError(
                f"target has shape {target.shape}, the output has {y_shape}"
            )
        if not np.isfinite(target).all():
            raise ValueError(
                f"target contains {_first_not_finite(target)}; targets must be finite"
            )


class SquaredError(_Elementwise):
    """Half the squared distance to the targets, ``0.5 * sum((t - y)^2) / N``.

    ``grad_y = (y - t) / N``.

    Parameters
    ----------
    reduction : {"batch", "mean", "sum", "none"}
        "batch" divides by N, the number of samples; "mean" by the number of elements;
        "none" gives one value an element, and the gradient of their sum.
    on, off : float, default 1 and 0
        Integer labels (N,) stand for targets (N, K): `on` at the label, `off`
        elsewhere. For units that end in a tanh, 1 and -1.
    """

    reductions = ("batch", "mean", "sum", "none")

    def __init__(
        self, reduction: str = "batch", *, on: float = 1.0, off: float = 0.0
    ) -> None:
        super().__init__(reduction)
        self.on, self.off = float(on), float(off)

    def _of_elements(self, y, target):
        grad_y = y - target
        losses = grad_y * grad_y
        losses *= 0.5
        return losses, grad_y


class Huber(_Elementwise):
    """``0.5 * d^2`` for a distance d up to `delta`, ``delta * (|d| - delta/2)`` beyond.

    ``grad_y = clip(y - t, -delta, delta)``: an outlier pulls no harder than delta.

    Parameters
    ----------
    delta : float, default 1
        Above 0.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of elements; "none" gives one value an element,
        and the gradient of their sum.

    Notes
    -----
    As PyTorch's ``HuberLoss``.

    References
    ----------
    P. Huber, "Robust estimation of a location parameter", Annals of Mathematical
    Statistics 35, 1964.
    """

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not 0 < delta < float("inf"):
            raise ValueError(f"delta must be above 0 and finite, got {delta!r}")
        self.delta = float(delta)

    def _of_elements(self, y, target):
        losses = y - target
        grad_y = np.clip(losses, -self.delta, self.delta)
        # with g the clipped d: g * (d - g/2), both cases in one
        losses -= 0.5 * grad_y
        losses *= grad_y
        return losses, grad_y


class BCEWithLogits(_Elementwise):
    """Sigmoid and binary cross-entropy in one, for yes-or-no outputs.

    ``loss = -(w * t * log s + (1 - t) * log(1 - s))`` with s = sigmoid(y) and w the
    `pos_weight`; for w = 1 ``grad_y = (s - t) / (number of elements)``.

    Parameters
    ----------
    pos_weight : float or array that broadcasts to the outputs, optional
        Weight of the yes, e.g. the ratio of no to yes in the data.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of elements; "none" gives one value an element,
        and the gradient of their sum.

    Notes
    -----
    As PyTorch's ``BCEWithLogitsLoss``. Targets lie from 0 to 1. Large logits do not
    overflow.
    """

    def __init__(self, pos_weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if pos_weight is not None:
            pos_weight = np.asarray(pos_weight, dtype=np.float64)
            if not (np.isfinite(pos_weight) & (pos_weight >= 0)).all():
                raise ValueError(
                    f"pos_weight must be finite and not negative, got {pos_weight}"
                )
        self.pos_weight = pos_weight

    def _of_elements(self, y, target):
        decay = np.exp(-np.abs(y))  # at most 1: cannot overflow
        softplus = np.log1p(decay)
        # log(1 + exp(-y)), and sigmoid(y), for either sign of y
        softplus += np.maximum(-y, 0)
        sigmoid = np.where(y >= 0, y.dtype.type(1), decay)
        sigmoid /= 1 + decay
        against = 1 - target
        # w t softplus(-y) + (1 - t) (y + softplus(-y)): softplus(-y) stands there
        # w t + 1 - t times
        if self.pos_weight is None:
            share = y.dtype.type(1)
        else:
            share = against + target * self.pos_weight.astype(y.dtype)
        losses = softplus
        losses *= share
        losses += against * y
        # d/dy of share * softplus(-y) + against * y
        grad_y = sigmoid
        grad_y -= 1
        grad_y *= share
        grad_y += against
        return losses, grad_y

    def check(self, y_shape: tuple[int, ...], target: np.ndarray) -> None:
        super().check(y_shape, target)
        if target.dtype.kind == "f":
            wrong = (target < 0) | (target > 1)
            if wrong.any():
                raise ValueError(
                    f"target contains {target[wrong].flat[0]} at index "
                    f"{_index(wrong)}; targets must lie in 0..1"
                )
        if self.pos_weight is not None:
            try:
                fits = np.broadcast_shapes(self.pos_weight.shape, y_shape) == y_shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"pos_weight has shape {self.pos_weight.shape}, which does not "
                    f"broadcast to the output's {y_shape}"
                )


def check_labels(
    target: np.ndarray,
    shape: tuple[int, ...],
    classes: int,
    ignore_index: int | None,
) -> None:
    """Raise ValueError or TypeError unless target holds integer labels.

    Parameters
    ----------
    target : numpy.ndarray
        Integers of `shape`, each from 0 to ``classes - 1`` or `ignore_index`.
    """
    _check_array(target)
    if target.dtype.kind == "f" and np.isnan(target).any():
        raise ValueError(
            f"labels contain NaN, first at index {_index(np.isnan(target))}; "
            "labels must be integers"
        )
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"labels must be integers, got {target.dtype}; "
            "convert with labels.astype(numpy.int64)"
        )
    if target.shape != shape:
        hint = ""
        if target.ndim == len(shape) + 1 and target.shape[1:2] == (classes,):
            hint = "; labels are class numbers, not one-hot: labels.argmax(axis=1)"
        raise ValueError(f"labels must have shape {shape}, got {target.shape}{hint}")
    wrong = (target < 0) | (target >= classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        place = _index(wrong)
        at = place if isinstance(place, tuple) else (place,)
        raise ValueError(
            f"label {target[at]} at index {place} is out of range: with {classes} "
            f"classes labels lie in 0..{classes - 1}"
        )


def _are_labels(y_shape: tuple[int, ...], target: Any) -> bool:
    """Whether target is one integer a sample where the output has several numbers."""
    return (
        isinstance(target, np.ndarray)
        and target.dtype.kind in "iu"
        and target.ndim == 1
        and len(y_shape) == 2
    )


def _check_output(y: Any) -> None:
    if not isinstance(y, np.ndarray) or y.dtype not in (np.float32, np.float64):
        kind = y.dtype if isinstance(y, np.ndarray) else type(y).__name__
        raise TypeError(f"y must be a float32 or float64 array, got {kind}")


def _check_array(target: Any) -> None:
    if not isinstance(target, np.ndarray):
        raise TypeError(f"labels must be a numpy array, got {type(target).__name__}")


def _index(mask: np.ndarray) -> int | tuple[int, ...]:
    """Return where a mask is first true."""
    place = tuple(int(i) for i in np.argwhere(mask)[0])
    return place[0] if len(place) == 1 else place


def _first_not_finite(array: np.ndarray) -> str:
    wrong = ~np.isfinite(array)
    place = _index(wrong)
    at = place if isinstance(place, tuple) else (place,)
    return f"{array[at]} at index {place}"
