"""What a layer is, and how layers become a graph.

A layer is two pure functions and a rule. `forward` returns its output and whatever
its backward will need; `backward` turns the gradient of the loss with respect to the
output into the gradients with respect to the input and the parameters (one
vector-Jacobian product); `output_shape` is the arithmetic of sizes. Because nothing
of a pass is kept in the layer, one layer may stand in several places of a graph, and
several threads may run one model.

Calling a layer on a `Node` instead of an array records the call: so graphs are built.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from cnn_ext._geometry import checked_size

__all__ = ["Buffer", "Input", "Layer", "Node", "Parameter"]

Shape = tuple[int, ...]

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Parameter:
    """An array that training changes, and its gradient.

    Attributes
    ----------
    value : numpy.ndarray
        float32 or float64; optimisers change it in place.
    grad : numpy.ndarray or None
        Gradient of the loss with respect to `value`, of the same shape, as the last
        backward pass of a model set it; None before the first.
    lr_scale : float
        Factor on the optimiser's learning rate for this parameter, 1 at first; 0
        leaves it as it is. `Model.set_lr_scale` sets it for whole layers.
    """

    __slots__ = ("__weakref__", "grad", "lr_scale", "value")

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.grad: np.ndarray | None = None
        self.lr_scale = 1.0

    @property
    def shape(self) -> Shape:
        """Shape of `value`."""
        return self.value.shape

    @property
    def size(self) -> int:
        """Number of elements of `value`."""
        return self.value.size

    def __repr__(self) -> str:
        return f"Parameter({self.value.dtype}, shape {self.value.shape})"


class Buffer:
    """An array that belongs to a layer, is saved with it, and has no gradient.

    Batch normalisation keeps its running mean in one.

    Attributes
    ----------
    value : numpy.ndarray
        float32 or float64, as the layer's parameters.
    """

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    @property
    def shape(self) -> Shape:
        """Shape of `value`."""
        return self.value.shape

    def __repr__(self) -> str:
        return f"Buffer({self.value.dtype}, shape {self.value.shape})"


class Layer(ABC):
    """Base class of all layers, and of yours.

    A layer of your own defines `forward`, `backward` and `output_shape`, and sets its
    parameters as attributes (``self.gain = Parameter(array)``); their gradients are
    returned under the same names. State that is not trained but saved is a `Buffer`.
    A layer that draws random numbers has an attribute `rng`, a Generator or None;
    where it is None, `fit` lends its own.

    The arrays that a model hands to `forward` and `backward` lie in memory that it uses
    again after the pass. What `forward` returns as saved may hold them; what is kept
    longer must be a copy. A layer's sizes are those it was built with.

    Constructor arguments kept as attributes of the same name are saved in checkpoints
    and shown by ``repr``. `cnn_ext.gradcheck` tells whether forward and backward agree.

    Parameters
    ----------
    name : str, optional
        Stands in parameter names, summaries and errors instead of the layer's number.
        Letters, digits, ``_`` and ``-``.

    Examples
    --------
    >>> class Square(Layer):
    ...     def forward(self, x, train=False):
    ...         return x * x, x
    ...     def backward(self, grad_y, x):
    ...         return 2 * x * grad_y, {}
    ...     def output_shape(self, input_shape):
    ...         return input_shape
    """

    #: Axes of the input, the batch axis included; None where any number will do.
    input_ndim: ClassVar[int | None] = None
    #: Whether it joins several inputs: then x, grad_x and input_shape are tuples.
    joins: ClassVar[bool] = False

    def __init__(self, *, name: str | None = None) -> None:
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(
                f"name must consist of letters, digits, '_' and '-', got {name!r}"
            )
        self.name = name

    @abstractmethod
    def forward(self, x: Any, train: bool = False) -> tuple[np.ndarray, Any]:
        """Return ``(y, saved)``; `saved` may be None unless `train`.

        x stays as it is.
        """

    @abstractmethod
    def backward(
        self, grad_y: np.ndarray, saved: Any
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Return ``(grad_x, {parameter name: its gradient})``.

        grad_y and saved stay as they are: others may hold them, and backward may be
        called again.
        """

    @abstractmethod
    def output_shape(self, input_shape: Any) -> Shape:
        """Return the output's shape, both without the batch axis, or ValueError."""

    def backward_parameters(
        self, grad_y: np.ndarray, saved: Any
    ) -> dict[str, np.ndarray]:
        """Return the parameters' gradients alone, for a layer that reads the data.

        Nobody asks for the gradient of the training images: layers that can leave it
        out override this.
        """
        return self.backward(grad_y, saved)[1]

    def multiply_adds(self, input_shape: Any) -> int:
        """Return the multiply-adds of one forward pass of one sample."""
        return 0

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The layer's parameters by name, in the order in which they were set."""
        return {k: v for k, v in vars(self).items() if isinstance(v, Parameter)}

    @property
    def buffers(self) -> dict[str, Buffer]:
        """The layer's buffers by name, in the order in which they were set."""
        return {k: v for k, v in vars(self).items() if isinstance(v, Buffer)}

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield `parameters` as pairs, as models do."""
        yield from self.parameters.items()

    def vjp(
        self, *inputs: np.ndarray
    ) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[Any, dict[str, np.ndarray]]]]:
        """Return the output and the function that takes an error back from it.

        ``pullback(grad_y) -> (grad_x, grads)``, as that of a model.
        """
        y, saved = self.forward(inputs if self.joins else inputs[0], train=True)
        return y, lambda grad_y: self.backward(grad_y, saved)

    @classmethod
    def argument_names(cls) -> tuple[str, ...]:
        """Return the constructor arguments that describe the layer.

        That is all but those that say how it starts: `seed`, `dtype`, initialisers
        (``..._init``), and its `name`.
        """
        import inspect

        return tuple(
            name
            for name, argument in inspect.signature(cls).parameters.items()
            if name not in ("seed", "dtype", "name")
            and not name.endswith("_init")
            and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        )

    def config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again, its values apart."""
        return {name: getattr(self, name) for name in self.argument_names()}

    def __call__(self, *inputs: Any) -> Any:
        """Apply the layer to arrays (inference), or to nodes (building a graph)."""
        if not self.joins and len(inputs) != 1:
            raise TypeError(f"{self!r} takes one input, got {len(inputs)}")
        if any(isinstance(part, Node) for part in inputs):
            return Node(self, inputs)
        return self.forward(inputs if self.joins else inputs[0], train=False)[0]

    def __repr__(self) -> str:
        import inspect

        arguments = inspect.signature(type(self)).parameters
        shown = []
        for name, value in self.config().items():
            default = arguments[name].default
            if default is inspect.Parameter.empty:
                shown.append(repr(_short(value)))
            elif _short(value) != default:
                shown.append(f"{name}={_short(value)!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


class Node:
    """The place of one value in a graph: what a layer makes of other nodes.

    Made by `Input` and by calling layers on nodes; ``a + b`` is ``Add()(a, b)``.

    Attributes
    ----------
    layer : Layer or None
        What computes the value; None for an `Input`.
    inputs : tuple of Node
        What it is computed from.
    shape : tuple of int
        Shape of the value, without the batch axis.
    """

    _serials = itertools.count()

    def __init__(self, layer: Layer | None, inputs: tuple[Any, ...], shape: Shape = ()):
        for part in inputs:
            if not isinstance(part, Node):
                raise TypeError(
                    f"{layer!r} takes nodes or arrays, not both: got a node and "
                    f"{type(part).__name__}"
                )
        self.layer = layer
        self.inputs: tuple[Node, ...] = inputs
        self.shape = shape
        # A node is made after its inputs: the order of making is one of computing.
        self.serial = next(self._serials)
        if layer is not None:
            shapes = tuple(part.shape for part in inputs)
            try:
                self.shape = layer.output_shape(shapes if layer.joins else shapes[0])
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{layer!r}: {error}") from error

    def __add__(self, other: Node) -> Node:
        from cnn_ext.layers.joins import Add

        return Add()(self, other) if isinstance(other, Node) else NotImplemented

    def __repr__(self) -> str:
        return f"Node({self.layer!r}, shape={self.shape})"


class Input(Node):
    """The start of a graph: the place of a batch of inputs.

    Parameters
    ----------
    shape : tuple of int
        Shape of one input without the batch axis, e.g. ``(3, 32, 32)``.
    """

    def __init__(self, shape: Any) -> None:
        super().__init__(None, (), checked_shape(shape, "shape"))

    def __repr__(self) -> str:
        return f"Input({self.shape})"


def checked_shape(shape: Any, name: str) -> Shape:
    """Return a shape without batch axis as a tuple of positive ints."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"{name} must be a tuple of sizes, got {shape!r}") from None
    if not sizes:
        raise ValueError(f"{name} must have at least one axis, got {sizes}")
    return tuple(
        checked_size(size, f"{name}[{i}]", minimum=1) for i, size in enumerate(sizes)
    )


def checked_float(
    value: Any, name: str, low: float, high: float = math.inf, *, above: bool = False
) -> float:
    """Return a finite number from `low` (or above it) to `high` as a float."""
    if isinstance(value, bool) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if (
        not math.isfinite(number)
        or not low <= number <= high
        or (above and number == low)
    ):
        lower = f"above {low:g}" if above else f"at least {low:g}"
        upper = "finite" if high == math.inf else f"at most {high:g}"
        raise ValueError(f"{name} must be {lower} and {upper}, got {value!r}")
    return number


def plain(value: Any) -> Any:
    """Return an argument as tuples, ints and the like: hashable, and good for JSON."""
    if isinstance(value, (tuple, list)):
        return tuple(plain(part) for part in value)
    return int(value) if isinstance(value, np.integer) else value


def _short(value: Any) -> Any:
    """Return (2, 2) as 2."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1]:
        return _short(value[0])
    return value
