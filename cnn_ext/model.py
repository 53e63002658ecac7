"""A model: a graph of layers with plans to run it by, and parameters to train.

How an array goes along the graph and the error back is in `cnn_ext.graph`; a plan
(`cnn_ext.plan`) is the same walk, written down once for one shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from cnn_ext._geometry import checked_size
from cnn_ext._summary import summary
from cnn_ext.graph import Graph, Walk
from cnn_ext.initializers import checked_dtype
from cnn_ext.layers.base import (
    Buffer,
    Layer,
    Node,
    Parameter,
    Shape,
    checked_float,
    checked_shape,
)
from cnn_ext.plan import Plan, Plans, Run
from cnn_ext.plan.frozen import FrozenModel
from cnn_ext.plan.program import NoPlanError

__all__ = ["Model"]


class Model:
    """Any directed acyclic graph of layers, from one input to one output.

    Parameters
    ----------
    x : Input
        Where the graph starts.
    y : Node
        Its output; every path back from it must end at `x`.

    Attributes
    ----------
    input_shape : tuple of int or None
        Shape of one input, without the batch axis; None where it was left open.
    metadata : dict
        Anything that JSON can hold (names of the classes, say); saved with the model.

    Raises
    ------
    ValueError
        If `y` depends on another `Input`, or two layers have one name.

    Notes
    -----
    A layer that stands in several places has one set of parameters. Models nest: a
    model called on a node, or given to `Sequential`, becomes part of the new graph.

    Examples
    --------
    >>> x = Input((3, 32, 32))
    >>> h = Conv2d(3, 16, 3, padding=1)(x)
    >>> y = Conv2d(16, 16, 3, padding=1)(h) + h
    >>> model = Model(x, y)
    """

    def __init__(self, x: Node, y: Node) -> None:
        self._set_up(Graph.between(x, y), x.shape)

    def _set_up(self, graph: Graph, input_shape: Shape | None) -> None:
        """Everything that is known without data is checked here."""
        self._graph = graph
        self.input_shape = input_shape
        self.metadata: dict[str, Any] = {}
        self._plans = Plans()
        self._pending: tuple[Run | Walk, bool] | None = None
        if input_shape is not None:
            self.output_shape(input_shape)

    # -- running -----------------------------------------------------------------

    def _run(
        self,
        x: np.ndarray,
        train: bool,
        input_gradient: bool = False,
        repeat: bool = False,
    ) -> Run | Walk:
        """Go forward: by a plan, or layer by layer where none can be made.

        There is none for no images, for dtypes other than the parameters' float32 or
        float64, and for shapes that do not fit: then a layer says what is wrong.
        """
        run = self._plans.run(self, x, train, input_gradient, repeat)
        return Walk(self._graph, x, train) if run is None else run

    def vjp(
        self, x: np.ndarray
    ) -> tuple[
        np.ndarray, Callable[..., tuple[np.ndarray | None, dict[str, np.ndarray]]]
    ]:
        """Return the output and the function that takes an error back from it.

        The functional form of `forward` and `backward`: parameters and their `grad`
        are not changed. It runs as in training: running statistics follow, dropout
        draws.

        Parameters
        ----------
        x : numpy.ndarray
            A batch of inputs, (N, C, H, W) for images, or a single one without N.

        Returns
        -------
        y : numpy.ndarray
            The output.
        pullback : callable
            ``pullback(grad_y, *, input_gradient=True) -> (grad_x, grads)``: from the
            gradient with respect to y those with respect to x and, by name, to the
            parameters. With ``input_gradient=False`` grad_x is None, and no work is
            spent on it. May be called again. The parameters must not change between
            the two calls.

        Raises
        ------
        TypeError, ValueError
            If x does not fit; the message names the layer and the rule.
        """
        batch, single = self._as_batch(x)
        run = self._run(batch, True, input_gradient=True, repeat=True)

        def pullback(grad_y, *, input_gradient=True):
            return self._taken_back(run, grad_y, single, input_gradient)

        return _own(run.y, single), pullback

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Return the output; with `train`, keep what `backward` will need.

        Parameters
        ----------
        x : numpy.ndarray
            A batch of inputs, (N, C, H, W) for images, or a single one without N.
        train : bool, default False
            Run as in training.

        Raises
        ------
        TypeError, ValueError
            If x does not fit; the message names the layer and the rule.
        """
        batch, single = self._as_batch(x)
        if not train:
            return _own(self._run(batch, False).y, single)
        run = self._run(batch, True, input_gradient=True)
        self._pending = run, single
        return _own(run.y, single)

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return the gradient of the input; those of the parameters land in `grad`.

        Belongs to the last ``forward(x, train=True)``, once. Each parameter's `grad`
        is replaced, not added to.

        Parameters
        ----------
        grad_y : numpy.ndarray
            Gradient of the loss with respect to the output, of its shape and dtype.

        Raises
        ------
        RuntimeError
            If there was no ``forward(x, train=True)`` since the last backward.
        TypeError, ValueError
            If grad_y is not like the output.
        """
        if self._pending is None:
            raise RuntimeError(
                "backward needs a forward(x, train=True) before it, one for each"
            )
        run, single = self._pending
        self._checked_grad(grad_y, run.y[0] if single else run.y)
        self._pending = None  # on its way back the run uses up what was saved
        grad_x, grads = self._taken_back(run, grad_y, single, True)
        for name, parameter in self.named_parameters():
            parameter.grad = grads[name]
        assert grad_x is not None
        return grad_x

    def __call__(self, x: Any) -> Any:
        """Return the output for an array (inference), or join a graph at a node."""
        if not isinstance(x, Node):
            return self.forward(x)
        values = [x]
        for step in self._graph.steps:
            values.append(step.layer(*(values[i] for i in step.inputs)))
        return values[-1]

    def predict(self, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Return the class of each input, the index of its largest output.

        Parameters
        ----------
        x : numpy.ndarray
            Inputs, (N, C, H, W) for images; computed `batch_size` at a time.

        Returns
        -------
        numpy.ndarray
            int64, shape (N,).
        """
        x, single = self._as_batch(x)
        starts = range(0, max(len(x), 1), batch_size)
        labels = np.concatenate(
            [self(x[i : i + batch_size]).argmax(axis=1) for i in starts]
        )
        return labels[0] if single else labels

    def plan(
        self,
        shape: Any,
        train: bool = True,
        *,
        dtype: Any = None,
        input_gradient: bool = False,
        memory_limit: int | None = None,
    ) -> Plan:
        """Return how the model is run for one shape: its steps, and their memory.

        Every pass goes by such a plan; it is made on the first and kept for the next.

        Parameters
        ----------
        shape : tuple of int
            Shape of the input, with the batch axis.
        train : bool, default True
            Forward and back, as `fit` does; else forward only.
        dtype : dtype, optional
            Default the parameters'.
        input_gradient : bool, default False
            Whether the gradient of the input is made too.
        memory_limit : int, optional
            Bytes that the plan may take.

        Returns
        -------
        Plan
            With `memory`, the bytes that it takes, and `summary`.

        Raises
        ------
        MemoryError
            If the plan takes more than `memory_limit`. Nothing has been allocated.
        TypeError, ValueError
            If the shape does not fit; the message names the layer and the rule.

        Examples
        --------
        >>> model.plan((64, 1, 28, 28)).memory
        >>> print(model.plan((1, 1, 28, 28), train=False).summary())
        """
        sizes, dtype = self._checked_for_plan(shape, dtype)
        plan = self._plans.find(self, sizes, dtype.str, train, input_gradient)
        if memory_limit is not None and plan.memory > memory_limit:
            raise MemoryError(
                f"{'training' if train else 'inference'} on {dtype} of shape {sizes} "
                f"takes {plan.memory:,} bytes, memory_limit is {memory_limit:,}"
            )
        return plan

    def _checked_for_plan(self, shape: Any, dtype: Any) -> tuple[Shape, np.dtype]:
        """Shape with the batch axis and dtype, as `plan` and `freeze` take them."""
        sizes = checked_shape(shape, "shape")
        if self.input_shape is not None and sizes[1:] != self.input_shape:
            rest = ", ".join(map(str, self.input_shape))
            raise ValueError(f"shape is {sizes}, the model takes (N, {rest})")
        dtype = checked_dtype(dtype or self.dtype or np.float32)
        if self.dtype not in (None, dtype):
            raise TypeError(f"dtype is {dtype}, the model works in {self.dtype}")
        return sizes, dtype

    def freeze(self, shape: Any, *, dtype: Any = None) -> FrozenModel:
        """Return a function for inference that keeps the parameters of now.

        Batch normalisation is folded into the convolutions before it, and weights are
        packed, or transformed, once and not at every call: most of the time of small
        batches. Later changes of the model do not show.

        Parameters
        ----------
        shape : tuple of int
            Shape of the batches to come.
        dtype : dtype, optional
            Default the parameters'.

        Returns
        -------
        FrozenModel

        Raises
        ------
        TypeError, ValueError
            If the shape does not fit; the message names the layer and the rule.

        Examples
        --------
        >>> predict = model.freeze((1, 1, 28, 28))
        >>> y = predict(x)
        """
        return FrozenModel(self, *self._checked_for_plan(shape, dtype))

    # -- parameters --------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield each parameter once, as ``("0.weight", parameter)``."""
        for layer, name in self._graph.names.items():
            for key, parameter in layer.parameters.items():
                yield f"{name}.{key}", parameter

    def parameters(self) -> list[Parameter]:
        """Return the parameters in the order of `named_parameters`."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Yield each buffer once, as ``("1.running_mean", buffer)``."""
        for layer, name in self._graph.names.items():
            for key, buffer in layer.buffers.items():
                yield f"{name}.{key}", buffer

    def set_lr_scale(self, scales: Mapping[str, float]) -> Self:
        """Give layers or parameters a learning rate of their own.

        Parameters
        ----------
        scales : mapping of str to float
            Name of a layer ("3", "head") or of a parameter ("3.bias") -> factor on the
            optimiser's rate, not negative; 0 freezes. A parameter's own entry wins
            over its layer's. What is not named keeps its factor.

        Returns
        -------
        Model
            This one.

        Raises
        ------
        TypeError, ValueError
            If a name is unknown or a factor no such number; nothing is changed then.

        Examples
        --------
        >>> model.set_lr_scale({"0": 0.0, "7.bias": 2.0})
        """
        parameters = dict(self.named_parameters())
        of_layers = {
            name: [f"{name}.{key}" for key in layer.parameters]
            for name, layer in self.layers.items()
        }
        chosen: dict[str, float] = {}
        for name, scale in scales.items():
            if name not in parameters and not of_layers.get(name):
                raise ValueError(
                    f"the model has no layer with parameters and no parameter {name!r}"
                )
            checked_float(scale, f"scale of {name!r}", 0.0)
        # layers first: so a parameter's own entry wins
        for name, scale in sorted(
            scales.items(), key=lambda item: item[0] in parameters
        ):
            for key in [name] if name in parameters else of_layers[name]:
                chosen[key] = float(scale)
        for name, scale in chosen.items():
            parameters[name].lr_scale = scale
        return self

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers by name, each once, in the order of the graph."""
        return {name: layer for layer, name in self._graph.names.items()}

    @property
    def input_ndim(self) -> int | None:
        """Axes of a batch of inputs; None where the first layer takes any number."""
        if self.input_shape is not None:
            return 1 + len(self.input_shape)
        return self._graph.steps[0].layer.input_ndim

    @property
    def dtype(self) -> np.dtype | None:
        """dtype of the parameters, and so of the inputs; None without parameters."""
        for _, parameter in self.named_parameters():
            return parameter.value.dtype
        return None

    def astype(self, dtype: Any) -> Self:
        """Return a copy of the model with parameters of `dtype`, float32 or float64."""
        dtype = checked_dtype(dtype)
        model = self.copy()
        for parameter in model.parameters():
            parameter.value = parameter.value.astype(dtype)
            parameter.grad = None
        for _, buffer in model.named_buffers():
            buffer.value = buffer.value.astype(dtype)
        return model

    def copy(self) -> Self:
        """Return an independent copy with parameters of its own."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        # a pending backward belongs to this object's layers and stays with it
        return self.__dict__ | {"_pending": None}

    # -- shapes ------------------------------------------------------------------

    def output_shape(self, input_shape: Any = None) -> Shape:
        """Return the shape of one output, without the batch axis.

        Parameters
        ----------
        input_shape : tuple of int, optional
            Shape of one input; may be left out where the model knows it.

        Raises
        ------
        ValueError
            If a layer cannot take what it would get; the message names both.
        """
        return self._graph.shapes(self._known_input(input_shape))[-1]

    def summary(self, input_shape: Any = None, batch_size: int = 64) -> str:
        """Return a table: each layer's output shape, parameters, work and bytes.

        Multiply-adds and bytes are those of one sample; a line below says what plans
        for a batch take, which reuse memory (`plan`).

        Parameters
        ----------
        input_shape : tuple of int, optional
            Shape of one input; may be left out where the model knows it.
        batch_size : int, default 64
            For the line below the table.
        """
        shapes = self._graph.shapes(self._known_input(input_shape))
        dtype = self.dtype or np.dtype(np.float32)
        table = summary(self._graph, shapes, dtype.itemsize)
        batch = (checked_size(batch_size, "batch_size", 1), *shapes[0])
        try:
            training, inference = (self.plan(batch, t).memory for t in (True, False))
        except NoPlanError:
            return table  # it runs layer by layer
        return (
            f"{table}\na batch of {batch_size} takes {training:,} bytes in training, "
            f"{inference:,} in inference"
        )

    # -- checks ------------------------------------------------------------------

    def _known_input(self, input_shape: Any) -> Any:
        if input_shape is None and self.input_shape is None:
            raise ValueError(
                "input_shape is not known: give it, e.g. input_shape=(1, 28, 28)"
            )
        return self.input_shape if input_shape is None else input_shape

    def _as_batch(self, x: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return x with a batch axis, and whether it had none."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a numpy array, got {type(x).__name__}")
        single = self.input_ndim is not None and x.ndim == self.input_ndim - 1
        batch = x[np.newaxis] if single else x
        if self.input_shape is not None and batch.shape[1:] != self.input_shape:
            sizes = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x has shape {x.shape}, the model takes (N, {sizes})")
        if batch.ndim == 0:
            raise ValueError("x must have a batch axis, got shape ()")
        return batch, single

    def _taken_back(
        self,
        run: Run | Walk,
        grad_y: np.ndarray,
        single: bool,
        input_gradient: bool,
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Take a run's way back; arrays of the caller's own."""
        grad_y = self._checked_grad(grad_y, run.y[0] if single else run.y)
        grad_x, grads = run.backward(
            grad_y[np.newaxis] if single else grad_y, input_gradient
        )
        copies = {name: grads[name].copy() for name, _ in self.named_parameters()}
        return None if grad_x is None else _own(grad_x, single), copies

    def _checked_grad(self, grad_y: np.ndarray, y: np.ndarray) -> np.ndarray:
        if not isinstance(grad_y, np.ndarray) or grad_y.dtype != y.dtype:
            kind = getattr(grad_y, "dtype", type(grad_y).__name__)
            raise TypeError(f"grad_y must be an array of {y.dtype}, got {kind}")
        if grad_y.shape != y.shape:
            raise ValueError(
                f"grad_y has shape {grad_y.shape}, the output has {y.shape}"
            )
        return grad_y

    def __repr__(self) -> str:
        parts = ", ".join(f"{n}: {layer!r}" for n, layer in self.layers.items())
        return f"{type(self).__name__}({parts})"


def _own(array: np.ndarray, single: bool) -> np.ndarray:
    """A copy in plain order; of one image without the batch axis."""
    return np.array(array[0] if single else array, order="C")
