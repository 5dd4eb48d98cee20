"""A linear head whose older rows answer from larger features (SLCA++, arXiv 2408.08295, released code)."""

from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.state import State
from contune.head.linear import Linear
from contune.head.options import HeadLrScale, LossOver


def scaled_scores(features: Tensor, weight: Tensor, bias: Tensor, ages: Tensor, scale: float) -> Tensor:
    """Scores (1 + scale * age_c) f w_c + b_c (B, C); `ages` (C,) are tasks since the class was last learned.

    >>> scaled_scores(torch.ones(1, 1), torch.tensor([[2.0], [2.0]]), torch.ones(2), torch.tensor([1, 0]), 0.5).tolist()
    [[4.0, 3.0]]
    """
    factors = 1 + scale * ages.to(features)
    return features @ weight.T * factors + bias


@final
class ScaledLinear(Head):
    """A linear head that sees the features of a class times 1 + scale x (tasks since it was learned) to answer.

    Training sees no factor, nor does rule alignment, which trains with a random one in its samples. `scale` 0 is
    linear.

    Memory: (d + 1) x classes.
    Compute: a matrix product a step.
    """

    name: ClassVar[str] = "scaled-linear"
    class_rows: ClassVar[tuple[str, ...]] = Linear.class_rows

    def __init__(
        self,
        *,
        scale: Annotated[float, "growth of the features for each task since", "released code"] = 0.02,
        loss_over: LossOver = "seen",
        lr_scale: HeadLrScale = 1.0,
    ) -> None:
        self.scale, self.loss_over, self.lr_scale = scale, loss_over, lr_scale
        self._linear = Linear(loss_over=loss_over, lr_scale=lr_scale)
        self._tasks = torch.zeros(0, dtype=torch.int64)
        self._now = 0

    def begin_task(self, context: Context) -> None:
        self._linear.begin_task(context)
        missing = context.task.seen - len(self._tasks)
        self._tasks = torch.cat([self._tasks, self._tasks.new_zeros(missing)])
        self._tasks[list(context.task.classes)] = context.task.index
        self._now = context.task.index

    def trained(self) -> Parameters:
        return self._linear.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._linear.training_logits(features)

    def logits(self, features: Tensor) -> Tensor:
        weight, bias = self._linear.trained()["weight"], self._linear.trained()["bias"]
        return scaled_scores(features, weight, bias, self._now - self._tasks, self.scale)

    def state(self) -> State:
        return State({**self._linear.state().tensors, "tasks": self._tasks}, {"now": self._now})

    def load_state(self, state: State, context: Context) -> None:
        self._linear.load_state(state, context)
        self._tasks, self._now = state.tensors["tasks"], int(state.values["now"])
