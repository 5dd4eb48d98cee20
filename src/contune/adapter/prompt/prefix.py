"""Prefix and prompt tuning: trained keys and values at several layers, or trained tokens at the input."""

from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.targets import resolve_layers
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State

START = 0.02  # standard deviation of the start values, as transformers starts its embeddings


def normal(shape: tuple[int, ...], seed: int, name: str, device: torch.device) -> nn.Parameter:
    """A trained tensor with small normal start values that depend on the seed and its name alone."""
    return nn.Parameter((START * torch.randn(shape, generator=torch_generator(seed, name))).to(device))


@final
class Prefix(Adapter):
    """`length` trained keys and values in front of those of each chosen layer (arXiv 2101.00190, 2110.07602).

    Trained directly, without the paper's re-parametrising network. Not the identity at the start: a prefix takes a share
    of the attention.

    Memory: 2 x layers x length x key width.
    Compute: a backward pass down to the lowest chosen layer.
    """

    name: ClassVar[str] = "prefix"
    supports_packing: ClassVar[bool] = False

    def __init__(
        self,
        *,
        length: Annotated[int, "trained keys, and as many values, in front of those of each layer"] = 10,
        layers: Layers = "all",
    ) -> None:
        self.length, self.layers = length, layers
        self._trained: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        for layer in resolve_layers(self.layers, backbone.depth):
            for kind in ("keys", "values"):
                name = f"{kind}.{layer}"
                self._trained[name] = normal((self.length, backbone.kv_width(layer)), seed, name, backbone.device)

    def trained(self) -> Parameters:
        return self._trained

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        layers = resolve_layers(self.layers, backbone.depth)
        pairs = {layer: (self._trained[f"keys.{layer}"], self._trained[f"values.{layer}"]) for layer in layers}
        with backbone.prefixes(pairs):
            return backbone.features(batch.inputs, resume=batch.resume), None

    def state(self) -> State:
        return State({name: value.detach() for name, value in self._trained.items()})

    def load_state(self, state: State, context: Context) -> None:
        for name, value in self._trained.items():
            value.data.copy_(state.tensors[name])


@final
class Prompt(Adapter):
    """`length` trained tokens in front of the input (prompt tuning, arXiv 2104.08691; VPT-shallow, arXiv 2203.12119).

    Memory: length x d.
    Compute: a full backward pass through an input that is `length` tokens longer.
    """

    name: ClassVar[str] = "prompt"
    supports_packing: ClassVar[bool] = False

    def __init__(
        self,
        *,
        length: Annotated[int, "trained tokens in front of the input"] = 10,
    ) -> None:
        self.length = length
        self._tokens: nn.Parameter | None = None

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._tokens = normal((self.length, backbone.parts.prompt_width), seed, "prompt", backbone.device)

    def trained(self) -> Parameters:
        return {} if self._tokens is None else {"tokens": self._tokens}

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs, prompts=self._tokens), None

    def state(self) -> State:
        return State({name: value.detach() for name, value in self.trained().items()})

    def load_state(self, state: State, context: Context) -> None:
        for name, value in self.trained().items():
            value.data.copy_(state.tensors[name])
