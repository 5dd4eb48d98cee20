"""Learn a task freely to see which entries matter, go back, and learn it again with these alone.

So lottery tickets are drawn (LT-SFT, arXiv 2110.07560, section 3) and subnetworks are tried (arXiv 2505.11711).
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import Freezable, Need, require
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.contract.state import State, on_device
from contune.errors import ConfigError
from contune.numerics.masks import (
    all_unpacked,
    held_updates,
    largest_together,
    masked_gradients,
    packed,
    sparsity,
)
from contune.rule.linear import PREFIX
from contune.rule.mask.sparse_delta import SparseDelta, sparse_delta

Choose = Callable[[Tensors, Tensors, Tensors], dict[str, Tensor]]


@final
class LotteryTicket(Rule):
    """In every task: train freely, choose entries by how they changed, rewind to the start, train these alone.

    `choose(theta_0, theta_1, taken)` gives the masks. The first phase is the same loop with the same settings, order of
    examples and schedule, and an optimizer of its own; it happens as the task begins, so a run that is stopped inside it
    does it again. The head is trained in it and rewound as well; in the second phase it learns freely. With several
    `iterations` each does both phases and unfreezes more. Rules beside this one act in the last second phase only, where
    checkpoints and reports are made as ever.

    Masked gradients are zero and masked moves are none: the released code masks gradients, and weight decay would move
    what rests. Tensors without any chosen entry leave training. `l1` adds that many times the
    mean of |theta - theta_0| over all entries that may be chosen, in both phases.

    What the task changed, its sparse delta, is kept with `keep`: taking the deltas of tasks out of the model again, or
    putting them into another, is `sparse_delta.composed`. A task starts from all deltas before it, as the paper trains
    a task on top of a language's. `sparsities`: for each task, the share of entries that free training left within
    `tolerance`, in float32.
    """

    needs: ClassVar[tuple[Need, ...]] = (Freezable,)

    def __init__(
        self, name: str, choose: Choose, *, iterations: int = 1, l1: float = 0.0, keep: bool, tolerance: float = 1e-5
    ) -> None:
        if iterations < 1 or min(l1, tolerance) < 0:
            raise ConfigError(
                f"iterations is {iterations}, l1 {l1} and tolerance {tolerance}; give at least 1, and no less than 0"
            )
        self.name = name  # type: ignore[misc]  # one class serves several names of the configuration
        self.iterations, self.l1, self.keep, self.tolerance = iterations, l1, keep, tolerance
        self._choose = choose
        self._origin: dict[str, Tensor] = {}
        self._masks: dict[str, Tensor] = {}
        self._free = False
        self._count = 0
        self.deltas: dict[int, SparseDelta] = {}
        self.sparsities: list[float] = []

    def begin_task(self, context: Context) -> None:
        adapter = require(context.model.adapter, Freezable)
        adapter.freeze(())
        self._origin = maskable(context)
        self._count = sum(value.numel() for value in self._origin.values())
        self._masks = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self._origin.items()}
        for number in range(self.iterations if self._origin else 0):
            if number:
                self._learn(context)
            start = {name: value.detach().clone() for name, value in context.model.trained().items()}
            self._free = True
            self._learn(context)
            self._free = False
            end = maskable(context)
            if number == 0:
                self.sparsities.append(sparsity(self._origin, end, self.tolerance))
            self._masks = self._choose(self._origin, end, self._masks)
            context.model.write(start)
        self._leave_out(adapter)

    def _leave_out(self, adapter: Freezable) -> None:
        """Tensors of which no entry was chosen are not trained at all."""
        empty = {name for name, mask in self._masks.items() if not bool(mask.any())}
        adapter.freeze({name.removeprefix(PREFIX) for name in empty})
        self._masks = {name: mask for name, mask in self._masks.items() if name not in empty}
        self._origin = {name: value for name, value in self._origin.items() if name not in empty}

    def _learn(self, context: Context) -> None:
        context.passes.extra_steps(context, (self,))

    def penalty(self, context: Context) -> Tensor | None:
        if not self.l1 or not self._origin:
            return None
        trained = context.model.trained()
        sums = [(trained[name] - value).abs().sum() for name, value in self._origin.items()]
        return self.l1 * torch.stack(sums).sum() / self._count

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return gradients if self._free else masked_gradients(gradients, self._masks)

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        return updates if self._free else held_updates(updates, self._masks)

    def end_task(self, context: Context) -> None:
        if self.keep and self._origin:
            self.deltas[context.task.index] = sparse_delta(self._origin, maskable(context), self._masks)
        self._origin, self._masks = {}, {}

    def diagnostics(self) -> dict[str, float]:
        return {"share left as it was": self.sparsities[-1]} if self.sparsities else {}

    def state(self) -> State:
        own = {"tasks": sorted(self.deltas), "sparsities": list(self.sparsities), "count": self._count}
        parts = {f"delta{task}": delta.state() for task, delta in self.deltas.items()}
        parts["masks"] = State({name: packed(mask) for name, mask in self._masks.items()})
        parts["start"] = State({name: value[self._masks[name]] for name, value in self._origin.items()})
        return State.nested({**parts, "own": State({}, own)})

    def load_state(self, state: State, context: Context) -> None:
        own, device = state.inner("own").values, context.model.backbone.device
        self.sparsities, self._count = [float(value) for value in own["sparsities"]], int(own["count"])
        for task in own["tasks"]:
            inner = state.inner(f"delta{task}")
            moved = State(on_device(inner.tensors, device), inner.values)
            self.deltas[int(task)] = SparseDelta.from_state(moved)
        self._origin = {
            name: value for name, value in maskable(context).items() if name in state.inner("start").tensors
        }
        self._masks = all_unpacked(state.inner("masks").tensors, self._origin)
        for name, values in state.inner("start").tensors.items():
            self._origin[name][self._masks[name]] = values.to(device)  # what rests is where it was


def maskable(context: Context) -> dict[str, Tensor]:
    """Copies of the adapter's trained tensors, which masks are chosen among."""
    return {name: value.detach().clone() for name, value in context.model.trained().items() if name.startswith(PREFIX)}


def most_changed(share: float, iterations: int) -> Choose:
    """Chooses the entries that changed most, over all tensors together: in all iterations `share` of them, exactly."""

    def choose(origin: Tensors, end: Tensors, taken: Tensors) -> dict[str, Tensor]:
        count = int(share * sum(value.numel() for value in origin.values())) // iterations
        return largest_together({name: (end[name] - value).abs() for name, value in origin.items()}, count, taken)

    return choose


def lottery_ticket(
    *,
    share: Annotated[float, "part of all weights together that is trained, above 0 to 1", "paper, for mBERT"] = 0.076,
    iterations: Annotated[int, "rounds of free training and choosing, from 1", "released code"] = 1,
    l1: Annotated[float, "weight of the mean change from the start in the loss, from 0", "released code"] = 0.0,
) -> Rule:
    """Only the `share` of weights that free training changes most is trained, from the task's start (arXiv 2110.07560).

    Memory: the trained weights once more while a task is learned; 12 bytes per chosen weight and task.
    Compute: twice that of plain training, more with `iterations`.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; give a number above 0 and at most 1, the part of the weights to train")
    return LotteryTicket("lottery-ticket", most_changed(share, iterations), iterations=iterations, l1=l1, keep=True)
