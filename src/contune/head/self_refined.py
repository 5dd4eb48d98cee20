"""A linear head that finds the module for an example by itself, from its own answers (MOS, arXiv 2412.09441)."""

from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.capability import Modules, Need, TaskModules, require
from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.state import State
from contune.errors import ConfigError
from contune.head.linear import Linear
from contune.head.options import HeadLrScale, LossOver
from contune.head.solved.class_means import nearest_mean_scores
from contune.numerics.averages import summed_blocks


def refined(scores: Tensor, owners: Tensor, start: Tensor, rounds: int) -> Tensor:
    """The module (B,) that answers, from scores (B, m, C) through every module and the module (C,) that owns each class.

    From module `start` (B,) on, the class that a module finds likeliest names the next module, until one names itself; at
    most `rounds` modules are asked, and the last one asked answers.

    >>> scores = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 3.0, 1.0], [0.0, 0.0, 5.0]]])
    >>> [refined(scores, torch.tensor([0, 1, 2]), torch.tensor([0]), rounds).item() for rounds in (1, 2, 4)]
    [0, 2, 2]
    """
    rows = torch.arange(len(scores), device=scores.device)
    chosen = start
    for _ in range(rounds - 1):
        chosen = owners[scores[rows, chosen].argmax(dim=1)]
    return chosen


def ensemble(scores: Tensor, cosines: Tensor, modules: int) -> Tensor:
    """Log of the mean of softmax(scores) and softmax(modules * cosines), both (B, C); seen classes only in the second.

    >>> ensemble(torch.zeros(1, 2), torch.zeros(1, 2), 3).exp().tolist()
    [[0.5, 0.5]]
    """
    pair = [functional.log_softmax(scores, dim=1), functional.log_softmax(modules * cosines, dim=1)]
    return torch.logsumexp(torch.stack(pair), dim=0) - torch.log(torch.tensor(2.0))


@final
class SelfRefined(Head):
    """A linear head over all classes, asked through one module after the other until class and module agree (2412.09441).

    Features of all m modules come side by side. The first module is that of the nearest class mean (by cosine) among
    the features of module 0; then the head's answer through a module names the next, at most `rounds` in all
    (self-refined retrieval). `ensemble` averages the softmax of that answer with the softmax of m times the cosines. A
    row chooses alone. Class means are of all examples through module 0, which no later task changes, and so need no
    refreshing; without any yet, module 0 begins. A class that comes back belongs to the module of its last task. Where
    the task is named, its module alone answers.

    Memory: d per class twice.
    Compute: a forward pass through every module for an answer.
    """

    name: ClassVar[str] = "self-refined"
    needs: ClassVar[tuple[Need, ...]] = (TaskModules,)
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "growing"
    class_rows: ClassVar[tuple[str, ...]] = Linear.class_rows

    def __init__(
        self,
        *,
        loss_over: LossOver = "own-task",
        lr_scale: HeadLrScale = 1.0,
        rounds: Annotated[int, "most modules that are asked for one answer, from 1", "MOS's released code"] = 4,
        ensemble: Annotated[bool, "average the answer with that of the class means", "MOS's released code"] = True,
    ) -> None:
        if rounds < 1:
            raise ConfigError(f"rounds is {rounds}; give at least 1")
        self.loss_over, self.lr_scale = loss_over, lr_scale
        self.rounds, self.ensemble = rounds, ensemble
        self._linear = Linear(loss_over=loss_over)
        self._sums = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._owners = torch.zeros(0, dtype=torch.int64)

    def begin_task(self, context: Context) -> None:
        self._linear.begin_task(context)
        seen = context.task.seen
        sums = torch.zeros(seen, context.model.adapter.feature_size(context.model.backbone), dtype=torch.float64)
        counts = torch.zeros(seen, dtype=torch.int64)
        if len(self._counts):
            sums[: len(self._sums)], counts[: len(self._counts)] = self._sums, self._counts
        self._sums, self._counts = sums, counts
        self._owners = owners_of(context.model.class_tasks, require(context.model.adapter, Modules))

    def trained(self) -> Parameters:
        return self._linear.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._linear.logits(features)

    def routed_logits(self, features: Tensor, routes: Tensor, *, training: bool) -> Tensor:
        del routes, training
        return self._linear.logits(features)

    def end_task(self, context: Context) -> None:
        blocks, width = (
            context.passes.module_blocks(context.task.data, 0),
            context.model.adapter.feature_size(context.model.backbone),
        )
        sums, counts = summed_blocks(blocks, context.task.data.labels, len(self._counts), width)
        self._sums, self._counts = self._sums + sums, self._counts + counts

    def logits(self, features: Tensor) -> Tensor:
        width = self._sums.shape[1]
        blocks = features.reshape(len(features), -1, width)
        modules, owners = blocks.shape[1], self._owners.to(features.device)
        scores = self._linear.logits(blocks.reshape(-1, width)).reshape(len(features), modules, -1)
        cosines = self._cosines(blocks[:, 0])
        start = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        if cosines is not None:
            start = owners[cosines.argmax(dim=1)]
        rows = torch.arange(len(features), device=features.device)
        final_scores = scores[rows, refined(scores, owners, start, self.rounds)]
        if cosines is None or not self.ensemble:
            return final_scores
        return ensemble(final_scores, cosines, modules)

    def _cosines(self, first: Tensor) -> Tensor | None:
        """Cosines (B, C) of features through module 0 to the class means; None before there is any."""
        if not (self._counts > 0).any():
            return None
        means = self._sums / self._counts.clamp(min=1).unsqueeze(1)
        scores = nearest_mean_scores(first.detach().double().cpu(), means, "cosine")
        return scores.masked_fill(self._counts == 0, float("-inf")).to(first)

    def state(self) -> State:
        own = State({"sums": self._sums, "counts": self._counts, "owners": self._owners})
        return State.nested({"linear": self._linear.state(), "own": own})

    def load_state(self, state: State, context: Context) -> None:
        self._linear.load_state(state.inner("linear"), context)
        own = state.inner("own").tensors
        self._sums, self._counts, self._owners = own["sums"], own["counts"], own["owners"]


def owners_of(class_tasks: Tensor, modules: Modules) -> Tensor:
    """The module (seen,) of the last task that has each class, from `class_tasks` (tasks, seen)."""
    tasks = torch.arange(len(class_tasks)).unsqueeze(1)
    last = torch.where(class_tasks.cpu(), tasks, 0).amax(dim=0)
    return modules.routes(last).cpu()
