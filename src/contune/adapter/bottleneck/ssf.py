"""Scale and shift what every linear map and norm gives, channel by channel (SSF, arXiv 2210.08823)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.adapter.bottleneck.sublayers import changed_output, probe_inputs
from contune.backbone.backbone import Backbone
from contune.backbone.layers import is_norm
from contune.backbone.linear import is_linear
from contune.backbone.targets import resolve_layers
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State

SPREAD = 0.02  # the released code starts scales at 1 and shifts at 0, both with this standard deviation


def scaled_and_shifted(states: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """y = scale * x + shift per channel: the last axis of states (..., C), or the second of an image's maps (B, C, h, w).

    Section 3.2 of the paper.

    >>> scaled_and_shifted(torch.ones(1, 2), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])).tolist()
    [[2.0, 4.0]]
    """
    if states.dim() == 4:
        return states * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    return states * scale + shift


def operations(backbone: Backbone, layers: str | Sequence[int]) -> dict[str, nn.Module]:
    """The linear maps, norms and patch convolutions by name: all of the model, or those inside the named layers."""
    if layers == "all":
        inside = set(backbone.model.modules())
    else:
        indices = resolve_layers(layers, backbone.depth)
        inside = {module for index in indices for module in backbone.layers[index].modules()}
    return {
        name: module
        for name, module in backbone.model.named_modules()
        if module in inside and (is_linear(module) or is_norm(module) or isinstance(module, nn.Conv2d))
    }


def channels(backbone: Backbone, places: dict[str, nn.Module]) -> dict[str, int]:
    """The width of what each of these modules gives, of those alone that the features depend on.

    One probing pass with a factor of 1 on each output: a factor without a gradient belongs to a module that the features
    do not use, such as a pooler.
    """
    factors: dict[str, Tensor] = {}

    def probed(states: Tensor, name: str) -> Tensor:
        factors.setdefault(name, torch.ones(states.shape[1 if states.dim() == 4 else -1], device=states.device))
        factors[name].requires_grad_(True)
        return scaled_and_shifted(states, factors[name], torch.zeros_like(factors[name]))

    with ExitStack() as stack, torch.enable_grad():
        for name, module in places.items():
            stack.enter_context(changed_output(module, partial(probed, name=name)))
        features = backbone.features(probe_inputs(backbone))
        used = torch.autograd.grad(features.sum(), list(factors.values()), allow_unused=True)
    return {name: len(factor) for (name, factor), grad in zip(factors.items(), used, strict=True) if grad is not None}


@final
class Ssf(Adapter):
    """A trained scale and shift behind every linear map and norm of the chosen layers (arXiv 2210.08823).

    Not the identity at the start: scales are drawn around 1 and shifts around 0 with a spread of 0.02. With named
    layers in place of `all`, the states below them can be cached.

    Memory: 2 numbers per output channel, about 0.2 million in ViT-B/16.
    Compute: a backward pass down to the lowest chosen layer.
    Differs:
    - The pairs are kept beside the weights and not folded into them after training, which changes no value.
    """

    name: ClassVar[str] = "ssf"

    def __init__(
        self,
        *,
        layers: Annotated[str | list[int], "as of lora; all takes the embeddings too", "released code"] = "all",
    ) -> None:
        self.layers = layers
        self._places: dict[str, nn.Module] = {}
        self._weights: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        found = operations(backbone, self.layers)
        widths = channels(backbone, found)
        self._places = {name: found[name] for name in sorted(widths)}
        for name in self._places:
            for kind, middle in (("scale", 1.0), ("shift", 0.0)):
                generator = torch_generator(seed, "ssf", name, kind)
                start = middle + SPREAD * torch.randn(widths[name], generator=generator)
                self._weights[f"{name}.{kind}"] = nn.Parameter(start.to(backbone.device))

    def trained(self) -> Parameters:
        return self._weights

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0 if self.layers == "all" else min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        with scaled(self._places, self._weights):
            return backbone.features(batch.inputs, resume=batch.resume), None

    def state(self) -> State:
        return State({name: value.detach() for name, value in self._weights.items()})

    def load_state(self, state: State, context: Context) -> None:
        del context
        for name, value in self._weights.items():
            value.data.copy_(state.tensors[name])


@contextmanager
def scaled(places: dict[str, nn.Module], weights: Tensors) -> Iterator[None]:
    """While the block runs, each of these modules gives its output scaled and shifted by `name.scale` and `name.shift`."""
    with ExitStack() as stack:
        for name, module in places.items():
            change = partial(scaled_and_shifted, scale=weights[f"{name}.scale"], shift=weights[f"{name}.shift"])
            stack.enter_context(changed_output(module, change))
        yield
