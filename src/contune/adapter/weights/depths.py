"""How deep a base parameter lies below the head, and what follows from it: rates, freezing and starting anew."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.contract.randomness import torch_generator
from contune.errors import CombinationError, ConfigError
from contune.stream.modality import find_modality

SPREAD = 0.02  # of new weights: the initialisation of BERT and its relatives


@final
@dataclass(frozen=True)
class Stability:
    """Ways to train a whole model gently (arXiv 2112.07869); as it stands, none of them.

    `decay`: the rate of a parameter is multiplied by it once for every step down: the top layer once, the bottom of L
    layers L times, the embeddings L + 1 times, and what lies above the layers not at all. `frozen`: the embeddings and so
    many of the lowest layers rest, from task `frozen_from` on (0 is the first); a model that has no more layers than that
    keeps its top one trained. `reset`: so many of the top layers start anew when the first task begins.
    """

    decay: float = 1.0
    frozen: int | None = None
    frozen_from: int = 0
    reset: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay is {self.decay}; give more than 0 and at most 1, where all layers learn alike")
        if min(self.frozen or 0, self.frozen_from, self.reset) < 0:
            raise ConfigError(
                f"frozen is {self.frozen}, frozen_from {self.frozen_from} and reset {self.reset}; give 0 or more of each"
            )

    @property
    def needs_depths(self) -> bool:
        """Whether anything depends on how deep a parameter lies."""
        return self.decay != 1 or self.frozen is not None or self.reset > 0

    def resting_layers(self, depth: int) -> int:
        """How many of the lowest layers rest.

        >>> [Stability(frozen=3).resting_layers(depth) for depth in (12, 3)]
        [3, 2]
        """
        return min(self.frozen or 0, depth - 1)

    def rests(self, below: int, depth: int) -> bool:
        """Whether a parameter `below` steps under the head is among those that rest.

        >>> [below for below in range(14) if Stability(frozen=3).rests(below, 12)]
        [10, 11, 12, 13]
        """
        return self.frozen is not None and below > depth - self.resting_layers(depth)

    def require_reset(self, depth: int) -> None:
        """Refuse to start anew what is frozen, or more than there is: random layers help only where they train."""
        open_layers = depth - self.resting_layers(depth) if self.frozen is not None else depth
        if self.reset > open_layers:
            raise ConfigError(
                f"reset is {self.reset}, but only {open_layers} layers of this model are trained; layers that start anew "
                "must learn, lower reset or frozen"
            )


def depths_below_head(backbone: Backbone) -> dict[str, int]:
    """Steps from the head down to each base parameter: 0 above the layers, 1 in the top one, L + 1 below all L of them.

    What lies outside the layers is told apart by when it runs in a forward pass; what does not run counts as above.
    Tied embeddings are embeddings. Raises `CombinationError` for an encoder with a decoder, which are two stacks.
    """
    if not backbone.resumable:
        raise CombinationError(
            f"{backbone.config.path} has an encoder and a decoder, and rates by layer, freezing from below and layers that "
            "start anew need one stack of layers; take finetune, or a model with one stack"
        )
    depth = backbone.depth
    place = {id(p): depth - index for index, layer in enumerate(backbone.layers) for p in layer.parameters()}
    below = {id(p) for module in run_before_the_top(backbone) for p in module.parameters(recurse=False)}
    return {
        name: place.get(id(parameter), depth + 1 if id(parameter) in below else 0)
        for name, parameter in backbone.base_parameters().items()
    }


def run_before_the_top(backbone: Backbone) -> list[nn.Module]:
    """The modules with parameters of their own that a forward pass meets before it leaves the top layer."""
    met: list[nn.Module] = []
    done: list[bool] = []

    def meet(module: nn.Module, _: object) -> None:
        if not done:
            met.append(module)

    owners = [module for module in backbone.model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_pre_hook(meet) for module in owners]
    handles.append(backbone.layers[-1].register_forward_hook(lambda *_: done.append(True)))
    example = find_modality(backbone.modality).example()
    try:
        with torch.no_grad():
            backbone.encode(backbone.prompts_only([(backbone.prepare([example]), np.arange(1))]))
    finally:
        for handle in handles:
            handle.remove()
    return met


def start_anew(layer: nn.Module, norms: Mapping[int, nn.Module], seed: int, place: int) -> None:
    """Give a layer new values: matrices normal with spread 0.02, biases 0, norms a gain of 1; other gains stay."""
    with torch.no_grad():
        for name, parameter in sorted(layer.named_parameters()):
            if id(parameter) in norms and not name.endswith("bias"):
                parameter.copy_(unit_gain(norms[id(parameter)], parameter))
            elif name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:
                generator = torch_generator(seed, "anew", place, name)
                parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))


def unit_gain(norm: nn.Module, weight: nn.Parameter) -> Tensor:
    """The weight with which a norm hands on what is normal already: ones, or zeros where it adds 1 itself, as Gemma's.

    >>> norm = nn.LayerNorm(2)
    >>> unit_gain(norm, norm.weight).tolist()
    [1.0, 1.0]
    """
    signs = torch.ones(1, len(weight), dtype=weight.dtype, device=weight.device)
    signs[:, ::2] = -1
    with torch.no_grad():
        kept = weight.clone()
        weight.fill_(1.0)
        gain = norm(signs).abs().mean()
        weight.copy_(kept)
    return torch.zeros_like(weight) if gain > 1.5 else torch.ones_like(weight)
