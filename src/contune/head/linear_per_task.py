"""A linear head for every module of the adapter: old ones never change (S-Prompts, arXiv 2207.12819)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.contract.capability import Modules, Need
from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import CombinationError
from contune.head.linear import grown
from contune.head.options import HeadLrScale

Row = tuple[Tensor, Tensor, Sequence[int]]


def placed_scores(features: Tensor, routes: Tensor, heads: Mapping[int, Row], classes: int) -> Tensor:
    """Scores (B, classes): row b by the head (weight, bias, columns) of its route, and -inf in all other columns.

    >>> head = (torch.ones(1, 2), torch.zeros(1), [1])
    >>> placed_scores(torch.ones(1, 2), torch.tensor([0]), {0: head}, 3).tolist()
    [[-inf, 2.0, -inf]]
    """
    scores = features.new_full((len(features), classes), float("-inf"))
    for module in torch.unique(routes).tolist():
        weight, bias, columns = heads[module]
        rows = (routes == module).nonzero()
        scores = scores.index_put(
            (rows, torch.tensor(columns, device=rows.device)),
            functional.linear(features[rows[:, 0]], weight, bias),
        )
    return scores


@final
class LinearPerTask(Head):
    """Every task has rows of its own for its classes, also for classes that earlier tasks had; old rows never change.

    A row is scored by the head of the module it came through, over that module's classes; all other columns are -inf. In
    a domain-incremental stream the columns are the same for every task and the weights are not. Where tasks share a
    module (first-task adaptation), the module's head grows and goes on training. Needs a router, or the task's name.
    Memory: (d + 1) x classes of the task, per task.
    Compute: a matrix product a step.
    """

    name: ClassVar[str] = "linear-per-task"
    needs: ClassVar[tuple[Need, ...]] = (Modules,)
    loss_over: Literal["seen", "own-task"] = "own-task"

    def __init__(
        self,
        *,
        lr_scale: HeadLrScale = 1.0,
    ) -> None:
        self.lr_scale = lr_scale
        self._columns: dict[int, list[int]] = {}
        self._heads: dict[int, dict[str, nn.Parameter]] = {}
        self._current = 0
        self._seen = 0

    def begin_task(self, context: Context) -> None:
        module = context.model.module_of(context.task.index)
        known = self._columns.get(module, [])
        columns = known + [column for column in context.task.classes if column not in known]
        generator = torch_generator(context.task.settings.seed, "head", context.task.index)
        width = context.model.adapter.feature_size(context.model.backbone)
        old = self._heads.get(module)
        weight = grown(old["weight"] if old else None, len(columns), width, generator)
        bias = torch.zeros(len(columns))
        if old:
            bias[: len(known)] = old["bias"].detach().cpu()
        self._columns[module], self._seen = columns, context.task.seen
        self._set(module, {"weight": weight, "bias": bias}, context.model.backbone.device)
        self._choose(module)

    def _set(self, module: int, values: Mapping[str, Tensor], device: torch.device) -> None:
        self._heads[module] = {name: nn.Parameter(value.clone().to(device)) for name, value in values.items()}

    def _choose(self, module: int) -> None:
        """From here on this module's head trains and all others rest."""
        self._current = module
        for number, head in self._heads.items():
            for parameter in head.values():
                parameter.requires_grad_(number == module)

    def trained(self) -> Parameters:
        current = self._heads.get(self._current, {})
        return {f"module{self._current}.{name}": value for name, value in current.items()}

    def logits(self, features: Tensor) -> Tensor:
        raise CombinationError(
            "head 'linear-per-task' was given features without the module they came through; add a router to the method"
        )

    def routed_logits(self, features: Tensor, routes: Tensor, *, training: bool) -> Tensor:
        heads = {module: (h["weight"], h["bias"], self._columns[module]) for module, h in self._heads.items()}
        return placed_scores(features, routes, heads, self._seen)

    def state(self) -> State:
        tensors = {f"{module}/{name}": p.detach() for module, head in self._heads.items() for name, p in head.items()}
        columns = {str(module): list(columns) for module, columns in self._columns.items()}
        return State(tensors, {"columns": columns, "current": self._current, "seen": self._seen})

    def load_state(self, state: State, context: Context) -> None:
        self._columns = {int(module): list(columns) for module, columns in state.values["columns"].items()}
        self._heads = {}
        for module in self._columns:
            self._set(module, state.inner(str(module)).tensors, context.model.backbone.device)
        self._seen = int(state.values["seen"])
        self._choose(int(state.values["current"]))
