"""A run of a plan: memory for it, steps bound to that memory, results.

An array's way: `Run(plan, x)` takes a `Workspace`, in which every step has its arrays
already, and calls the steps forward; `Run.backward(grad_y)` calls those that go back.
When the run is dropped, its workspace is free for the next one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_ext.plan.arena import allocate
from cnn_ext.plan.program import Slot, Value

if TYPE_CHECKING:
    from cnn_ext.plan import Plan

__all__ = ["Idle", "Run", "StalePlanError", "Workspace"]

# Workspaces that wait for their next run: how many, and how many bytes together; the
# one used last is kept whatever its size.
IDLE_COUNT = 8
IDLE_BYTES = 64 << 20


class StalePlanError(RuntimeError):
    """A layer's parameters are no longer what the plan was made for."""

    def __init__(self) -> None:
        super().__init__(
            "a parameter was replaced by one of another shape, dtype or memory order: "
            "ask the model for a plan again"
        )


class Workspace:
    """One plan's memory, and its steps bound to arrays there.

    They are bound once: from run to run x changes, and seldom a parameter's array.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = weakref.ref(plan)  # who runs it holds the plan
        self.nbytes = plan.memory
        self._memory = allocate(plan.layout.nbytes)
        self._bind()

    @property
    def plan(self) -> Plan:
        """The plan that this is the memory of."""
        plan = self._plan()
        assert plan is not None
        return plan

    def is_of(self, plan: Plan | None) -> bool:
        """Whether this is memory of the plan; of None, whether its plan is gone."""
        return self._plan() is plan

    def _bind(self) -> None:
        """Find the arrays of all values; write down all calls but those that read x."""
        plan, program = self.plan, self.plan.program
        self._held = plan.held_parameters()
        self._x: np.ndarray | None = None
        self._arrays: dict[Any, Any] = {
            value: getattr(layer, key).value
            for (layer, key), value in program.parameters.items()
        }
        self._y = self._place(program.y)
        self._grad_y = self._place(program.grad_y)
        self.grad_x = self._place(program.grad_x)
        self.grads = {name: self._place(v) for name, v in program.gradients.items()}
        self._calls: list[Any] = []
        # number of the call, function, arguments, and which of them are x, or views
        self._with_x: list[tuple[int, Any, list[Any], list[tuple[int, Value]]]] = []
        for k, step in enumerate(plan.steps):
            places = [(i, a) for i, a in enumerate(step.args) if program.is_x(a)]
            args = [None if program.is_x(a) else self._place(a) for a in step.args]
            if places:
                self._with_x.append((k, step.function, args, places))
            self._calls.append(None if places else (step.function, tuple(args)))
        self._slots = [a for a in self._arrays.values() if isinstance(a, list)]

    def _place(self, what: Any) -> Any:
        """The array of a value; of a slot, a list of one item; a constant itself."""
        if not isinstance(what, (Value, Slot)):
            return what
        if what not in self._arrays:
            if isinstance(what, Slot):
                self._arrays[what] = [None]
            elif what.base is not None:
                self._arrays[what] = what.seen_in(self._place(what.root))
            else:
                offset = self.plan.layout.offsets[what]
                self._arrays[what] = what.array_in(self._memory, offset)
        return self._arrays[what]

    def _bind_x(self, x: np.ndarray) -> None:
        self._x = x
        for k, function, args, places in self._with_x:
            for i, value in places:
                args[i] = value.seen_in(x)
            self._calls[k] = function, tuple(args)

    def forward(self, x: np.ndarray) -> Any:
        """Take all steps forward; return y, which lies in this workspace."""
        for attributes, key, parameter, array in self._held:
            if attributes[key] is not parameter or (
                parameter is not None and parameter.value is not array
            ):
                self._bind()
                break
        if x is not self._x:
            self._bind_x(self.plan.readable(x))
        for function, args in self._calls[: self.plan.turn]:
            function(*args)
        return self._y[0] if isinstance(self._y, list) else self._y

    def backward(self, grad_y: np.ndarray, input_gradient: bool) -> None:
        """Take the steps back; the results are `grad_x` and `grads`."""
        if grad_y is not self._grad_y:
            np.copyto(self._grad_y, grad_y)
        calls = self._calls
        for k in self.plan.way_back(input_gradient):
            function, args = calls[k]
            function(*args)

    def let_go(self) -> None:
        """Forget what is the caller's: x, and what layers have saved."""
        if self._x is not None:
            self._x = None
            for k, _, args, places in self._with_x:
                self._calls[k] = None
                for i, _ in places:
                    args[i] = None
        for slot in self._slots:
            slot[0] = None


class Idle:
    """The workspaces of a model's plans that are not in use, the last used last."""

    def __init__(self) -> None:
        self._spaces: list[Workspace] = []

    def take(self, plan: Plan) -> Workspace | None:
        """A workspace of this plan; nobody else has it until it is given back."""
        for space in reversed(self._spaces):
            if space.is_of(plan) and self._drop(space):
                return space
        return None

    def _drop(self, space: Workspace) -> bool:
        """Take a workspace out; False if another thread was faster."""
        try:
            self._spaces.remove(space)
        except ValueError:
            return False
        return True

    def give(self, space: Workspace) -> None:
        """Keep a workspace for later; release those that are too many, or nobody's."""
        self._spaces.append(space)
        for other in self._spaces[:-1]:
            if other.is_of(None):
                self._drop(other)
        while len(self._spaces) > 1 and (
            len(self._spaces) > IDLE_COUNT or self.nbytes > IDLE_BYTES
        ):
            del self._spaces[0]

    def release(self) -> None:
        self._spaces.clear()

    @property
    def nbytes(self) -> int:
        return sum(space.nbytes for space in self._spaces)


class Run:
    """One pass forward through a model, and its way back.

    Attributes
    ----------
    y : numpy.ndarray
        The output. It lies in the plan's memory, as the gradients do: valid as long
        as the run is held.
    """

    def __init__(self, plan: Plan, x: np.ndarray) -> None:
        self._plan = plan
        self._used = False
        self._space: Workspace | None = None
        self._space = plan.take()
        try:
            self.y = self._space.forward(x)
        except BaseException:
            self.close()
            raise

    def backward(
        self, grad_y: np.ndarray, input_gradient: bool = False
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Return the gradients of the input and, by name, of the parameters.

        Once: on the way back memory is used again, unless the plan may `repeat` it.

        Raises
        ------
        RuntimeError
            If the way back was gone before, or the run is closed.
        ValueError
            If grad_y is not like y, or the plan was made without what is asked for.
        """
        space, plan = self._space, self._plan
        if space is None or (self._used and not plan.repeat):
            raise RuntimeError("this run is over: backward goes with one start each")
        if not plan.train or (input_gradient and not plan.input_gradient):
            missing = "input_gradient" if plan.train else "train"
            raise ValueError(f"{plan!r} was made without {missing}")
        if grad_y.shape != self.y.shape or grad_y.dtype != self.y.dtype:
            raise ValueError(
                f"grad_y is {grad_y.dtype} of shape {grad_y.shape}, the output is "
                f"{self.y.dtype} of shape {self.y.shape}"
            )
        self._used = True
        space.backward(grad_y, input_gradient)
        return space.grad_x if input_gradient else None, space.grads

    def close(self) -> None:
        """Give the memory back: y and gradients are no longer valid."""
        space, self._space = self._space, None
        if space is not None:
            space.let_go()
            self._plan.give(space)

    def __del__(self) -> None:
        self.close()
