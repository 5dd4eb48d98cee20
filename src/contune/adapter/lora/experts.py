"""Sets of LoRAs, one for each kind of task: a task goes on with the set that fits it, or begins a new one (LCIA)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor, nn

from contune.adapter.lora.peft_adapter import factors_of, inject, lora_config, merged_in_place, save_one, set_dropout
from contune.backbone.backbone import Backbone
from contune.backbone.linear import linear_layers
from contune.backbone.targets import resolve_layers
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Alpha, Dropout, Layers, Rank, Targets
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import derived_seed
from contune.contract.state import State

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


@final
class LoraExperts(Adapter):
    """Module m is the frozen model with the m-th set of LoRAs; several tasks may share a set (arXiv 2410.10868).

    A task goes on with the set that the router finds fitting, as `instructions` does, and begins a new one where it finds
    none; most routers find none, and then every task has its own set. Sets share nothing, and while one learns the others
    keep every bit. The first starts as `lora` does, each as the identity. Where the adapter learns in the first task only,
    later tasks go through the first set. Memory: rank (d_in + d_out) per wrapped matrix and set. Compute: as `lora`.
    """

    name: ClassVar[str] = "lora-experts"
    expands = True
    lifetime = Lifetime.BY_KIND

    def __init__(
        self,
        *,
        rank: Rank = 8,
        alpha: Alpha = 16.0,
        dropout: Dropout = 0.0,
        targets: Targets = "query-value",
        layers: Layers = "all",
    ) -> None:
        self.rank, self.alpha, self.dropout, self.targets, self.layers = rank, alpha, dropout, targets, layers
        self._wrapped: PeftModel | None = None
        self._config: PeftConfig | None = None
        self._seed = 0
        self._sets = 0
        self._active = 0
        self._of_tasks: list[int] = []
        self._learning = False

    @property
    def wrapped(self) -> "PeftModel":
        """The model with its LoRAs, from `attach` on."""
        assert self._wrapped is not None
        return self._wrapped

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        self._config = lora_config(backbone, self.rank, self.alpha, self.dropout, self.targets, self.layers)
        self._wrapped = inject(backbone, self._config, set_name(0), derived_seed(seed, "adapter"))
        self._sets = 1

    def begin_task(self, context: Context) -> None:
        self._of_tasks.append(self._set_for(context))
        self._learning = context.model.adapter_trainable
        if self._of_tasks[-1] == self._sets:
            self._add()
        self._activate(self._of_tasks[-1])

    def _set_for(self, context: Context) -> int:
        """The set that this task will train; the number of sets where it needs a new one."""
        if not self._of_tasks:
            return 0
        if not context.model.adapter_trainable:
            return self._of_tasks[-1]
        matching_module = None if context.model.router is None else context.model.router.matching_module(context)
        return self._sets if matching_module is None else matching_module

    def _add(self) -> None:
        """One more set, which depends on the seed and its number alone."""
        assert self._config is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, "adapter", self._sets))
            self.wrapped.add_adapter(set_name(self._sets), self._config)
        self._sets += 1
        self.wrapped.eval()

    def _activate(self, module: int) -> None:
        """Answer through this set; gradients reach that of the task alone, whichever answers."""
        self.wrapped.base_model.set_adapter([set_name(module)], inference_mode=True)
        self._active = module
        for parameter in self.trained().values():
            parameter.requires_grad_(True)

    def end_task(self, context: Context) -> None:
        del context
        self._learning = False

    def trained(self) -> Parameters:
        current = self._of_tasks[-1] if self._of_tasks else 0
        return {f"{set_name(current)}.{name}": value for name, value in self._matrices(current).items()}

    def _matrices(self, module: int) -> dict[str, nn.Parameter]:
        """The A and B of one set, named without the set."""
        return factors_of(self.wrapped, set_name(module))

    def linear(self) -> Mapping[str, nn.Module]:
        """The layers of the task's own factors, by the trained names of their weights."""
        return linear_layers(self.wrapped, self.trained())

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if batch.route != self._active:
            self._activate(batch.route)
        return backbone.features(batch.inputs, resume=batch.resume), None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self.wrapped.disable_adapter():
            yield
        self._activate(self._active)

    def modules(self) -> int:
        return self._sets

    def routes(self, tasks: Tensor) -> Tensor:
        sets = torch.tensor(self._of_tasks or [0], dtype=tasks.dtype, device=tasks.device)
        return sets[tasks.clamp(max=len(sets) - 1)]

    def module_state(self, module: int) -> State | None:
        if self._learning and module == self._of_tasks[-1]:
            return None
        return State({name: value.detach() for name, value in self._matrices(module).items()})

    def train_mode(self, training: bool) -> None:
        set_dropout(self.wrapped, training)

    def state(self) -> State:
        tensors = {
            f"{set_name(module)}/{name}": value.detach()
            for module in range(self._sets)
            for name, value in self._matrices(module).items()
        }
        return State(tensors, {"tasks": list(self._of_tasks), "sets": self._sets, "learning": self._learning})

    def load_state(self, state: State, context: Context) -> None:
        del context
        while self._sets < int(state.values["sets"]):
            self._add()
        self._of_tasks = [int(module) for module in state.values["tasks"]]
        self._learning = bool(state.values["learning"])
        for module in range(self._sets):
            tensors = state.inner(set_name(module)).tensors
            for name, parameter in self._matrices(module).items():
                parameter.data.copy_(tensors[name])
        self._activate(self._of_tasks[-1] if self._of_tasks else 0)

    def export(self, folder: Path) -> bool:
        return save_one(self.wrapped, set_name(self._of_tasks[-1]), folder)

    def export_answering(self, folder: Path) -> bool:
        return self._sets == 1 and self.export(folder)

    def merge(self) -> bool:
        return self._sets == 1 and merged_in_place(self._wrapped)


def set_name(module: int) -> str:
    """What `peft` calls a set.

    >>> set_name(2)
    'set2'
    """
    return f"set{module}"
