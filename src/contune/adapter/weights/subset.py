"""Adapters that train some of the base model's own weights: all of them, the biases, or the layer norms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, final

from torch import Tensor, nn

from contune.adapter.weights.depths import Stability, depths_below_head, start_anew
from contune.backbone.backbone import Backbone
from contune.backbone.layers import is_norm
from contune.backbone.linear import Matrix, tables_of
from contune.backbone.targets import chosen_layers, head_parameters, resolve_layers
from contune.backbone.targets import matrices as matrices_of
from contune.contract.capability import BaseMatrices, LinearWeights
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State
from contune.errors import CombinationError, ConfigError

Choice = Callable[[str, nn.Module], bool]


@final
class ParameterSubset(Adapter):
    """Trains the base parameters that `choice(parameter name, its module)` picks, at `lr_scale` times the rate.

    With `layers` only what lies in those layers is trained, and the layers below them can be cached. `stability` lowers
    rates, freezes or starts anew by depth. Layers that rest from the first task on are cached too; those that learned
    before they rest are not, since what is cached is the model as it was loaded. `matrices`: whether the matrices of the
    model (`contune.backbone.targets.matrices`) are among what it picks, or are all that it picks. `tables`: whether
    embeddings and the language head may be picked, which are one tensor in many models and are picked alike in all.
    """

    def __init__(
        self,
        name: str,
        choice: Choice,
        layers: str | Sequence[int],
        lr_scale: float,
        stability: Stability = Stability(),  # noqa: B008  frozen, and never changed
        matrices: Literal["none", "some", "only"] = "some",
        tables: bool = True,
    ) -> None:
        self.name = name  # type: ignore[misc]  # one class serves three names of the configuration
        self.lr_scale = lr_scale
        self.layers = layers
        self.matrices_only = matrices == "only"
        self._has_matrices = matrices != "none"
        self._tables = tables
        self._matrices: dict[str, Matrix] = {}
        self._choice = choice
        self._stability = stability
        self._chosen: dict[str, nn.Parameter] = {}
        self._depths: dict[str, int] = {}
        self._resting: frozenset[str] = frozenset()
        self._seed = 0

    def offers(self, ability: type) -> object | None:
        return None if ability in (LinearWeights, BaseMatrices) and not self._has_matrices else super().offers(ability)

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed, self._matrices = seed, matrices_of(backbone)
        how, depth = self._stability, backbone.depth
        if how.needs_depths:
            self._depths = depths_below_head(backbone)
            how.require_reset(depth)
        for name, parameter in sorted(self._candidates(backbone).items()):
            if how.frozen_from or not self._depths or not how.rests(self._depths[name], depth):
                parameter.requires_grad_(True)
                self._chosen[name] = parameter
        if not self._chosen:
            raise CombinationError(
                f"adapter {self.name!r} finds nothing to train in {backbone.config.path}: "
                "this model has no such parameters; take lora or another adapter"
            )

    def _candidates(self, backbone: Backbone) -> Parameters:
        """What is picked, by name and kind and place."""
        owners = {id(p): m for m in backbone.stock.modules() for p in m.parameters(recurse=False)}
        inside = {id(p) for layer in chosen_layers(backbone, self.layers) for p in layer.parameters()}
        rest = set() if self._tables else tables_of(backbone.stock) | {id(p) for p in head_parameters(backbone)}
        return {
            name: value
            for name, value in backbone.base_parameters().items()
            if (self.layers == "all" or id(value) in inside)
            and id(value) not in rest
            and (name in self._matrices or not self.matrices_only)
            and self._choice(name, owners[id(value)])
        }

    def begin_task(self, context: Context) -> None:
        if self._stability.reset and context.task.index == 0:
            self._start_anew(context.model.backbone)
        self._rest(context)

    def _start_anew(self, backbone: Backbone) -> None:
        known = {id(parameter) for parameter in self._chosen.values()}
        for place in range(backbone.depth - self._stability.reset, backbone.depth):
            layer = backbone.layers[place]
            if any(id(parameter) not in known for parameter in layer.parameters()):
                raise ConfigError(
                    f"reset would start layer {place} anew, which is not wholly trained here; leave layers out, or lower "
                    "reset"
                )
            norms = {id(p): m for m in layer.modules() if is_norm(m) for p in m.parameters(recurse=False)}
            start_anew(layer, norms, self._seed, place)

    def _rest(self, context: Context) -> None:
        """From its task on, what is frozen takes no gradient any more."""
        how = self._stability
        if not how.frozen_from or context.task.index < how.frozen_from or how.frozen is None:
            return
        depth = context.model.backbone.depth
        self._resting = frozenset(name for name in self._chosen if how.rests(self._depths[name], depth))
        for name in self._resting:
            self._chosen[name].requires_grad_(False)

    def trained(self) -> Parameters:
        return {name: parameter for name, parameter in self._chosen.items() if name not in self._resting}

    def linear(self) -> Mapping[str, nn.Module]:
        """The linear layers whose weights are trained now, by the names of these weights."""
        return {name: one.module for name, one in self.matrices().items() if one.is_layer}

    def matrices(self) -> Mapping[str, Matrix]:
        """The model's matrices that are trained now, experts among them, by their names."""
        trained = self.trained()
        return {name: one for name, one in self._matrices.items() if name in trained}

    def rate(self, name: str) -> float:
        return self.lr_scale * self._stability.decay ** self._depths.get(name, 0)

    def lowest_layer(self, backbone: Backbone) -> int:
        how = self._stability
        cached = 0 if how.frozen_from or how.frozen is None else how.resting_layers(backbone.depth)
        return max(cached, 0 if self.layers == "all" else min(resolve_layers(self.layers, backbone.depth)))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs, resume=batch.resume), None

    def merge(self) -> bool:
        return True  # the weights are the model's own already

    def state(self) -> State:
        return State({name: parameter.detach() for name, parameter in self._chosen.items()})

    def load_state(self, state: State, context: Context) -> None:
        for name, parameter in self._chosen.items():
            parameter.data.copy_(state.tensors[name])
        self._rest(context)


def full(
    *,
    layers: Layers = "all",
    lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
    decay: Annotated[float, "factor of the rate for each layer down, above 0 to 1; 1: all alike"] = 1.0,
    frozen: Annotated[int | None, "lowest layers that rest with the embeddings; null: nothing rests"] = None,
    frozen_from: Annotated[int, "first task, counted from 0, in which they rest"] = 0,
    reset: Annotated[int, "top layers that start anew when the first task begins; 0: none"] = 0,
) -> Adapter:
    """Every weight of the base model, at a hundredth of the head's learning rate (SLCA, arXiv 2303.05118, section 3.2).

    Where the model answers in writing, its language head is trained with it, whether tied to the embeddings or not.

    `decay`, `frozen` with `frozen_from`, and `reset` train it more gently by depth (arXiv 2112.07869), as the methods
    stable-finetune and freeze do.

    Memory: the model in place of the base, and the optimizer's two copies of what trains.
    Compute: a full backward pass, or one down to the lowest layer that trains.
    """
    stability = Stability(decay, frozen, frozen_from, reset)
    return ParameterSubset("full", lambda _name, _module: True, layers, lr_scale, stability)


def bias(
    *,
    layers: Layers = "all",
    lr_scale: LrScale = 1.0,
) -> Adapter:
    """The biases alone (BitFit, arXiv 2106.10199).

    Memory: the biases, about a thousandth of the model.
    Compute: a backward pass down to the lowest chosen layer.
    """
    return ParameterSubset("bias", lambda name, _module: name.endswith("bias"), layers, lr_scale, matrices="none")


def layer_norm(
    *,
    layers: Layers = "all",
    lr_scale: LrScale = 1.0,
) -> Adapter:
    """Gains and biases of the normalisation layers alone (arXiv 2302.08155).

    Memory: gains and biases, a few thousandths of the model or less.
    Compute: a backward pass down to the lowest chosen layer.
    """
    return ParameterSubset("layer-norm", lambda _name, module: is_norm(module), layers, lr_scale, matrices="none")
