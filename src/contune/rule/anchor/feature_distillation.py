"""Distillation of features: new ones stay near those of the model before the task (arXiv 2203.17269, section 4)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import ANY_TRAINED, Need
from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Outputs
from contune.contract.parts import Rule
from contune.contract.state import State


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """||f_t(x) - f_{t-1}(x)||^2 for every row (B,).

    >>> feature_distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).item()
    25.0
    """
    return (student - teacher).square().sum(dim=1)


@final
class FeatureDistillation(Rule):
    """Adds `weight` times the mean squared distance of the task's features to those of the model before the task.

    The teacher is the adapter's trained tensors as they were when the task began, put in place of the current ones for
    one more forward pass. There is none in the first task. Memory: those tensors once more.

    Compute: one more forward pass a step.
    """

    name: ClassVar[str] = "feature-distillation"
    needs: ClassVar[tuple[Need, ...]] = (ANY_TRAINED,)
    idle: ClassVar[Mapping[str, object]] = {"weight": 0.0}

    def __init__(
        self,
        *,
        weight: Annotated[float, "weight of the squared distance to the old model's features, from 0"] = 0.1,
    ) -> None:
        self.weight = weight
        self._teacher: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        trained = context.model.trained() if context.task.index else {}
        self._teacher = {name: p.detach().clone() for name, p in trained.items() if name.startswith("adapter.")}

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        place = batch.segments[TASK]
        if not self.weight or not self._teacher or place.start == place.stop:
            return None
        with torch.no_grad(), context.model.swapped(self._teacher):
            teacher, _ = context.model.encode(batch)
        return self.weight * batch.mean(feature_distance(outputs.features[place], teacher[place]))

    def end_task(self, context: Context) -> None:
        self._teacher = {}

    def state(self) -> State:
        return State(dict(self._teacher))

    def load_state(self, state: State, context: Context) -> None:
        self._teacher = dict(state.tensors)
