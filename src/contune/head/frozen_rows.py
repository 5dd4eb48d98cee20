"""A head whose finished rows never move, with spare rows ahead for classes to come (SEQ*, arXiv 2312.07887)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.parts import Head, Parameters, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State, on_device
from contune.errors import ConfigError
from contune.head.linear import grown
from contune.head.options import HeadLrScale

Kind = Literal["cosine", "linear"]


def row_scores(features: Tensor, weight: Tensor, bias: Tensor, kind: Kind, scale: float) -> Tensor:
    """Scores (B, C) of features (B, d) by rows (C, d): W x + b, or `scale` times the cosine.

    >>> features, weight = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> row_scores(features, weight, torch.tensor([1.0, 0.0]), "linear", 1.0).tolist()
    [[7.0, 3.0]]
    >>> row_scores(features, weight, torch.zeros(2), "cosine", 10.0)[0, 0].item()
    10.0
    """
    if kind == "linear":
        return functional.linear(features, weight, bias)
    return scale * functional.linear(functional.normalize(features, dim=1), functional.normalize(weight, dim=1))


def with_rows(values: Tensor, columns: Sequence[int], rows: Tensor) -> Tensor:
    """`values` (C, ...) with `rows` in the places `columns`; gradients reach the rows alone.

    >>> with_rows(torch.zeros(3), [2], torch.ones(1)).tolist()
    [0.0, 0.0, 1.0]
    """
    return values.index_copy(0, torch.tensor(columns, dtype=torch.int64, device=values.device), rows)


@final
class FrozenRows(Head):
    """A row for each class: those of the current task's classes train, all others keep every bit (arXiv 2312.07887).

    `reserved_rows` stand ready for classes nobody has seen. With rule preallocation they compete in the loss and so
    move away from the features of today; a new class takes the first of them as its start, and new ones are drawn
    behind. They never answer. A class that comes back trains again, since the paper's classes never do. The cosine
    gives no class an advantage by the length of its row. Rows start uniform in +-1/sqrt(d).

    Memory: (classes + reserved rows) x (d + 1).
    Compute: a matrix product a step.
    Differs:
    - The released code makes rows for all classes there will ever be; here a fixed number is ahead at any time.
    """

    name: ClassVar[str] = "frozen-rows"

    def __init__(
        self,
        *,
        kind: Annotated[Kind, "cosine of feature and row, or linear with a bias", "paper, without replay"] = "cosine",
        scale: Annotated[float, "factor of the cosines, above 0; more learns faster", "released code"] = 1.0,
        reserved_rows: Annotated[int, "rows kept ready for classes to come; rule preallocation trains them"] = 0,
        lr_scale: HeadLrScale = 1.0,
    ) -> None:
        if reserved_rows < 0 or scale <= 0:
            raise ConfigError(f"spare is {reserved_rows} and scale {scale}; give 0 or more rows, and a scale above 0")
        self.kind: Kind = kind
        self.scale, self.reserved_rows, self.lr_scale = scale, reserved_rows, lr_scale
        self._rest: dict[str, Tensor] = {}
        self._rows: dict[str, nn.Parameter] = {}
        self._ahead: dict[str, nn.Parameter] = {}
        self._columns: list[int] = []

    def begin_task(self, context: Context) -> None:
        width = context.model.adapter.feature_size(context.model.backbone)
        generator = torch_generator(context.task.settings.seed, "head", context.task.index)
        known = self._values() if self._rest else {"weight": torch.zeros(0, width), "bias": torch.zeros(0)}
        before = {name: torch.cat([known[name], *self._spare_rows(name)]) for name in known}
        seen, count = context.task.seen, max(context.task.seen + self.reserved_rows, len(before["bias"]))
        weight = grown(before["weight"], count, width, generator)
        bias = torch.zeros(count)
        bias[: len(before["bias"])] = before["bias"]
        self._columns = list(context.task.classes)
        rest = {"weight": weight[:seen], "bias": bias[:seen]}
        self._set(rest, {name: value[self._columns] for name, value in rest.items()}, context.model.backbone.device)
        self._set_ahead({"weight": weight[seen:], "bias": bias[seen:]}, context.model.backbone.device)

    def _values(self) -> dict[str, Tensor]:
        """All rows of seen classes as they are now, on the CPU."""
        return {name: value.detach().cpu() for name, value in self._all_rows().items()}

    def _spare_rows(self, name: str) -> list[Tensor]:
        return [self._ahead[name].detach().cpu()] if self._ahead else []

    def _all_rows(self) -> dict[str, Tensor]:
        return {name: with_rows(value, self._columns, self._rows[name]) for name, value in self._rest.items()}

    def _set(self, rest: Tensors, rows: Tensors, device: torch.device) -> None:
        self._rest = on_device(rest, device)
        self._rows = {name: nn.Parameter(value.clone().to(device)) for name, value in rows.items()}

    def _set_ahead(self, values: Tensors, device: torch.device) -> None:
        self._ahead = {}
        if self.reserved_rows:
            self._ahead = {name: nn.Parameter(value.clone().to(device)) for name, value in values.items()}

    def trained(self) -> Parameters:
        every = {**self._rows, **{f"spare.{name}": value for name, value in self._ahead.items()}}
        return {name: value for name, value in every.items() if self.kind == "linear" or not name.endswith("bias")}

    def logits(self, features: Tensor) -> Tensor:
        rows = self._all_rows()
        return row_scores(features, rows["weight"], rows["bias"], self.kind, self.scale)

    def reserved_logits(self, features: Tensor) -> Tensor:
        """Scores (B, spare) of the rows that stand for no class yet."""
        if not self._ahead:
            return features.new_zeros(len(features), 0)
        return row_scores(features, self._ahead["weight"], self._ahead["bias"], self.kind, self.scale)

    def state(self) -> State:
        groups: dict[str, Tensors] = {"rest": self._rest, "rows": self._rows, "spare": self._ahead}
        tensors = {f"{group}/{name}": value.detach() for group, each in groups.items() for name, value in each.items()}
        return State(tensors, {"columns": list(self._columns)})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        self._columns = [int(column) for column in state.values["columns"]]
        self._set(state.inner("rest").tensors, state.inner("rows").tensors, device)
        self._set_ahead(state.inner("spare").tensors, device)
