"""A plan: a model compiled for one input shape.

`program` has the words (values, steps), `fusion` decides which layers run as one,
`operators` and `opaque` write down each layer's steps, `compiler` walks the graph,
`arena` finds a place in memory for every value, `run` executes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_ext.plan.arena import ALIGNMENT, lay_out
from cnn_ext.plan.compiler import compiled
from cnn_ext.plan.program import Program, Value, readable
from cnn_ext.plan.run import Idle, Run, StalePlanError, Workspace

if TYPE_CHECKING:
    from cnn_ext.model import Model

__all__ = ["Plan", "Plans"]

#: Plans that a model keeps; the one that was not used for longest goes first.
PLANS = 8


class Plan:
    """The steps of a model for one input shape and dtype, and their memory.

    `cnn_ext.Model.plan` makes one; models use them for every pass.

    Attributes
    ----------
    shape : tuple of int
        Shape of the input, with the batch axis.
    dtype : numpy.dtype
    train : bool
        Whether it goes forward and back, or forward only.
    input_gradient : bool
        Whether it can make the gradient of the input.
    repeat : bool
        Whether the way back may be gone several times.
    memory : int
        Bytes that a run takes: activations, gradients, what layers save for their
        backward, gradients of the parameters. The input, the parameters and the
        kernels' scratch space are not in it, nor what layers without steps of their
        own (`opaque`) allocate.
    opaque : tuple of str
        Names of layers that are run by their Python `forward` and `backward`.
    """

    def __init__(
        self,
        model: Model,
        shape: tuple[int, ...],
        dtype: Any,
        train: bool,
        *,
        input_gradient: bool = False,
        repeat: bool = False,
        frozen: bool = False,
        idle: Idle,
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.train, self.input_gradient = train, input_gradient
        self.repeat = repeat
        # memory lives as long as the model or whoever holds a plan of it; what waits in
        # there knows its plan weakly, so that it goes at once with the last of them
        self._idle = idle
        self.program = program = compiled(
            model, shape, dtype, train, input_gradient, frozen
        )
        self.opaque = tuple(program.opaque)
        self.layout = lay_out(program, repeat)
        self.memory = self.layout.nbytes + ALIGNMENT
        self.steps = [*program.forward, *program.backward]
        self.turn = len(program.forward)
        self._everything = list(range(self.turn, len(self.steps)))
        self._for_parameters = self._needed(program.gradients.values())
        # a frozen model's parameters are nobody else's: nothing to look after
        self._parameters = [] if frozen else _parameters(model, program)

    def _needed(self, results: Any) -> list[int]:
        """The steps back without which these results would not come about."""
        wanted = {value.root for value in results}
        needed = []
        for k in reversed(range(self.turn, len(self.steps))):
            step = self.steps[k]
            if any(value.root in wanted for value in step.writes):
                needed.append(k)
                wanted.update(value.root for value in step.reads)
        return needed[::-1]

    def take(self) -> Workspace:
        """Memory for a run: what waits for one, or new."""
        found = self._idle.take(self)
        return Workspace(self) if found is None else found

    def give(self, space: Workspace) -> None:
        """Keep memory for the next run."""
        self._idle.give(space)

    def way_back(self, input_gradient: bool) -> list[int]:
        """The numbers of the steps back."""
        return self._everything if input_gradient else self._for_parameters

    def held_parameters(self) -> list[tuple[dict, str, Any, Any]]:
        """All parameters and their arrays, unless they no longer suit this plan."""
        held = []
        for attributes, key, parameter, shape, dtype, read in self._parameters:
            if attributes.get(key) is not parameter:
                raise StalePlanError
            if parameter is None:
                held.append((attributes, key, None, None))
                continue
            array = parameter.value
            like = array.shape == shape and array.dtype == dtype
            if not like or (read and not readable(array)):
                raise StalePlanError
            held.append((attributes, key, parameter, array))
        return held

    def readable(self, x: np.ndarray) -> np.ndarray:
        """x, or a copy where the steps could not read it as it lies."""
        flags = x.flags
        if flags.aligned and (
            flags.c_contiguous
            or (
                self.program.strided_x
                and not any(step % x.itemsize for step in x.strides)
            )
        ):
            return x
        return np.array(x, order="C")

    def start(self, x: np.ndarray) -> Run:
        """Run the model forward on a batch of this shape and dtype.

        Parameters
        ----------
        x : numpy.ndarray
            Not changed, and not to be changed before the way back was gone.

        Returns
        -------
        Run
            With `y`, and with ``backward(grad_y)``.

        Examples
        --------
        >>> plan = model.plan(x.shape)
        >>> run = plan.start(x)
        >>> value, grad_y = loss(run.y, labels)
        >>> _, grads = run.backward(grad_y)
        """
        if x.shape != self.shape or x.dtype != self.dtype:
            raise ValueError(
                f"the plan is for {self.dtype} of shape {self.shape}, x is {x.dtype} "
                f"of shape {x.shape}"
            )
        return Run(self, x)

    def summary(self) -> str:
        """Return a table of all steps: what each writes, and where that lies."""
        rows = [["", "step", "writes", "shape", "order", "offset"]]
        for k, step in enumerate(self.steps):
            for i, value in enumerate(step.writes):
                rows.append([str(k), step.what, *self._described(value)])
                if i:
                    rows[-1][:2] = ["", ""]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            ).rstrip()
            for row in rows
        ]
        return "\n".join([repr(self), *lines])

    def _described(self, value: Value) -> list[str]:
        sizes = "x".join(map(str, value.shape))
        order = "channels-last" if value.root.last else ""
        return [value.name, sizes, order, f"{self.layout.offsets[value.root]:,}"]

    def __repr__(self) -> str:
        kind = "training" if self.train else "inference"
        return (
            f"Plan({kind}, {self.dtype}, shape {self.shape}, {len(self.steps)} steps, "
            f"{self.memory:,} bytes)"
        )


def _parameters(
    model: Model, program: Program
) -> list[tuple[dict, str, Any, Any, Any, bool]]:
    """Where each parameter hangs, what it is like, and whether steps read it."""
    found: list[tuple[dict, str, Any, Any, Any, bool]] = []
    for layer in model.layers.values():
        attributes = vars(layer)
        for key, parameter in layer.parameters.items():
            array = parameter.value
            read = (layer, key) in program.parameters
            found.append((attributes, key, parameter, array.shape, array.dtype, read))
        if attributes.get("bias", layer) is None:
            found.append((attributes, "bias", None, None, None, False))
    return found


class Plans:
    """A model's plans by shape, dtype and purpose, a bounded number of them."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan] = {}
        self._idle = Idle()

    def find(
        self,
        model: Model,
        shape: tuple[int, ...],
        dtype: str,
        train: bool,
        input_gradient: bool = False,
        repeat: bool = False,
    ) -> Plan:
        """The plan for this shape and purpose.

        Raises
        ------
        TypeError, ValueError
            If there can be none.
        """
        key = shape, dtype, train, input_gradient, repeat
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = Plan(
                model, shape, dtype, train,
                input_gradient=input_gradient, repeat=repeat, idle=self._idle,
            )  # fmt: skip
        self._plans[key] = plan  # the last one used is the last one
        while len(self._plans) > PLANS:
            self._plans.pop(next(iter(self._plans)), None)
        return plan

    def run(
        self,
        model: Model,
        x: np.ndarray,
        train: bool,
        input_gradient: bool = False,
        repeat: bool = False,
    ) -> Run | None:
        """Run a model forward by the plan that suits; None if there can be none."""
        dtype = x.dtype.str
        if dtype not in _DTYPES or not len(x):
            return None
        for _ in range(2):
            try:
                plan = self.find(model, x.shape, dtype, train, input_gradient, repeat)
            except (TypeError, ValueError):
                return None
            try:
                return Run(plan, x)
            except StalePlanError:
                self.clear()
        return None

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept for the next runs."""
        return self._idle.nbytes

    def clear(self) -> None:
        self._plans.clear()
        self._idle.release()

    def __len__(self) -> int:
        return len(self._plans)

    def __reduce__(self) -> Any:
        return Plans, ()  # a copied model makes its own


_DTYPES = (np.dtype(np.float32).str, np.dtype(np.float64).str)
