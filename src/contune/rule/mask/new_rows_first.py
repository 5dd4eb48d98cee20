"""The head rows of new classes learn alone while a task begins (the warm-up of LwF, arXiv 1606.09282)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Selection
from contune.contract.parts import Phase, Rule, Tensors
from contune.errors import ConfigError

SLACK = 1e-9  # a share such as 0.29 of 100 steps is 28.999... in floating point


def first_steps(steps: int, share: float) -> int:
    """How many of a task's steps are the share of them, rounded down.

    >>> first_steps(75, 0.2), first_steps(100, 0.29)
    (15, 29)
    """
    return int(share * steps + SLACK)


def rows_alone(values: Tensor, columns: tuple[int, ...], other: float) -> Tensor:
    """`values` (C, ...) in the rows `columns`, and `other` in all others.

    >>> rows_alone(torch.ones(3), (2,), 0.0).tolist()
    [0.0, 0.0, 1.0]
    """
    kept = torch.full_like(values, other)
    kept[list(columns)] = values[list(columns)]
    return kept


@final
class NewRowsFirst(Rule):
    """In every task after the first, the head rows of the task's classes learn alone for a share of its steps.

    All else keeps every bit in them: adapter, router, and the rows of other classes, as when the paper freezes the shared
    and the old parameters and trains the new ones until they converge, before it trains all. So the first gradients that
    reach the model are not those of rows that were drawn at random. Where a head has no row for each class, all of it
    learns; where there is no trained head, the rule does nothing.

    Memory: nothing.
    Compute: nothing of its own.
    """

    name: ClassVar[str] = "new-rows-first"
    phase: ClassVar[Phase] = Phase.VETOES
    idle: ClassVar[Mapping[str, object]] = {"share": 0.0}

    def __init__(self, *, share: Annotated[float, "share of a later task's steps, from 0 to 1"] = 0.2) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"share is {share}; give a number from 0 to 1, the part of each task's steps")
        self.share = share
        self._alone = False

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        begins = context.task.index > 0 and step < first_steps(context.task.steps, self.share)
        self._alone = begins and bool(context.model.head.trained())  # told anew at each step: there is no state
        return {}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        if not self._alone:
            return gradients
        return self._of_new_rows(context, {n: g for n, g in gradients.items() if n.startswith("head.")}, 0.0)

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        return self._of_new_rows(context, updates, -0.0) if self._alone else updates

    def _of_new_rows(self, context: Context, values: Tensors, other: float) -> Tensors:
        rows = {f"head.{name}" for name in context.model.head.class_rows}
        columns = context.task.classes
        return {name: rows_alone(v, columns, other) if name in rows else v for name, v in values.items()}
