"""One LoRA per task: the new one is trained, finished ones stay frozen and are summed (O-LoRA, arXiv 2310.14152)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.adapter.lora.peft_adapter import factors_of, inject, lora_config, merged_in_place, save_one, set_dropout
from contune.backbone.backbone import Backbone
from contune.backbone.linear import linear_layers
from contune.backbone.targets import resolve_layers
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Alpha, Dropout, Layers, Rank, Stacks, Targets
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import derived_seed
from contune.contract.state import State

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


@final
class LoraPerTask(Adapter):
    """h = W x + (alpha / rank) (sum over finished tasks of B_i A_i x + B_t A_t x); only A_t and B_t are trained.

    The finished ones are kept as one LoRA whose A is all A_i stacked and whose B is all B_i side by side, so that a
    forward pass costs two low-rank products however many tasks there were. Memory: rank (d_in + d_out) per wrapped
    matrix and task.

    Compute: as `lora`, and one more low-rank product however many tasks there were, of rank `rank` x tasks.
    """

    name: ClassVar[str] = "lora-per-task"
    lifetime = Lifetime.PER_TASK

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "released code"] = 8,
        alpha: Annotated[Alpha, "released code"] = 32.0,
        dropout: Dropout = 0.0,
        targets: Annotated[Targets, "released code"] = "query-value",
        layers: Layers = "all",
        stacks: Stacks = "both",
    ) -> None:
        self.rank, self.alpha, self.dropout, self.targets, self.layers = rank, alpha, dropout, targets, layers
        self.stacks = stacks
        self.scale = alpha / rank if rank else 0.0
        self._wrapped: PeftModel | None = None
        self._seed = 0
        self._task = 0

    @property
    def wrapped(self) -> "PeftModel":
        """The model with its LoRAs; there is one from the first task on."""
        assert self._wrapped is not None
        return self._wrapped

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        config = lora_config(backbone, self.rank, self.alpha, self.dropout, self.targets, self.layers, self.stacks)
        self._wrapped = inject(backbone, config, "default", derived_seed(seed, "adapter", 0))

    def begin_task(self, context: Context) -> None:
        if context.task.index > 0:
            self._put_away(self._stacked())
            self._restart(context.task.index)
        self._task = context.task.index

    def trained(self) -> Parameters:
        return {f"task{self._task}.{name}": p for name, p in self._matrices("default").items()}

    def linear(self) -> Mapping[str, nn.Module]:
        """The layers of the task's own factors, by the trained names of their weights."""
        return linear_layers(self.wrapped, self.trained())

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs, resume=batch.resume), None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self.wrapped.disable_adapter():
            yield
        self._freeze_past()

    def train_mode(self, training: bool) -> None:
        set_dropout(self.wrapped, training)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """For every wrapped matrix: all finished A (rank x tasks, d_in), frozen, and the trained A (rank, d_in)."""
        past = self._matrices("past")
        return [
            (past[name].detach(), a)
            for name, a in self._matrices("default").items()
            if "lora_A" in name and name in past
        ]

    def places(self) -> dict[str, nn.Module]:
        """The wrapped modules by name."""
        return {name: self.wrapped.get_submodule(name) for name in self.factors()}

    def factors(self, *, finished: bool = False) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """A (rank, d_in) and B (d_out, rank) of the task's LoRA by wrapped module.

        `finished`: those of all finished tasks, A below one another and B side by side, in the order of tasks.
        """
        matrices = self._matrices("past" if finished else "default")
        ends = (".lora_A.weight", ".lora_B.weight")
        names = [name.removesuffix(ends[0]) for name in matrices if name.endswith(ends[0])]
        return {name: (matrices[name + ends[0]], matrices[name + ends[1]]) for name in names}

    def state(self) -> State:
        tensors = {f"default/{name}": p.detach() for name, p in self._matrices("default").items()}
        tensors |= {f"past/{name}": p.detach() for name, p in self._matrices("past").items()}
        return State(tensors, {"task": self._task})

    def load_state(self, state: State, context: Context) -> None:
        self._task = int(state.values["task"])
        past = {name.removeprefix("past/"): t for name, t in state.tensors.items() if name.startswith("past/")}
        if past:
            self._put_away(past)
        for name, parameter in self._matrices("default").items():
            parameter.data.copy_(state.tensors[f"default/{name}"])

    def export(self, folder: Path) -> bool:
        return save_one(self.wrapped, "default", folder)

    def export_answering(self, folder: Path) -> bool:
        """All tasks' LoRAs as one, whose A are stacked and whose B stand side by side."""
        self._put_away(self._stacked())
        return save_one(self.wrapped, "past", folder)

    def merge(self) -> bool:
        return merged_in_place(self._wrapped)

    def _matrices(self, name: str) -> dict[str, nn.Parameter]:
        """The A and B of one LoRA, named without the LoRA's own name."""
        return factors_of(self.wrapped, name)

    def _stacked(self) -> dict[str, Tensor]:
        past, new = self._matrices("past"), self._matrices("default")
        joined = {}
        for name, value in new.items():
            earlier = [past[name].detach()] if name in past else []
            joined[name] = torch.cat([*earlier, value.detach()], dim=0 if "lora_A" in name else 1)
        return joined

    def _put_away(self, stacked: dict[str, Tensor]) -> None:
        model = self.wrapped
        if "past" in model.peft_config:
            model.delete_adapter("past")
        ranks = next(t.shape[0] for name, t in stacked.items() if "lora_A" in name)
        with torch.random.fork_rng(devices=[]):
            model.add_adapter("past", self._past_config(ranks))
        for name, parameter in self._matrices("past").items():
            parameter.data.copy_(stacked[name])
        model.base_model.set_adapter(["past", "default"], inference_mode=True)
        self._freeze_past()
        model.eval()

    def _past_config(self, rank: int) -> "PeftConfig":
        from peft import LoraConfig

        current = self.wrapped.peft_config["default"]
        return LoraConfig(
            r=rank,
            lora_alpha=self.alpha * rank / self.rank,
            lora_dropout=self.dropout,
            target_modules=current.target_modules,
        )

    def _freeze_past(self) -> None:
        for parameter in self._matrices("past").values():
            parameter.requires_grad_(False)
        for parameter in self._matrices("default").values():
            parameter.requires_grad_(True)

    def _restart(self, task: int) -> None:
        """A fresh pair: A Kaiming-uniform as peft starts it, B zero."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "adapter", task))
        for name, parameter in self._matrices("default").items():
            start = torch.zeros(parameter.shape)
            if "lora_A" in name:
                nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
            parameter.data.copy_(start)
