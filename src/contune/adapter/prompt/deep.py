"""Trained prompt tokens at the input of every layer (VPT-deep, arXiv 2203.12119)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.layers import changed_input
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError


def with_prompts(states: Tensor, prompts: Tensor) -> Tensor:
    """States (B, n + L, d) whose first n positions are these prompts (n, d): what a layer below made of its own is lost.

    >>> with_prompts(torch.zeros(1, 3, 1), torch.ones(1, 1)).flatten().tolist()
    [1.0, 0.0, 0.0]
    """
    rows = prompts.unsqueeze(0).expand(len(states), -1, -1)
    return torch.cat([rows, states[:, len(prompts) :]], dim=1)


@contextmanager
def replaced_prompts(layers: Sequence[nn.Module], prompts: Sequence[Tensor]) -> Iterator[None]:
    """While the block runs, each layer's first positions are its own prompts (n, d)."""
    with ExitStack() as stack:
        for layer, own in zip(layers, prompts, strict=True):
            stack.enter_context(changed_input(layer, partial(with_prompts, prompts=own)))
        yield


@final
class DeepPrompt(Adapter):
    """`length` trained tokens for every layer; they take the place of what the layer below made of its own.

    Section 3.2 of the paper. Start: uniform within sqrt(6 / 2d), which is the released code's Xavier rule where a patch
    has as many values as the width (ViT-B/16); zeros, as in APER's code, would keep all tokens of a layer equal for ever.
    Tokens come before the class token and have no position; texts give the first layer's tokens the positions they
    stand at, as any input of theirs. Not the identity at the start.

    Memory: depth x length x d.
    Compute: a full backward pass through an input that is `length` tokens longer.
    """

    name: ClassVar[str] = "deep-prompt"
    supports_packing: ClassVar[bool] = False

    def __init__(
        self,
        *,
        length: Annotated[int, "trained tokens in every layer, from 1", "RanPAC's and APER's VPT-deep"] = 5,
    ) -> None:
        if length < 1:
            raise ConfigError(f"length is {length}; give at least 1")
        self.length = length
        self._prompts: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        width = backbone.parts.prompt_width
        reach = (6 / (2 * width)) ** 0.5
        for layer in range(backbone.depth):
            generator = torch_generator(seed, "deep-prompt", layer)
            start = (torch.rand(self.length, width, generator=generator) * 2 - 1) * reach
            self._prompts[f"layer{layer}"] = nn.Parameter(start.to(backbone.device))

    def trained(self) -> Parameters:
        return self._prompts

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        first, *rest = (self._prompts[f"layer{layer}"] for layer in range(backbone.depth))
        with replaced_prompts(backbone.layers[1:], rest):
            return backbone.features(batch.inputs, prompts=first), None

    def state(self) -> State:
        return State({name: value.detach() for name, value in self._prompts.items()})

    def load_state(self, state: State, context: Context) -> None:
        del context
        for name, value in self._prompts.items():
            value.data.copy_(state.tensors[name])
