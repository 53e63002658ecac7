"""A graph of layers, and the walk along it, forward and back.

How does the error travel back through convolution and subsampling? By two rules.
Forward, each step keeps what its layer saved. Backward, the steps are walked in
reverse: from the gradient of the loss with respect to a layer's output the layer makes
those with respect to its input and its parameters, knowing nothing of the rest of the
graph; and where a value went several ways, the gradients that come back along them add.
Convolution, pooling, a sum of two paths: each layer's own `backward` is beside its
`forward` in `cnn_ext.layers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from cnn_ext.layers.base import Input, Layer, Node, Shape, checked_shape

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Graph", "Step", "Walk", "check_gradients", "explained", "place"]


class Step(NamedTuple):
    """One application of a layer. Value 0 is the input, value i + 1 is step i's."""

    layer: Layer
    inputs: tuple[int, ...]


class Graph:
    """Steps in an order in which each follows what it reads, from value 0 to the last.

    Parameters
    ----------
    steps : list of Step
    names : dict of Layer to str
        A name for each layer, one for each.

    Raises
    ------
    ValueError
        If two layers have one name.
    """

    def __init__(self, steps: list[Step], names: dict[Layer, str]) -> None:
        taken: dict[str, Layer] = {}
        for layer, name in names.items():
            if taken.setdefault(name, layer) is not layer:
                raise ValueError(f"two layers have the name {name!r}")
        self.steps = steps
        self.names = names
        # After which step each value is no longer needed by a later one.
        last_use = {i: k for k, step in enumerate(steps) for i in step.inputs}
        self._released = [
            tuple(i for i in set(step.inputs) if last_use[i] == k)
            for k, step in enumerate(steps)
        ]
        # Which values depend on a parameter: only to those must an error travel back
        # when the gradient of the input is not asked for.
        self.trained = [False]
        for step in steps:
            upstream = any(self.trained[i] for i in step.inputs)
            self.trained.append(upstream or bool(step.layer.parameters))

    @classmethod
    def between(cls, x: Node, y: Node) -> Self:
        """Return the graph of all that y depends on; every path back ends at x."""
        if not isinstance(x, Input):
            raise TypeError(f"x must be an Input, got {type(x).__name__}")
        if not isinstance(y, Node):
            raise TypeError(
                f"y must be a node, the result of calling a layer on a node, got "
                f"{type(y).__name__}"
            )
        reached, open_ends = {y}, [y]
        while open_ends:
            for node in open_ends.pop().inputs:
                if node not in reached:
                    reached.add(node)
                    open_ends.append(node)
        for node in reached:
            if node.layer is None and node is not x:
                raise ValueError(f"y depends on {node!r}, which is not the model's x")
        if x not in reached or y is x:
            raise ValueError("y does not depend on x: there is no layer between them")
        order = sorted(reached, key=lambda node: node.serial)
        index = {node: i for i, node in enumerate(order)}
        steps = [
            Step(node.layer, tuple(index[part] for part in node.inputs))
            for node in order
            if node.layer is not None
        ]
        names: dict[Layer, str] = {}
        for k, step in enumerate(steps):
            names.setdefault(step.layer, step.layer.name or str(k))
        return cls(steps, names)

    @classmethod
    def chain(cls, parts: Iterable[Layer | Graph]) -> Self:
        """Return the graph of layers, or graphs of theirs, one behind the other."""
        steps: list[Step] = []
        names: dict[Layer, str] = {}
        for i, part in enumerate(parts):
            last = len(steps)  # the value that the part takes
            if isinstance(part, Graph):
                for layer, name in part.names.items():
                    names.setdefault(layer, f"{i}.{name}")
                for step in part.steps:
                    inputs = tuple(last + j for j in step.inputs)
                    steps.append(Step(step.layer, inputs))
            else:
                names.setdefault(part, part.name or str(i))
                steps.append(Step(part, (last,)))
        return cls(steps, names)

    def forward(self, x: np.ndarray, train: bool) -> tuple[np.ndarray, list[Any]]:
        """Take every step in order: the output, and what each step saved."""
        values: list[Any] = [x]
        saved = []
        for k, step in enumerate(self.steps):
            inputs = tuple(values[i] for i in step.inputs)
            try:
                y, kept = step.layer.forward(
                    inputs if step.layer.joins else inputs[0], train
                )
            except (TypeError, ValueError) as error:
                raise self._explained(error, step) from error
            values.append(y)
            saved.append(kept if train else None)
            for i in self._released[k]:
                values[i] = None
        return values[-1], saved

    def backward(
        self, grad_y: np.ndarray, saved: list[Any], input_gradient: bool
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Take every step in reverse: the input's and the parameters' gradients."""
        # of[i]: the gradient of the loss with respect to value i, as far as the steps
        # walked so far have contributed to it
        of: list[Any] = [None] * len(self.steps) + [grad_y]
        of_parameters: dict[str, np.ndarray] = {}
        for k in reversed(range(len(self.steps))):
            step = self.steps[k]
            arriving, of[k + 1] = of[k + 1], None
            if input_gradient or any(self.trained[i] for i in step.inputs):
                grad_x, grads = step.layer.backward(arriving, saved[k])
                grad_x = grad_x if step.layer.joins else (grad_x,)
                for i, grad in zip(step.inputs, grad_x, strict=True):
                    # where paths join, gradients add
                    of[i] = grad if of[i] is None else of[i] + grad
            elif self.trained[k + 1]:
                grads = step.layer.backward_parameters(arriving, saved[k])
            else:
                continue
            check_gradients(grads, step.layer, self.names[step.layer])
            for key, grad in grads.items():
                name = f"{self.names[step.layer]}.{key}"
                # a layer in several places: its gradients add as well
                before = of_parameters.get(name)
                of_parameters[name] = grad if before is None else before + grad
        return of[0] if input_gradient else None, of_parameters

    def shapes(self, input_shape: Any) -> list[Shape]:
        """Return the shape of every value, without the batch axis."""
        shapes = [checked_shape(input_shape, "input_shape")]
        for step in self.steps:
            inputs = tuple(shapes[i] for i in step.inputs)
            try:
                shape = step.layer.output_shape(
                    inputs if step.layer.joins else inputs[0]
                )
            except (TypeError, ValueError) as error:
                raise self._explained(error, step) from error
            shapes.append(shape)
        return shapes

    def _explained(self, error: Exception, step: Step) -> Exception:
        """Return the error with the name of the layer that raised it."""
        return explained(error, step.layer, self.names[step.layer])


class Walk:
    """One way along a graph and back, layer by layer: a run that needs no plan."""

    def __init__(self, graph: Graph, x: np.ndarray, train: bool) -> None:
        self._graph = graph
        self.y, self._saved = graph.forward(x, train)

    def backward(
        self, grad_y: np.ndarray, input_gradient: bool
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        return self._graph.backward(grad_y, self._saved, input_gradient)

    def close(self) -> None:
        """Nothing is held."""


def place(layer: Layer, name: str) -> str:
    return f"layer {name}, {layer!r}"


def explained(error: Exception, layer: Layer, name: str) -> Exception:
    """The error with the name of the layer that raised it."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{place(layer, name)}: {error}")


def check_gradients(grads: dict[str, np.ndarray], layer: Layer, name: str) -> None:
    """Raise ValueError unless there is one gradient a parameter."""
    if grads.keys() != layer.parameters.keys():
        raise ValueError(
            f"{place(layer, name)}: backward returned gradients for "
            f"{sorted(grads)}, the parameters are {sorted(layer.parameters)}"
        )
