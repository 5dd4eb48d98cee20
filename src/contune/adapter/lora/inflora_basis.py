"""One LoRA per task whose input side is designed and frozen, so that old inputs never feel the new one (InfLoRA)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.adapter.lora.per_task import LoraPerTask
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.backbone.targets import key_value_targets
from contune.contract.capability import InputFactors
from contune.contract.context import Context
from contune.contract.options import KeyValueTargets, Layers, Rank
from contune.contract.parts import Parameters
from contune.contract.passes import input_moments
from contune.contract.state import InputMemory, State
from contune.errors import ConfigError
from contune.numerics.subspaces import Subspace, closing_threshold, directions

SIZE = 3**-0.5  # of every row of A: the variance that Kaiming's uniform start with a = sqrt(5) would give


def designed_rows(moment: Tensor, old: Subspace | None, rank: int) -> Tensor:
    """A (rank, d): the strongest directions of the inputs' second moment C (d, d) outside the old inputs' subspace.

    The first left singular vectors of (I - U U^T) C, each of length 1/sqrt(3) (InfLoRA, section 3.2). They are looked for
    among what is orthogonal to U alone, so that A U = 0 also where the data have no energy left. Rows beyond the
    dimensions that are left are zero.

    >>> designed_rows(torch.diag(torch.tensor([9.0, 4.0])), Subspace(torch.eye(2)[:, :1], "remove"), 1).abs().tolist()
    [[0.0, 0.5773502588272095]]
    """
    wide = moment.double()
    free = torch.eye(len(wide), dtype=wide.dtype, device=wide.device) if old is None else old.free()
    found, _ = directions(wide @ wide, free)
    rows = wide.new_zeros(rank, len(wide))
    rows[: min(rank, found.shape[1])] = SIZE * found.T[:rank]
    return rows.float()


@final
class InfloraBasis(Around):
    """h = W x + sum over tasks of B_i A_i x, where only B_t is trained and A_t is designed before the task (InfLoRA).

    A_t spans the strongest input directions of the new task that are orthogonal to the inputs of finished tasks, and is
    shared by modules that read the same tensor. B_t starts at zero. After the task its inputs join the memory, until it
    holds the share `threshold` of their energy. A projection that makes queries, keys and values in one is wrapped
    whole, so there queries learn as well.

    Memory: rank (d_in + d_out) per wrapped matrix and task, at most d_in^2 / 2 values per layer for old inputs.
    Compute: two more passes over each task and two eigenvalue problems of size d_in per layer, in float64.
    """

    name: ClassVar[str] = "inflora-basis"
    hides: ClassVar[tuple[type, ...]] = (InputFactors,)  # A is not trained

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "released code, CIFAR-100"] = 10,
        threshold: Annotated[float, "share of old inputs' energy that updates keep off", "released code"] = 0.95,
        growth: Annotated[float, "share of its way to 1 that each task raises it", "paper, ten tasks"] = 0.1,
        targets: Annotated[KeyValueTargets, "paper"] = "key-value",
        layers: Layers = "all",
    ) -> None:
        for name, value in (("threshold", threshold), ("growth", growth)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name} is {value}; give at least 0 and less than 1")
        self.scale = 1.0  # alpha is the rank
        self.rank, self.threshold, self.growth = rank, threshold, growth
        self._lora = LoraPerTask(rank=rank, alpha=rank, targets=key_value_targets(targets), layers=layers)
        super().__init__(self._lora)
        self._memory = InputMemory()

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._lora.attach(backbone, seed)
        self._freeze()

    def begin_task(self, context: Context) -> None:
        if not context.model.adapter_trainable:
            return
        self._lora.begin_task(context)
        moments = input_moments(context, self._lora.places())
        design: dict[str, Tensor] = {}
        for leader, moment in moments.tensors.items():
            design[leader] = designed_rows(moment, self._memory.space(leader), self.rank)
        for name, (rows, _) in self._lora.factors().items():
            rows.data.copy_(design[moments.leaders[name]])
        self._freeze()

    def end_task(self, context: Context) -> None:
        if context.model.adapter_trainable:
            threshold = closing_threshold(self.threshold, self.growth, context.task.index)
            self._memory.grow(input_moments(context, self._lora.places()), threshold, squared=True)

    def trained(self) -> Parameters:
        return {name: value for name, value in self._lora.trained().items() if "lora_B" in name}

    def linear(self) -> Mapping[str, nn.Module]:
        """The layers of the task's own B, by the trained names of their weights."""
        trained = self.trained()
        return {name: layer for name, layer in self._lora.linear().items() if name in trained}

    def factors(self, *, finished: bool = False) -> Mapping[str, tuple[Tensor, Tensor]]:
        """A and B of the task by wrapped module, or those of all finished tasks (see `LoraPerTask.factors`)."""
        return self._lora.factors(finished=finished)

    def old_inputs(self, module: str) -> Subspace | None:
        """The subspace of the inputs that finished tasks gave to a wrapped module."""
        return self._memory.space(module)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self._lora.disabled():
            yield
        self._freeze()

    def state(self) -> State:
        return State.nested({"lora": self._lora.state(), "memory": self._memory.state()})

    def load_state(self, state: State, context: Context) -> None:
        self._lora.load_state(state.inner("lora"), context)
        self._memory.load(state.inner("memory"), context.model.backbone.device)
        self._freeze()

    def _freeze(self) -> None:
        for rows, _ in self._lora.factors().values():
            rows.requires_grad_(False)
