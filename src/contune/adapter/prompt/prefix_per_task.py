"""A general prefix that all tasks train, and an expert prefix for each of them (DualPrompt, arXiv 2204.04799)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from contune.adapter.task_sets import TaskSets
from contune.backbone.backbone import Backbone
from contune.backbone.targets import resolve_layers
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import PrefixLayers
from contune.contract.parts import Adapter, Parameters, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError

REACH = 0.01  # prompts start uniform in [0, 0.01), as in the official JAX code; its ports start far larger
NAMED: Mapping[str, tuple[int, ...]] = {"first-two": (0, 1), "third-to-fifth": (2, 3, 4)}


def placed_layers(layers: str | Sequence[int], depth: int) -> list[int]:
    """Layer indices: `first-two`, `third-to-fifth`, or as `resolve_layers`; what a named range has too many is cut off.

    A model that ends below a named range takes its top layer.

    >>> placed_layers("third-to-fifth", 4), placed_layers("third-to-fifth", 2)
    ([2, 3], [1])
    """
    if isinstance(layers, str) and layers in NAMED:
        return [layer for layer in NAMED[layers] if layer < depth] or [depth - 1]
    return resolve_layers(layers, depth)


def joined_prefixes(
    general: Tensors, expert: Tensors, layers: Mapping[str, Sequence[int]]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values (n, w) of every layer that has a prefix, the general one in front where a layer has both.

    >>> both = {"keys.1": torch.zeros(2, 3), "values.1": torch.ones(2, 3)}
    >>> joined_prefixes(both, both, {"general": [1], "expert": [1]})[1][0].shape
    torch.Size([4, 3])
    """
    pairs = {}
    for layer in sorted({*layers["general"], *layers["expert"]}):
        parts = [values for values in (general, expert) if f"keys.{layer}" in values]
        if parts:
            keys, values = (torch.cat([part[f"{kind}.{layer}"] for part in parts]) for kind in ("keys", "values"))
            pairs[layer] = (keys, values)
    return pairs


@final
class PrefixPerTask(Adapter):
    """Module t is the frozen model with the general prefix in low layers and the expert prefix of task t above them.

    Section 4 of the paper: `general_length` keys and values in each of the `general_layers`, trained by every
    task, and `expert_length` in each of the `expert_layers`, trained by one task and then frozen to the bit. A length
    counts keys, and there are as many values; CODA-Prompt's comparison counts both together. Keys and values join behind
    the projections, so the sequence stays as long as it was. Where a layer has both prefixes, the general one comes
    first. `start`: expert t begins as a `copy` of
    expert t - 1, as released, or `fresh`. Prompts start uniform in [0, 0.01). A prefix of zeros is not the identity: it
    takes a share of the attention. With `general_length` 0 this is a plain prefix per task, whose finished modules never
    change, and the layers below the lowest one are cached.

    Memory: 2 x length x width per layer, once for the general prefix and once per task for the expert (23 thousand in
    ViT-B/16). Named layers are cut to the model's depth. Differs: experts grow with the tasks, where the released code
    makes as many as there will be tasks. Where the adapter learns in the first task only, later tasks add no expert.
    Compute: a backward pass down to the lowest layer with a prefix.
    """

    name: ClassVar[str] = "prefix-per-task"
    supports_packing: ClassVar[bool] = False
    expands = True

    def __init__(
        self,
        *,
        general_length: Annotated[int, "keys and values of the prefix of all tasks; 0: none", "official code"] = 5,
        expert_length: Annotated[int, "keys and values of each task's own prefix; 0: none", "official code"] = 5,
        general_layers: Annotated[PrefixLayers, "official code"] = "first-two",
        expert_layers: Annotated[PrefixLayers, "official code"] = "third-to-fifth",
        start: Annotated[
            Literal["copy", "fresh"], "a copy of the last task's prefix, or new", "official code"
        ] = "copy",
    ) -> None:
        if min(general_length, expert_length) < 0:
            raise ConfigError(
                f"general_length is {general_length} and expert_length {expert_length}; give 0 or more, 0 for no such prefix"
            )
        self.general_length, self.expert_length = general_length, expert_length
        self.general_layers, self.expert_layers, self.start = general_layers, expert_layers, start
        self._seed = 0
        self.lifetime = Lifetime.PER_MODULE | (Lifetime.LASTING if general_length else Lifetime.PER_MODULE)
        self._rests = False
        self._general: dict[str, nn.Parameter] = {}
        self._experts = TaskSets()

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        values = self._fresh(backbone, "general", 0)
        self._general = {name: nn.Parameter(value.to(backbone.device)) for name, value in values.items()}

    def begin_task(self, context: Context) -> None:
        task = len(self._experts)
        if task and not context.model.adapter_trainable:
            return
        copied = task > 0 and self.start == "copy"
        values = self._experts[task - 1] if copied else self._fresh(context.model.backbone, "expert", task)
        self._experts.append(values, context.model.backbone.device, context.task.index)

    def _fresh(self, backbone: Backbone, kind: str, task: int) -> dict[str, Tensor]:
        """Start values of the general prefix or of one expert; empty where its length is 0."""
        length = self.general_length if kind == "general" else self.expert_length
        values = {}
        for layer in self._layers(backbone)[kind]:
            for name in (f"keys.{layer}", f"values.{layer}"):
                generator = torch_generator(self._seed, "prefix", kind, task, name)
                values[name] = REACH * torch.rand(length, backbone.kv_width(layer), generator=generator)
        return values

    def _layers(self, backbone: Backbone) -> dict[str, list[int]]:
        return {
            "general": placed_layers(self.general_layers, backbone.depth) if self.general_length else [],
            "expert": placed_layers(self.expert_layers, backbone.depth) if self.expert_length else [],
        }

    def end_task(self, context: Context) -> None:
        self._experts.finish()
        self._rests = not context.model.adapter_trainable

    def trained(self) -> Parameters:
        return {**{f"general.{name}": value for name, value in self._general.items()}, **self._experts.trained()}

    def lowest_layer(self, backbone: Backbone) -> int:
        layers = self._layers(backbone)
        return min([*layers["general"], *layers["expert"], backbone.depth])

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        expert = self._experts[batch.route]
        with backbone.prefixes(joined_prefixes(self._general, expert, self._layers(backbone))):
            return backbone.features(batch.inputs, resume=batch.resume), None

    def modules(self) -> int:
        return len(self._experts)

    def routes(self, tasks: Tensor) -> Tensor:
        return self._experts.routes(tasks)

    def module_state(self, module: int) -> State | None:
        done = self._experts.done(module)
        if done is None or (self._general and not self._rests):
            return None
        return State({**done.tensors, **{f"general.{name}": value.detach() for name, value in self._general.items()}})

    def state(self) -> State:
        general = State({name: value.detach() for name, value in self._general.items()}, {"rests": self._rests})
        return State.nested({"general": general, "experts": self._experts.state()})

    def load_state(self, state: State, context: Context) -> None:
        general = state.inner("general")
        self._rests = bool(general.values["rests"])
        for name, value in self._general.items():
            value.data.copy_(general.tensors[name])
        self._experts.load_state(state.inner("experts"), context.model.backbone.device)
