"""Averages of what is trained, over steps or over tasks, that take its place at the end of each task.

Factors of a low-rank update are averaged as they are, which is not the average of their products.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from contune.contract.capability import THROUGH_TASKS, Need
from contune.contract.context import Context
from contune.contract.parts import Phase, Rule, Tensors
from contune.contract.state import State, on_device
from contune.errors import ConfigError
from contune.numerics.averages import moved_average

Which = Annotated[Literal["adapter", "all"], "what is averaged: the adapter alone, or all with head and router"]


def averaged_values(context: Context, which: Which) -> dict[str, Tensor]:
    """Copies of the trained tensors that are averaged: the adapter's alone, or head and router too."""
    return {
        name: value.detach().clone()
        for name, value in context.model.trained().items()
        if which == "all" or name.startswith("adapter.")
    }


def grow_from(earlier: Tensor) -> tuple[slice, ...]:
    """Where an earlier, smaller form of a tensor lies in the one that has grown from it: new entries come behind.

    >>> torch.arange(6.0).reshape(3, 2)[grow_from(torch.zeros(2, 2))].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    return tuple(slice(size) for size in earlier.shape)


def compatible_step(
    shadow: Tensors, current: Tensors, earlier: Tensors, decay: float, first: float
) -> dict[str, Tensor]:
    """One step of the average that is held between the current values and the earlier ones.

    decay shadow + (1 - decay) (current + earlier) / 2 where there is an earlier value, and first shadow + (1 - first)
    current where there is none: in tensors that are new, and in rows by which a tensor has grown.

    >>> zero, one = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    >>> compatible_step(zero, one, {"a": torch.tensor([3.0])}, 0.5, 0.75)["a"].tolist()
    [1.0, 0.25]
    """
    moved = moved_average(shadow, current, first)
    for name, old in earlier.items():
        if name in moved:
            place = grow_from(old)
            target = (current[name].detach()[place] + old) / 2
            moved[name][place] = decay * shadow[name][place] + (1 - decay) * target
    return moved


def summed(sums: Tensors, counts: Tensors, values: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums in float64 and counts, with these values added; what a tensor has grown by is counted from now on.

    Names that are no longer there are dropped.

    >>> found, counts = summed({"a": torch.tensor([4.0])}, {"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0, 8.0])})
    >>> (found["a"] / counts["a"]).tolist()
    [3.0, 8.0]
    """
    totals, numbers = {}, {}
    for name, value in values.items():
        total, number = value.double().clone(), torch.ones_like(value, dtype=torch.float64)
        if name in sums:
            place = grow_from(sums[name])
            total[place] += sums[name]
            number[place] += counts[name]
        totals[name], numbers[name] = total, number
    return totals, numbers


def require_decay(name: str, decay: float) -> None:
    """Refuse what is no share."""
    if not 0 <= decay <= 1:
        raise ConfigError(f"{name} is {decay}; give a number from 0 to 1")


@final
class Ema(Rule):
    """After every step shadow <- decay shadow + (1 - decay) trained; at the end of the task the shadow is kept.

    The shadow starts each task where the trained tensors do, so a long memory stays near the last task's end. It is
    never trained, and training does not see it before the end of the task. An adapter that learns in the first task only
    is left as it was trained.

    Memory: one copy of the tensors while a task is learned.
    Compute: one sum over what is averaged, a step.
    """

    name: ClassVar[str] = "ema"
    phase: ClassVar[Phase] = Phase.REWRITES
    idle: ClassVar[Mapping[str, object]] = {"decay": 0.0}

    def __init__(
        self,
        *,
        decay: Annotated[float, "share of the mean that a step keeps; 0: as trained, 1: as the task began"] = 0.99,
        which: Which = "adapter",
    ) -> None:
        require_decay("decay", decay)
        self.decay: float = decay
        self.which: Which = which
        self._shadow: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        self._shadow = averaged_values(context, self.which)

    def after_step(self, context: Context) -> None:
        self._shadow = moved_average(self._shadow, context.model.trained(), self.decay)

    def end_task(self, context: Context) -> None:
        context.model.write(present(self._shadow, context))
        self._shadow = {}

    def state(self) -> State:
        return State(dict(self._shadow))

    def load_state(self, state: State, context: Context) -> None:
        self._shadow = on_device(state.tensors, context.model.backbone.device)


@final
class SnapshotMean(Rule):
    """Keeps the mean of what the tensors were at the end of every task, and answers with it.

    From the `last` snapshot training goes on as if nothing were averaged (FineTune-merge of arXiv 2408.14471). Every
    entry is averaged over the tasks that had it, in float64. With `last` trained tensors are back before
    other rules see the task.

    Memory: sums, counts and the last snapshot of the tensors.
    Compute: one sum over what is averaged, a task.
    """

    name: ClassVar[str] = "snapshot-mean"
    phase: ClassVar[Phase] = Phase.REWRITES
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS,)

    def __init__(
        self,
        *,
        start: Annotated[
            Literal["last", "mean"], "where the next task begins: at the last snapshot, or the mean"
        ] = "last",
        which: Which = "adapter",
    ) -> None:
        self.start: Literal["last", "mean"] = start
        self.which: Which = which
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        if self.start == "mean" or not self._last:
            return
        values = averaged_values(context, self.which)
        for name, last in present(self._last, context).items():
            values[name][grow_from(last)] = last
        context.model.write(values)

    def end_task(self, context: Context) -> None:
        values = averaged_values(context, self.which)
        if not values:
            return
        self._sums, self._counts = summed(self._sums, self._counts, values)
        self._last = values if self.start == "last" else {}
        context.model.write({name: (self._sums[name] / self._counts[name]).to(value) for name, value in values.items()})

    def state(self) -> State:
        return State.nested({"sums": State(self._sums), "counts": State(self._counts), "last": State(self._last)})

    def load_state(self, state: State, context: Context) -> None:
        self._sums = on_device(state.inner("sums").tensors, context.model.backbone.device)
        self._counts = on_device(state.inner("counts").tensors, context.model.backbone.device)
        self._last = on_device(state.inner("last").tensors, context.model.backbone.device)


@final
class CompatibleEma(Rule):
    """A running mean held between the values in training and those at the end of the last task (CTP, arXiv 2308.07146).

    After every step m <- decay m + (1 - decay) (theta + theta_last) / 2, from m = theta_last: it settles halfway, and
    never leaves the last task's half of the way. In the first task, and in what is new, m <- first_decay m + (1 -
    first_decay) theta; for tasks of few steps give a smaller `first_decay`. At the end of the task m is kept.

    Memory: two copies of the tensors while a task is learned.
    Compute: one sum over what is averaged, a step.
    Differs:
    - CTP uses m as the teacher of two losses, which are not here, and goes on with theta itself.
    """

    name: ClassVar[str] = "compatible-ema"
    phase: ClassVar[Phase] = Phase.REWRITES

    def __init__(
        self,
        *,
        decay: Annotated[float, "share of the mean that a step keeps, after the first task", "CTP's code"] = 0.9,
        first_decay: Annotated[float, "the same in the first task and for what is new", "CTP's code"] = 0.995,
        which: Which = "adapter",
    ) -> None:
        require_decay("decay", decay)
        require_decay("first_decay", first_decay)
        self.decay, self.first_decay = decay, first_decay
        self.which: Which = which
        self._shadow: dict[str, Tensor] = {}
        self._earlier: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        self._shadow = averaged_values(context, self.which)

    def after_step(self, context: Context) -> None:
        current = context.model.trained()
        self._shadow = compatible_step(self._shadow, current, self._earlier, self.decay, self.first_decay)

    def end_task(self, context: Context) -> None:
        context.model.write(present(self._shadow, context))
        self._shadow, self._earlier = {}, averaged_values(context, self.which)

    def state(self) -> State:
        return State.nested({"shadow": State(self._shadow), "earlier": State(self._earlier)})

    def load_state(self, state: State, context: Context) -> None:
        self._shadow = on_device(state.inner("shadow").tensors, context.model.backbone.device)
        self._earlier = on_device(state.inner("earlier").tensors, context.model.backbone.device)


def present(values: Tensors, context: Context) -> dict[str, Tensor]:
    """Those values whose tensors are still trained; an adapter that rests from the first task's end is not."""
    trained = context.model.trained()
    return {name: value for name, value in values.items() if name in trained}
