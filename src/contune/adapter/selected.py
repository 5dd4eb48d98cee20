"""Adapters that train some of the base model's own weights: all of them, the biases, or the layer norms."""

from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor, nn

from contune.adapter.layers import resolve_layers
from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State
from contune.errors import CombinationError

Choice = Callable[[str, nn.Module], bool]


@final
class SelectedParameters(Adapter):
    """Trains the base parameters that `choice(parameter name, its module)` picks, at `lr_scale` times the rate.

    With `layers` only what lies in those layers is trained, and the layers below them can be cached.
    """

    def __init__(self, name: str, choice: Choice, layers: str | Sequence[int], lr_scale: float) -> None:
        self.name = name  # type: ignore[misc]  # one class serves three names of the configuration
        self.lr_scale = lr_scale
        self.layers = layers
        self._choice = choice
        self._chosen: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        del seed
        owners = {id(p): m for m in backbone.model.modules() for p in m.parameters(recurse=False)}
        inside = {
            id(p) for index in resolve_layers(self.layers, backbone.depth) for p in backbone.layers[index].parameters()
        }
        for name, parameter in sorted(backbone.base_parameters().items()):
            if self._choice(name, owners[id(parameter)]) and (self.layers == "all" or id(parameter) in inside):
                parameter.requires_grad_(True)
                self._chosen[name] = parameter
        if not self._chosen:
            raise CombinationError(
                f"adapter {self.name!r} finds nothing to train in {backbone.config.path}: "
                "this model has no such parameters; take lora or another adapter"
            )

    def trained(self) -> Parameters:
        return self._chosen

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0 if self.layers == "all" else min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs, resume=batch.resume), None

    def merge(self) -> bool:
        return True  # the weights are the model's own already

    def state(self) -> State:
        return State({name: parameter.detach() for name, parameter in self._chosen.items()})

    def load_state(self, state: State, context: Context) -> None:
        del context
        for name, parameter in self._chosen.items():
            parameter.data.copy_(state.tensors[name])


def full(*, layers: str | list[int] = "all", lr_scale: float = 0.01) -> Adapter:
    """Every weight, at a hundredth of the head's learning rate (SLCA, arXiv 2303.05118, section 3.2)."""
    return SelectedParameters("full", lambda _name, _module: True, layers, lr_scale)


def bias(*, layers: str | list[int] = "all", lr_scale: float = 1.0) -> Adapter:
    """The biases alone (BitFit, arXiv 2106.10199)."""
    return SelectedParameters("bias", lambda name, _module: name.endswith("bias"), layers, lr_scale)


def layer_norm(*, layers: str | list[int] = "all", lr_scale: float = 1.0) -> Adapter:
    """Gains and biases of the normalisation layers alone (arXiv 2302.08155)."""
    return SelectedParameters("layer-norm", lambda _name, module: is_norm(module), layers, lr_scale)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm or an RMS norm, by whatever name its model gives it."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.lower().endswith(("rmsnorm", "layernorm"))
