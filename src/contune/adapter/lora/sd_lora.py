"""One LoRA per task, taken apart into a direction, frozen with its task, and a magnitude that goes on learning (SD-LoRA)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from contune.adapter.bottleneck.sublayers import changed_output
from contune.adapter.lora.per_task import LoraPerTask
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.contract.capability import TaskFactors
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers, Rank, Targets
from contune.contract.parts import Parameters
from contune.contract.state import State

NONE = 1e-20  # sizes up to this are taken for zero: float32 could not hold what they are divided by


def direction_sizes(a: Tensor, b: Tensor, tasks: int) -> Tensor:
    """||B_k||_F ||A_k||_F (tasks,) of finished LoRAs in float64.

    A (tasks x rank, d_in) has one task below the other, B (d_out, tasks x rank) side by side.

    >>> direction_sizes(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), 2).tolist()
    [10.0, 0.0]
    """
    rows = a.double().reshape(tasks, -1, a.shape[1])
    columns = b.double().reshape(b.shape[0], tasks, -1)
    return rows.square().sum((1, 2)).sqrt() * columns.square().sum((0, 2)).sqrt()


def inverse(sizes: Tensor) -> Tensor:
    """1 / size in float32, and 0 where the size is none: a LoRA that never learned has no direction.

    >>> inverse(torch.tensor([2.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    return torch.where(sizes > NONE, 1 / sizes.clamp(min=NONE), 0.0).float()


@final
class SdLora(Around):
    """h = W x + sum over k < t of alpha_k B_k A_k x / (||B_k||_F ||A_k||_F) + alpha_t B_t A_t x (SD-LoRA, section 4).

    Trained are A_t, B_t and all magnitudes alpha_1 to alpha_t. There is one magnitude per task, shared by all layers
    and by queries and values, as in the released code; norms are of each matrix alone. A finished direction goes from
    its own size to size 1 when the next task begins, so answers jump there.

    Memory: rank (d_in + d_out) per wrapped matrix and task, and one number per task.
    Compute: as `lora`, and one more low-rank product for all finished tasks together.
    """

    name: ClassVar[str] = "sd-lora"
    hides: ClassVar[tuple[type, ...]] = (TaskFactors,)  # finished updates are scaled to size 1 and by magnitudes

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "released code"] = 10,
        magnitude: Annotated[float, "where the magnitude of a task's update starts", "released code"] = 0.8,
        magnitudes: Annotated[
            Literal["restart", "carry"], "set anew by each task, or learned on", "released code"
        ] = "restart",
        targets: Annotated[Targets, "paper"] = "query-value",
        layers: Layers = "all",
    ) -> None:
        self.rank, self.magnitude, self.magnitudes = rank, magnitude, magnitudes
        self._lora = LoraPerTask(rank=rank, alpha=rank, targets=targets, layers=layers)
        super().__init__(self._lora)
        self._alpha = nn.Parameter(torch.full((1,), magnitude))
        self._inverse_sizes: dict[str, Tensor] = {}
        self._task = 0

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._lora.attach(backbone, seed)
        self._alpha = nn.Parameter(self._alpha.detach().to(backbone.device))

    def begin_task(self, context: Context) -> None:
        if not context.model.adapter_trainable:
            return
        self._lora.begin_task(context)
        self._task = context.task.index
        self._measure()
        alpha = torch.full((self.finished + 1,), self.magnitude)
        if self.magnitudes == "carry":
            alpha[: self.finished] = self._alpha.detach().cpu()[: self.finished]
        self._alpha = nn.Parameter(alpha.to(context.model.backbone.device))

    @property
    def finished(self) -> int:
        """How many finished directions there are."""
        return next((a.shape[0] // self.rank for a, _ in self._lora.factors(finished=True).values()), 0)

    def trained(self) -> Parameters:
        return {**self._lora.trained(), f"task{self._task}.magnitudes": self._alpha}

    def weight_changes(self) -> dict[str, Tensor]:
        """What all LoRAs together add to each wrapped weight (d_out, d_in): merged into it, the answers are the same."""
        changes = {name: self._alpha.detach()[-1] * (b @ a).detach() for name, (a, b) in self._lora.factors().items()}
        for name, (a, b) in self._lora.factors(finished=True).items():
            changes[name] += (b @ (self._scales(name)[:, None] * a)).detach()
        return changes

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        with self._scaled():
            return self._lora.encode(backbone, batch)

    def export(self, folder: Path) -> bool:
        return False  # a plain LoRA has no magnitudes

    def export_answering(self, folder: Path) -> bool:
        return False

    def merge(self) -> bool:
        return False

    def state(self) -> State:
        own = State({"alpha": self._alpha.detach()}, {"task": self._task})
        return State.nested({"lora": self._lora.state(), "own": own})

    def load_state(self, state: State, context: Context) -> None:
        self._lora.load_state(state.inner("lora"), context)
        own = state.inner("own")
        self._alpha = nn.Parameter(own.tensors["alpha"].clone().to(context.model.backbone.device))
        self._task = int(own.values["task"])
        self._measure()

    def _measure(self) -> None:
        finished = self.finished
        pairs = self._lora.factors(finished=True)
        self._inverse_sizes = {
            name: inverse(direction_sizes(a.detach(), b.detach(), finished)) for name, (a, b) in pairs.items()
        }

    def _scales(self, place: str) -> Tensor:
        """What each row of a module's stacked A is multiplied by."""
        return (self._alpha[:-1] * self._inverse_sizes[place]).repeat_interleave(self.rank)

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        """While the block runs, the low-rank products of every task have their magnitudes."""
        with ExitStack() as stack:
            for name, place in self._lora.places().items():
                new = place.get_submodule("lora_A.default")
                stack.enter_context(changed_output(new, partial(torch.mul, self._alpha[-1])))
                if name in self._inverse_sizes:
                    past = place.get_submodule("lora_A.past")
                    stack.enter_context(changed_output(past, partial(torch.mul, self._scales(name))))
            yield
