"""LoRA with a learnt factor on each update, so that it adapts at its own speed (LAE, arXiv 2303.10070)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.adapter.lora.peft_adapter import PeftAdapter, lora_config
from contune.adapter.wrapper import Around, exchanged
from contune.backbone.backbone import Backbone
from contune.backbone.targets import key_value_modules, resolve_layers
from contune.contract.context import Context
from contune.contract.options import LowLayers, Rank
from contune.contract.parts import Parameters
from contune.contract.state import State
from contune.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig

UP = "lora_B.default"  # how peft names the second factor


def chosen_layers(layers: str | list[int], depth: int) -> list[int]:
    """Layer indices: `lowest-five`, or as `resolve_layers`.

    >>> chosen_layers("lowest-five", 3)
    [0, 1, 2]
    """
    return list(range(min(5, depth))) if layers == "lowest-five" else resolve_layers(layers, depth)


@final
class CalibratedLora(Around):
    """W x + s B A x on keys and values, with a number s for every wrapped matrix that starts at 1 and is trained.

    A starts Kaiming-uniform and B at zero, so the adapter starts as the identity; the scale alpha / rank is 1, as in
    the released code. Where a model has one matrix for query, key and value, the update reaches the query too.

    Memory: rank (d_in + d_out) + 1 numbers per matrix.
    Compute: a backward pass down to the lowest chosen layer.
    """

    name: ClassVar[str] = "calibrated-lora"

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "released code"] = 5,
        layers: Annotated[LowLayers, "released code"] = "lowest-five",
    ) -> None:
        if rank < 1:
            raise ConfigError(f"rank is {rank}; give at least 1")
        super().__init__(PeftAdapter("lora", self._config, [], linear=True))
        self.rank, self.layers = rank, layers
        self._scales: dict[str, nn.Parameter] = {}

    def _config(self, backbone: Backbone) -> "PeftConfig":
        """The LoRA without its factors."""
        layers = chosen_layers(self.layers, backbone.depth)
        targets = sorted({name.rsplit(".", 1)[-1] for name in key_value_modules(backbone, layers)})
        return lora_config(backbone, self.rank, float(self.rank), 0.0, targets, layers)

    def attach(self, backbone: Backbone, seed: int) -> None:
        self.inner.attach(backbone, seed)
        for name, module in backbone.model.named_modules():
            if name.endswith(UP):
                scale = nn.Parameter(torch.ones((), device=backbone.device))
                self._scales[name.removesuffix(UP) + "scale"] = scale
                module.register_forward_hook(scaling(scale))

    def trained(self) -> Parameters:
        return {**self.inner.trained(), **self._scales}

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(chosen_layers(self.layers, backbone.depth))

    def merge(self) -> bool:
        return False  # a plain LoRA has no such factor

    def state(self) -> State:
        return State({name: value.detach() for name, value in self.trained().items()})

    def load_state(self, state: State, context: Context) -> None:
        del context
        for name, value in self.trained().items():
            value.data.copy_(state.tensors[name])

    def export(self, folder: Path) -> bool:
        """A plain LoRA of `peft` has no such factor, so it is written into B."""
        ups = {name: value for name, value in self.inner.trained().items() if "lora_B" in name}
        folded = {name: value.data * self._scale_of(name).data for name, value in ups.items()}
        with exchanged(ups, folded):
            return self.inner.export(folder)

    def _scale_of(self, name: str) -> Tensor:
        """The factor of the matrix that a tensor of the inner adapter belongs to."""
        (scale,) = (value for key, value in self._scales.items() if key.removesuffix("scale") in name)
        return scale


def scaling(scale: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that multiplies a module's output by this number."""
    return lambda _module, _inputs, output: output * scale
