"""Distillation from the model as it was before the task (LwF, arXiv 1606.09282)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Outputs
from contune.contract.parts import Rule
from contune.contract.state import State


@final
class Distillation(Rule):
    """Holds the old classes' scores on the new task's own examples near those of the model before it (arXiv 1606.09282).

    The teacher is the trained tensors as they were at the start of the task, put in place of the current ones for one
    more forward pass: no second copy of the base. Where every task begins a module of its own, the teacher answers through
    that module as it begins.

    Memory: the trained tensors once more.
    Compute: one more forward pass a step.
    """

    name = "distillation"
    idle: ClassVar[Mapping[str, object]] = {"weight": 0.0}

    def __init__(
        self,
        *,
        weight: Annotated[float, "weight of the distance to the old model's scores, from 0", "paper, section 3"] = 1.0,
        temperature: Annotated[float, "softens both models' scores, above 0", "paper, section 3"] = 2.0,
    ) -> None:
        self.weight, self.temperature = weight, temperature
        self._teacher: dict[str, Tensor] = {}
        self._known = 0

    def begin_task(self, context: Context) -> None:
        self._known = context.task.known
        self._teacher = {name: p.detach().clone() for name, p in context.model.trained().items()} if self._known else {}

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        place = batch.segments[TASK]
        if not self.weight or not self._teacher or place.start == place.stop:
            return None
        with torch.no_grad(), context.model.swapped(self._teacher):
            teacher = context.model.forward(batch).logits[place, : self._known]
        student = outputs.logits[place, : self._known]
        rows = context.model.objective.divergences(student, teacher, self.temperature)
        return self.weight * batch.mean(rows)

    def end_task(self, context: Context) -> None:
        self._teacher = {}

    def state(self) -> State:
        return State(dict(self._teacher), {"known": self._known})

    def load_state(self, state: State, context: Context) -> None:
        self._teacher, self._known = dict(state.tensors), int(state.values["known"])
