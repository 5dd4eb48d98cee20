"""What must hold of method, settings, stream and model before anything is computed."""

from collections.abc import Mapping
from typing import Any

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.contract.objective import Objective
from contune.contract.parts import Adapter, Trait
from contune.contract.settings import TrainSettings
from contune.errors import CombinationError, ConfigError
from contune.method.method import Method
from contune.stream.task import Kind


def refuse_packing(objective: Objective, adapter: Adapter) -> None:
    """Raise where `train.packing` makes no sense; before any model is loaded."""
    if Trait.WRITTEN not in objective.traits:
        raise ConfigError(
            f"train.packing is on, but with objective: {objective.name} nothing is written; packing is for objective: "
            "write, leave it out"
        )
    against = next((one.name for one in with_inner(adapter) if not one.supports_packing), None)
    if against is not None:
        raise CombinationError(
            f"adapter {against!r} adds tokens to a text or does something else to every text, and with train.packing "
            "several texts share a row; set train.packing: false, or take an adapter of weights, such as lora"
        )


def with_inner(adapter: Adapter) -> list[Adapter]:
    """An adapter and those inside it."""
    inner = [value for value in vars(adapter).values() if isinstance(value, Adapter)]
    return [adapter, *(each for one in inner for each in with_inner(one))]


def checked_settings(method: Method, given: Mapping[str, Any], objective: Objective) -> TrainSettings:
    """The settings of the gradient loop: the method's own, and those given; refused where they make no sense."""
    settings = TrainSettings().with_changes({**method.train, **given})
    if settings.views is not None and not settings.augment:
        raise ConfigError(
            f"train.views is {settings.views} but train.augment is off, so that there is one view alone; "
            "set train.augment: true, or leave train.views out"
        )
    if settings.packing:
        refuse_packing(objective, method.adapter)
    return settings


def checked_kind(kind: Kind | None, objective: Objective) -> Kind:
    """The kind of stream: the one given, or the first that the objective can learn."""
    if kind is not None and kind not in objective.kinds:
        raise ConfigError(
            f"kind is {kind}, but objective: {objective.name} learns streams of kind {' or '.join(objective.kinds)}; "
            "take one of these"
        )
    return kind or objective.kinds[0]


def loaded_backbone(config: ModelConfig, device: str, objective: Objective, settings: TrainSettings) -> Backbone:
    """The base model, if it can do what the settings ask for."""
    backbone = Backbone.load(config, device=device, reads=objective.reads, precision=settings.precision)
    if settings.packing:
        backbone.require_packing()
    if settings.augment and not backbone.augmentable:
        raise ConfigError("train.augment is on but the model reads text; augmentation is for images, set it to false")
    return backbone
