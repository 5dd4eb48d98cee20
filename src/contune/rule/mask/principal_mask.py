"""Only principal weights move: the largest entries of each matrix's low-rank part (LIFT, arXiv 2506.00772)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import BaseMatrices, Need
from contune.contract.context import Context
from contune.contract.data import Selection
from contune.contract.parts import Rule, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.numerics.masks import Choice, all_unpacked, held_updates, masked_gradients, packed, principal
from contune.rule.linear import slices, trained_matrices


@final
class PrincipalMask(Rule):
    """Of every matrix only the largest entries of its low-rank part move (LIFT, arXiv 2506.00772).

    The part is of rank `filter_rank`, and as many entries move as a LoRA of rank `rank` has. The mask is taken of the
    weights as a task finds them, and again after every `interval` steps of the task; nothing is kept between tasks.
    Principal weights are not the largest weights. A matrix with no more weights than the LoRA would have is trained
    whole. Experts kept in one tensor are masked one by one. Biases, norms and embeddings that the adapter trains are not
    masked, nor is the head: the released code freezes them, as adapter `linear-layers` does.

    Masked gradients are zero and masked moves are none, so momentum and weight decay change nothing that rests. Moments
    are dense tensors with zeros where nothing ever moved: this saves no memory, where the released optimizer keeps
    moments of the mask alone. An entry that joins starts with moments of zero and the bias correction of the step
    count, as released; one that leaves and comes back finds its moments decayed, there it starts anew. The SVD is
    exact, in float32; ties go by place.

    Memory: the mask.
    Compute: one SVD of every matrix at each refresh.
    """

    name: ClassVar[str] = "principal-mask"
    needs: ClassVar[tuple[Need, ...]] = (BaseMatrices,)

    def __init__(
        self,
        *,
        rank: Annotated[int, "a LoRA of this rank has as many weights as move, from 1", "released, 8B model"] = 32,
        filter_rank: Annotated[int, "rank of the part of a matrix that they are chosen by", "released, 8B model"] = 16,
        interval: Annotated[int, "steps of a task after which they are chosen anew", "released, 7B model"] = 400,
        choice: Annotated[Choice, "how they are chosen; the others are controls", "paper"] = "low-rank",
    ) -> None:
        if min(rank, filter_rank, interval) < 1:
            raise ConfigError(
                f"rank is {rank}, filter_rank {filter_rank} and interval {interval}; give at least 1 of each"
            )
        self.rank, self.filter_rank, self.interval = rank, filter_rank, interval
        self.choice: Choice = choice
        self._masks: dict[str, Tensor] = {}
        self._step = 0

    def begin_task(self, context: Context) -> None:
        self._masks = self._found(context, 0)

    def _found(self, context: Context, step: int) -> dict[str, Tensor]:
        masks = {}
        for name, matrix in trained_matrices(context).items():
            found = []
            for part, weight in slices(name, matrix.weight.detach()).items():
                generator = torch_generator(
                    context.task.settings.seed, "principal mask", context.task.index, step, part
                )
                found.append(principal(weight, self.rank, self.filter_rank, self.choice, generator))
            masks[name] = found[0] if matrix.weight.dim() == 2 else torch.stack(found)
        return masks

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._step = step
        return {}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return masked_gradients(gradients, self._masks)

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        return held_updates(updates, self._masks)

    def after_step(self, context: Context) -> None:
        if (self._step + 1) % self.interval == 0:
            self._masks = self._found(context, self._step + 1)

    def end_task(self, context: Context) -> None:
        self._masks = {}

    def state(self) -> State:
        return State({name: packed(mask) for name, mask in self._masks.items()})

    def load_state(self, state: State, context: Context) -> None:
        self._masks = all_unpacked(state.tensors, context.model.trained())
