"""Only those weights move that another training of the same model had changed (arXiv 2505.11711)."""

from typing import ClassVar, final

from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.contract.capability import Freezable, Need, require
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.contract.state import State
from contune.errors import ConfigError
from contune.numerics.masks import all_unpacked, changed, held_updates, masked_gradients, packed
from contune.rule.linear import PREFIX
from contune.rule.mask.lottery_ticket import maskable


@final
class ExternalMask(Rule):
    """One mask for all tasks: where the weights of `tuned`, a fine-tuned version of the model, differ from the model's.

    `tuned` is a hub id or a folder, such as the model after reinforcement learning; entries count that differ by more than
    `tolerance`, compared in float32. A checkpoint stored in bf16 shows no change that was rounded away: its mask looks
    smaller than the training was. Masked gradients are zero and masked moves are none; tensors without a changed entry
    rest. Memory: a bit per weight, and the second model while the first task begins.
    """

    needs: ClassVar[tuple[Need, ...]] = (Freezable,)

    def __init__(self, name: str, tuned: str, tolerance: float) -> None:
        if tolerance < 0:
            raise ConfigError(f"tolerance is {tolerance}; give no less than 0")
        self.name = name  # type: ignore[misc]  # one of two forms of a rule, under that rule's name
        self.tuned, self.tolerance = tuned, tolerance
        self._masks: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        if self._masks or not context.model.adapter_trainable:
            return
        before = maskable(context)
        after = tuned_weights(context.model.backbone, self.tuned, before)
        self._masks = {name: changed(value, after[name], self.tolerance) for name, value in before.items()}
        empty = {name for name, mask in self._masks.items() if not bool(mask.any())}
        if len(empty) == len(before):
            raise ConfigError(
                f"no weight of {self.tuned} differs from the model's by more than {self.tolerance}; "
                "name a fine-tuned version, or lower tolerance"
            )
        require(context.model.adapter, Freezable).freeze({name.removeprefix(PREFIX) for name in empty})

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return masked_gradients(gradients, self._masks)

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        return held_updates(updates, self._masks)

    def state(self) -> State:
        return State({name: packed(mask) for name, mask in self._masks.items()})

    def load_state(self, state: State, context: Context) -> None:
        base = {f"{PREFIX}{name}": value for name, value in context.model.backbone.base_parameters().items()}
        self._masks = all_unpacked(state.tensors, base)


def tuned_weights(backbone: Backbone, path: str, like: Tensors) -> dict[str, Tensor]:
    """The weights of another version of a model by the adapter's names; refused where it is another model."""
    config = backbone.config.model_copy(update={"path": path})
    other = Backbone.load(config, device=backbone.device, reads=backbone.parts.language and "chat")
    found = {f"{PREFIX}{name}": value.detach() for name, value in other.base_parameters().items()}
    wrong = [name for name, value in like.items() if name not in found or found[name].shape != value.shape]
    if wrong:
        raise ConfigError(
            f"{path} has no weight {wrong[0].removeprefix(PREFIX)!r} of the shape that {backbone.config.path} gives it; "
            "name a fine-tuned version of the very same model"
        )
    return {name: found[name] for name in like}
