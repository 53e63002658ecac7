"""A check of gradients against differences, for operators, layers and models.

Random projections, as autograd and PyTorch's fast mode use: one random direction of
the output and one of each argument turn a Jacobian of any size into two numbers, the
derivative by central differences and the derivative that the backward pass claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["GradientError", "GradientReport", "gradcheck"]

Array = np.ndarray[Any, Any]
Pullback = Callable[[Array], Any]


class GradientError(AssertionError):
    """A backward pass does not return the gradient of its forward pass.

    Attributes
    ----------
    argument : str
        The argument with the largest discrepancy.
    discrepancies : dict of str to float
        The relative discrepancy of each argument that was compared.
    """

    def __init__(
        self, message: str, argument: str, discrepancies: dict[str, float]
    ) -> None:
        super().__init__(message)
        self.argument = argument
        self.discrepancies = discrepancies


class GradientReport(NamedTuple):
    """What `gradcheck` found.

    Attributes
    ----------
    discrepancies : dict of str to float
        The largest relative discrepancy of each argument.
    tolerance : float
        What they had to stay below.
    projections : int
        The number of random projections.
    """

    discrepancies: dict[str, float]
    tolerance: float
    projections: int

    @property
    def worst(self) -> str:
        """The argument with the largest discrepancy."""
        return max(self.discrepancies, key=lambda name: self.discrepancies[name])

    def __str__(self) -> str:
        lines = [f"gradients agree to {self.tolerance:g}:"]
        for name, error in self.discrepancies.items():
            lines.append(f"  {name}: {error:.1e}")
        return "\n".join(lines)


def gradcheck(
    function: Any,
    inputs: Any,
    *,
    vjp: Callable[..., Any] | None = None,
    names: Sequence[str] | None = None,
    epsilon: float = 1e-6,
    tolerance: float = 1e-6,
    projections: int = 3,
    seed: int = 0,
) -> GradientReport:
    """Check a backward pass against central differences of its forward pass.

    For a random direction ``u`` of the output and ``v`` of one argument ``a``, the
    claimed ``<vjp(u), v>`` is compared with
    ``<u, f(a + epsilon*v) - f(a - epsilon*v)> / (2*epsilon)``. A single wrong entry,
    a missing factor, a wrong sign or exchanged gradients all show in that number;
    every argument is compared on its own.

    Parameters
    ----------
    function : callable, or object with a method vjp
        One of

        - a function of `inputs` that returns an array; its backward pass is `vjp`;
        - a function of `inputs` that returns ``(y, pullback)``;
        - a model: an object with ``vjp(*inputs) -> (y, pullback)``, where
          ``pullback(grad_y)`` returns ``(grad_x, grads)`` and grads maps the names of
          the parameters to their gradients. The parameters, the ``value`` of each of
          ``named_parameters()``, are checked too, and put back as they were;
        - a `cnn_ext.layers.Layer`, likewise.

        Any other pullback returns the gradients of `inputs`: an array for a single
        input, else a sequence with one for each.
    inputs : array or tuple of arrays
        Where to check. Arguments to differentiate are float64; integer and bool
        arrays (labels, say) and everything that is not an array are constants, and
        what the backward pass returns for these is ignored. Choose values at which
        the function is differentiable: no ties under a maximum, no zeros into a
        ReLU, nor any within about `epsilon` of one.
    vjp : callable, optional
        ``vjp(grad_y, *inputs)`` returns the gradients of `inputs`: an array for a
        single input, else a sequence with one for each. None in place of a gradient
        leaves that argument out.
    names : sequence of str, optional
        Names of `inputs`, for the report; ``input 0`` and so on if None.
    epsilon : float
        The step of the differences.
    tolerance : float
        The largest discrepancy allowed, relative to the Euclidean norm of the terms
        that the derivative is the sum of; or relative to the smallest derivative that
        differences can tell from rounding at this tolerance, if that is larger. With
        the default step, differences are good to about 1e-8 for functions of moderate
        curvature.
    projections : int
        The number of random projections of every argument.
    seed : int or numpy.random.Generator
        Where the random directions come from.

    Returns
    -------
    report : GradientReport
        The discrepancy of each argument.

    Raises
    ------
    GradientError
        If a gradient disagrees, is not finite, is missing or has another shape than
        its argument, or if a pass changes its inputs. The message and the attribute
        `argument` name the argument with the largest discrepancy. It is an
        AssertionError.
    TypeError
        If an argument or a parameter is of another floating dtype than float64, if
        nothing is left to differentiate, or if no backward pass is given.

    Notes
    -----
    Each projection costs two forward passes an argument.

    Examples
    --------
    An operator with its backward:

    >>> import numpy as np
    >>> from cnn_ext import reference
    >>> from cnn_ext.gradcheck import gradcheck
    >>> rng = np.random.default_rng(0)
    >>> x, weight = rng.normal(size=(2, 3, 8, 8)), rng.normal(size=(4, 3, 3, 3))
    >>> def backward(grad_y, x, weight):
    ...     return (
    ...         reference.conv2d_backward_input(grad_y, weight, x.shape, padding=1),
    ...         reference.conv2d_backward_weight(grad_y, x, weight.shape, padding=1),
    ...     )
    >>> def forward(x, weight):
    ...     return reference.conv2d(x, weight, padding=1)
    >>> report = gradcheck(forward, (x, weight), vjp=backward, names=["x", "weight"])
    >>> max(report.discrepancies.values()) < 1e-6
    True

    A function that returns its own pullback, and a wrong one:

    >>> report = gradcheck(lambda x: (x**2, lambda grad_y: 2 * x * grad_y), x)
    >>> gradcheck(lambda x: (x**2, lambda grad_y: x * grad_y), x)
    Traceback (most recent call last):
        ...
    cnn_ext.gradcheck.GradientError: the gradient of input 0 is wrong: ...
    """
    values = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    subject = _Subject(function, values, vjp, names)
    rng = np.random.default_rng(seed)
    before = [argument.value.copy() for argument in subject.arguments]
    worst: dict[str, tuple[float, float, float]] = {}
    for _ in range(projections):
        y, grad_y, gradients = subject.project(rng)
        least = _rounding(y, grad_y, epsilon) / tolerance
        for i, argument in enumerate(subject.arguments):
            if not np.array_equal(before[i], argument.value, equal_nan=True):
                name = argument.name
                raise GradientError(f"{name} was changed by a pass over it", name, {})
        for argument, gradient in zip(subject.arguments, gradients, strict=True):
            if gradient is None:
                continue
            found = _compare(subject, argument, gradient, grad_y, epsilon, least, rng)
            if argument.name not in worst or found[0] > worst[argument.name][0]:
                worst[argument.name] = found
    discrepancies = {name: found[0] for name, found in worst.items()}
    if not discrepancies:
        raise TypeError("nothing to check: the backward pass returned no gradient")
    report = GradientReport(discrepancies, tolerance, projections)
    name = report.worst
    error, numeric, claimed = worst[name]
    if error > tolerance:
        wrong = [other for other, e in discrepancies.items() if e > tolerance]
        others = ", ".join(other for other in wrong if other != name)
        raise GradientError(
            f"the gradient of {name} is wrong: along a random direction the backward "
            f"pass claims {claimed:.10g}, differences say {numeric:.10g} (discrepancy "
            f"{error:.1e}, tolerance {tolerance:g})"
            + (f"; also wrong: {others}" if others else ""),
            name,
            discrepancies,
        )
    return report


class _Argument(NamedTuple):
    """An array to differentiate by; steps are taken in place."""

    name: str
    value: Array


class _Subject:
    """The function under test, with one way to call whatever kind it is."""

    def __init__(
        self,
        function: Any,
        inputs: list[Any],
        vjp: Callable[..., Any] | None,
        names: Sequence[str] | None,
    ) -> None:
        if names is None:
            names = [f"input {i}" for i in range(len(inputs))]
        if len(names) != len(inputs):
            raise ValueError(f"names must name {len(inputs)} inputs, got {names!r}")
        parameters: list[tuple[str, Any]] = []
        self.layer = False
        self.call = function
        if vjp is None and hasattr(function, "vjp"):
            self.layer, self.call = True, function.vjp
            if hasattr(function, "named_parameters"):
                parameters = list(function.named_parameters())
        elif vjp is None and hasattr(function, "backward"):
            self.layer, self.call = True, _vjp_of_layer(function)
            parameters = list(function.parameters.items())
        self.vjp = vjp
        # private copies, so that adding a step in place reaches nobody else's arrays
        self.inputs = [
            value.copy() if isinstance(value, np.ndarray) else value for value in inputs
        ]
        self.places: list[int] = []
        self.arguments: list[_Argument] = []
        for i, value in enumerate(self.inputs):
            if _is_variable(value, names[i]):
                self.places.append(i)
                self.arguments.append(_Argument(names[i], value))
        self.parameters: list[str] = []
        for name, parameter in parameters:
            if _is_variable(parameter.value, name):
                self.parameters.append(name)
                self.arguments.append(_Argument(name, parameter.value))
        if not self.arguments:
            raise TypeError("nothing to check: no input is a float64 array")

    def forward(self) -> Array:
        """Return the output for the present values."""
        result = self.call(*self.inputs)
        return np.array(result if self.vjp is not None else self._split(result)[0])

    def project(
        self, rng: np.random.Generator
    ) -> tuple[Array, Array, list[Array | None]]:
        """Return the output, a random direction of it, and the gradients along it."""
        result = self.call(*self.inputs)
        pullback: Pullback
        if self.vjp is None:
            y, pullback = self._split(result)
        else:
            vjp, y = self.vjp, result
            pullback = lambda grad_y: vjp(grad_y, *self.inputs)  # noqa: E731
        y = np.asarray(y)
        if y.dtype != np.float64:
            raise TypeError(f"the function must return float64, got {y.dtype}")
        if not np.isfinite(y).all():
            raise ValueError("the function is not finite at the inputs")
        direction = np.asarray(rng.standard_normal(y.shape))
        gradients = self._gradients(pullback(direction.copy()))
        for argument, gradient in zip(self.arguments, gradients, strict=True):
            if gradient is not None:
                _check_gradient(argument, gradient)
        return y, direction, gradients

    @staticmethod
    def _split(result: Any) -> tuple[Any, Pullback]:
        if isinstance(result, tuple) and len(result) == 2 and callable(result[1]):
            return result
        raise TypeError(
            "no backward pass: give vjp, or a function that returns (y, pullback)"
        )

    def _gradients(self, returned: Any) -> list[Array | None]:
        """Return what a pullback returned as one gradient for each argument."""
        grads: list[Any] = []
        if self.layer:
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise TypeError(
                    "the pullback of a layer must return (grad_x, grads), "
                    f"got {type(returned).__name__}"
                )
            returned, by_name = returned
            if not isinstance(by_name, Mapping):
                raise TypeError(
                    "the gradients of the parameters must be a mapping of names to "
                    f"arrays, got {type(by_name).__name__}"
                )
            for name in self.parameters:
                if by_name.get(name) is None:
                    raise GradientError(f"{name} has no gradient", name, {})
                grads.append(by_name[name])
        if not isinstance(returned, (tuple, list)):
            returned = [returned]
        if len(returned) != len(self.inputs):
            raise TypeError(
                f"the backward pass returned {len(returned)} gradients for "
                f"{len(self.inputs)} inputs"
            )
        chosen = [returned[i] for i in self.places] + grads
        return [None if grad is None else np.asarray(grad) for grad in chosen]


def _vjp_of_layer(layer: Any) -> Callable[..., Any]:
    """Return a layer's forward and backward as a function to (y, pullback)."""

    def vjp(*inputs: Any) -> tuple[Any, Pullback]:
        x = inputs if layer.joins else inputs[0]
        y, saved = layer.forward(x, train=True)
        return y, lambda grad_y: layer.backward(grad_y, saved)

    return vjp


def _is_variable(value: Any, name: str) -> bool:
    """Return whether to differentiate by `value`; refuse what is too coarse for it."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
        return False
    if value.dtype != np.float64:
        raise TypeError(
            f"{name} must be float64, for differences are too coarse in others, "
            f"got {value.dtype}"
        )
    return True


def _check_gradient(argument: _Argument, gradient: Array) -> None:
    name = argument.name
    if gradient.shape != argument.value.shape:
        raise GradientError(
            f"the gradient of {name} has shape {gradient.shape}, "
            f"{name} itself {argument.value.shape}",
            name,
            {name: np.inf},
        )
    if not np.isfinite(gradient).all():
        raise GradientError(
            f"the gradient of {name} is not finite", name, {name: np.inf}
        )


def _rounding(y: Array, grad_y: Array, epsilon: float) -> float:
    """Return what rounding of y can do to a derivative by differences."""
    last_place = float(np.finfo(np.float64).eps)
    return 8 * last_place * float(np.linalg.norm((y * grad_y).ravel())) / epsilon


def _compare(
    subject: _Subject,
    argument: _Argument,
    gradient: Array,
    grad_y: Array,
    epsilon: float,
    least: float,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """Return (discrepancy, derivative by differences, claimed derivative)."""
    value = argument.value
    direction = rng.standard_normal(value.shape)
    saved = value.copy()
    try:
        value[...] = saved + epsilon * direction
        above = subject.forward()
        value[...] = saved - epsilon * direction
        below = subject.forward()
    finally:
        value[...] = saved
    # The norm of the terms is the yardstick of their sum: of random signs, they add up
    # to about as much, and a sum that happens to be nearly zero has their errors.
    claimed = (gradient * direction).ravel()
    numeric = (grad_y * (above - below)).ravel() / (2 * epsilon)
    difference = abs(claimed.sum() - numeric.sum())
    scale = max(np.linalg.norm(claimed), np.linalg.norm(numeric), least)
    error = float(difference / scale) if difference else 0.0
    if not np.isfinite(numeric).all():
        error = np.inf
    return error, float(numeric.sum()), float(claimed.sum())
