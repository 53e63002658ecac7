"""What a plan is made of: values in memory, and steps that read and write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn_ext import _pointwise

__all__ = ["NoPlanError", "Program", "Slot", "Step", "Value", "readable", "view_of"]

Shape = tuple[int, ...]


class NoPlanError(ValueError):
    """Something that no plan can be made for; it can still be run layer by layer."""


class Value:
    """An array that a run of the plan will have; its place is found later.

    Attributes
    ----------
    shape : tuple of int
        With the batch axis; (N, C, H, W) for images.
    dtype : numpy.dtype
    last : bool
        Whether images lie channels-last in memory.
    name : str
        What it is, for the plan's text.
    sums : Value or None
        A smaller value with the same sums over each channel, where there is one.
    source : str
        Where its memory is: "arena", shared with values that live at other times;
        "kept", of its own; "view", that of `base`; or not the plan's: "x", the user's
        input; "parameter".
    """

    __slots__ = ("base", "dtype", "last", "name", "shape", "source", "sums", "view")

    def __init__(
        self,
        shape: Iterable[int],
        dtype: Any,
        name: str,
        *,
        last: bool = False,
        source: str = "arena",
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.name = name
        self.source = source
        # where channels or pixels are one, both orders are the same memory
        self.last = last and self.shape[1] > 1 and math.prod(self.shape[2:]) > 1
        self.sums: Value | None = None
        self.base: Value | None = None
        self.view: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def root(self) -> Value:
        """The value whose memory this is."""
        return self if self.base is None else self.base.root

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array_in(self, memory: np.ndarray, offset: int) -> np.ndarray:
        """The array at an offset in bytes of the plan's memory."""
        flat = memory[offset : offset + self.nbytes].view(self.dtype)
        if not self.last:
            return flat.reshape(self.shape)
        n, c, h, w = self.shape
        return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)

    def seen_in(self, root: np.ndarray) -> np.ndarray:
        """The array of this value, where that of its root is given."""
        if self.base is None or self.view is None:
            return root
        return self.view(self.base.seen_in(root))

    def __repr__(self) -> str:
        return f"Value({self.name}, {self.shape}, {self.dtype}, {self.source})"


def readable(parameter: np.ndarray) -> bool:
    """Whether the compiled passes can read a parameter as it lies."""
    return parameter.flags.c_contiguous and parameter.flags.aligned


def view_of(
    base: Value, shape: Iterable[int], view: Callable[[np.ndarray], np.ndarray]
) -> Value:
    """The same memory with other axes: ``view`` makes the one array of the other."""
    value = Value(shape, base.dtype, base.name, source="view")
    value.base, value.view = base, view
    return value


class Slot:
    """A place for an object that is no array of the plan: what a layer saves."""


@dataclass(eq=False)
class Step:
    """One call: a function, and its arguments as values and constants.

    Attributes
    ----------
    what : str
        What it does, in words.
    function : callable
    args : tuple
        Values stand for their arrays, slots for lists of one item.
    writes : tuple of Value
        Those that it overwrites; it reads the others.
    over : tuple of (Value, Value)
        Pairs (written, read) that may be one place in memory: a step that handles
        element after element.
    holds : tuple of Value
        What it reads without being given it: what a layer of one's own has saved.
    """

    what: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    writes: tuple[Value, ...]
    over: tuple[tuple[Value, Value], ...] = ()
    holds: tuple[Value, ...] = ()

    @property
    def reads(self) -> tuple[Value, ...]:
        written = {value.root for value in self.writes}
        given = (a for a in self.args if isinstance(a, Value))
        return (*(a for a in given if a.root not in written), *self.holds)


class Program:
    """All steps of a plan in order, as they are being written down.

    `forward` ends in `y`; `backward` begins with `grad_y` and ends in the gradients.

    Attributes
    ----------
    names : dict
        Layer -> name, for messages and for the gradients.
    opaque : list of str
        Names of layers that run as they are: what they allocate is not the plan's.
    frozen : bool
        Whether the parameters are those of now for good.
    strided_x : bool
        Whether x may have any strides; else it must be C-contiguous.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: Any,
        train: bool,
        names: Mapping[Any, str],
        frozen: bool = False,
    ) -> None:
        self.dtype, self.train, self.names = np.dtype(dtype), train, names
        self.frozen = frozen
        self.x = Value(shape, dtype, "x", source="x")
        self.forward: list[Step] = []
        self.backward: list[Step] = []
        self._steps = self.forward
        self.parameters: dict[tuple[Any, str], Value] = {}
        self.gradients: dict[str, Value] = {}
        self.opaque: list[str] = []
        self.strided_x = True
        self.output = 0  # the model's number for y
        self.y: Value | Slot | None = None
        self.grad_y: Value | None = None
        self.grad_x: Value | None = None

    def is_x(self, what: Any) -> bool:
        """Whether an argument of a step is the input, or a view of it."""
        return isinstance(what, Value) and what.root is self.x

    def turn_back(self) -> None:
        """What is written down from now on goes back."""
        self._steps = self.backward

    def value(
        self, shape: Iterable[int], name: str, *, last: bool = False, dtype: Any = None
    ) -> Value:
        return Value(shape, self.dtype if dtype is None else dtype, name, last=last)

    def like(self, value: Value, name: str) -> Value:
        return self.value(value.shape, name, last=value.last)

    def parameter(self, layer: Any, key: str) -> Value:
        """The value of a layer's parameter."""
        if (layer, key) not in self.parameters:
            array = getattr(layer, key).value
            if array.dtype != self.dtype or not readable(array):
                raise NoPlanError(
                    f"{key} of layer {self.names[layer]} is {array.dtype} with strides "
                    f"{array.strides}; the plan needs contiguous {self.dtype}"
                )
            value = Value(array.shape, self.dtype, key, source="parameter")
            self.parameters[layer, key] = value
        return self.parameters[layer, key]

    def gradient(self, layer: Any, key: str) -> Value:
        """Where to write a parameter's gradient; then call `add_gradient` with it.

        A layer that stands in several places has several: they add.
        """
        name = f"{self.names[layer]}.{key}"
        parameter = getattr(layer, key).value
        if name in self.gradients:
            return self.value(parameter.shape, f"another {name}")
        value = Value(
            parameter.shape, parameter.dtype, f"gradient of {name}", source="kept"
        )
        self.gradients[name] = value
        return value

    def add_gradient(self, layer: Any, key: str, value: Value) -> None:
        total = self.gradients[f"{self.names[layer]}.{key}"]
        if total is not value:
            add = _pointwise.add
            self.do("add gradients", add, total, value, total, 0, writes=(total,))

    def do_gradient(
        self,
        what: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        layer: Any,
        key: str,
        view: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Write down the step that makes a parameter's gradient, its last argument."""
        total = self.gradient(layer, key)
        target = total
        if view is not None:
            target = view_of(total, view(np.empty(total.shape, bool)).shape, view)
        self.do(what, function, *args, target, writes=(target,))
        self.add_gradient(layer, key, total)

    def do(
        self,
        what: str,
        function: Callable[..., Any],
        *args: Any,
        writes: tuple[Value, ...],
        over: tuple[tuple[Value, Value], ...] = (),
        holds: tuple[Value, ...] = (),
    ) -> None:
        """Write down the next step."""
        self._steps.append(Step(what, function, args, writes, over, holds))

    def in_order(self, value: Value, last: bool) -> Value:
        """The value in the memory order asked for: itself, or a copy."""
        turned = self.value(value.shape, value.name, last=last)
        if turned.last == value.last:
            return value
        order = "channels-last" if last else "planes"
        self.do(f"copy to {order}", _pointwise.copy, value, turned, writes=(turned,))
        return turned
