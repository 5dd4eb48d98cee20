"""Low-rank updates beside linear layers that are on inside a block and nowhere else: a second view of the frozen model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.backbone import Backbone
from contune.backbone.linear import is_linear, sizes_of
from contune.backbone.targets import FUSED, QUERY, VALUE, resolve_layers
from contune.contract.parts import Tensors
from contune.contract.randomness import torch_generator
from contune.errors import ConfigError

WRAPPED = ".base_layer"  # how peft names a layer that it has wrapped, and `lora_` what it put beside it


def base_matrices(
    backbone: Backbone, targets: str | Sequence[str], layers: str | Sequence[int]
) -> dict[str, nn.Module]:
    """The model's own linear layers by name, whether an adapter of `peft` has wrapped them or not.

    `targets`: `query-value`, `all-linear`, or last names.
    """
    names = {id(module): name for name, module in backbone.model.named_modules()}
    wanted = (
        (*QUERY, *VALUE, *FUSED) if targets == "query-value" else (targets,) if isinstance(targets, str) else targets
    )
    found = {}
    for index in resolve_layers(layers, backbone.depth):
        for module in backbone.layers[index].modules():
            name = names[id(module)].removesuffix(WRAPPED)
            chosen = targets == "all-linear" or name.rsplit(".", 1)[-1] in wanted
            if is_linear(module) and ".lora_" not in name and chosen:
                found[name] = module
    if not found:
        raise ConfigError(f"targets is {targets!r}, which names no linear layer of {backbone.config.path}")
    return found


@final
class SideLora:
    """W x + (alpha / rank) B A x in chosen linear layers, inside `with active():` alone.

    A starts Kaiming-uniform and B at zero, by the seed and the layer's name. It stands beside whatever adapter the model
    has: with that absent, this is another adapter of the same frozen model.
    """

    def __init__(self, places: dict[str, nn.Module], rank: int, alpha: float, seed: int, device: torch.device) -> None:
        self._places, self._scale = places, alpha / rank
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, module in places.items():
            columns, rows = sizes_of(module)
            down = torch.zeros(rank, columns)
            nn.init.kaiming_uniform_(down, a=5**0.5, generator=torch_generator(seed, "side lora", name))
            self._factors[name] = (nn.Parameter(down.to(device)), nn.Parameter(torch.zeros(rows, rank, device=device)))

    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B by layer."""
        pairs = self._factors.items()
        return {f"{name}.{letter}": value for name, pair in pairs for letter, value in zip("AB", pair, strict=True)}

    def load(self, tensors: Tensors) -> None:
        """Take these values."""
        for name, parameter in self.parameters().items():
            parameter.data.copy_(tensors[name])

    @contextmanager
    def active(self) -> Iterator[None]:
        """The block sees the model with these updates."""
        with ExitStack() as stack:
            for name, module in self._places.items():
                stack.callback(module.register_forward_hook(adding(*self._factors[name], self._scale)).remove)
            yield


def adding(down: Tensor, up: Tensor, scale: float) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A forward hook that adds scale B A x to a layer's output, in the precision of the factors."""

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        update = functional.linear(functional.linear(args[0].to(down.dtype), down), up)
        return output + (scale * update).to(output.dtype)

    return hook
