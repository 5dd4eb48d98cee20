"""What a living model is made with and keeps for life: model, method, what may stay of the data, what the gate asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contune.backbone.config import ModelConfig
from contune.errors import ConfigError
from contune.living.gate.rules import GateRules
from contune.run.config import apply_change, check_train, explain, read_yaml
from contune.stream.config import DataConfig, LanguageConfig, ObjectiveName
from contune.stream.task import Kind


class Policy(BaseModel):
    """What may stay on the disk of the examples that came.

    `buffer` is about examples that were learned. `raw`: they are kept, so that they can be replayed, forgotten and learned
    again. `features`: vectors of the frozen model may be kept, the examples not. `none`: neither. Hashes stay in any case,
    because without them nobody could say what was learned; a hash of a text that can be guessed can be found by guessing.
    `suites` is about examples that test and are never learned. `none`: they are measured once, and the gate cannot ask about
    them again.

    >>> Policy(buffer="none").allows_raw
    False
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    buffer: Literal["none", "features", "raw"] = Field("raw", description="what may be kept of learned examples")
    suites: Literal["none", "raw"] = Field("raw", description="what may be kept of examples that test")
    days: int | None = Field(
        None, ge=1, description="days after which contune gc drops raw learned examples; null: never"
    )

    @property
    def allows_raw(self) -> bool:
        """Whether learned examples may be kept as they are."""
        return self.buffer == "raw"


class Columns(BaseModel):
    """In which columns tables have inputs and labels; found by their usual names where left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = Field(None, description="column of the text")
    image: str | None = Field(None, description="column of the image")
    input: dict[str, str | list[str]] | None = Field(None, description="columns of an input of another kind")
    label: str | None = Field(None, description="column of the label")


@final
class LivingConfig(BaseModel):
    """Everything that all versions have in common; `contune create` writes it down once.

    >>> LivingConfig.model_validate({"model": {"path": "model"}, "method": "er"}).held_out
    0.2
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = Field(description="the frozen model that all versions stand on")
    method: str | dict[str, Any] = Field(description="a recipe's name, {name, options}, or parts")
    objective: ObjectiveName = Field("classify", description="what an answer is")
    kind: Kind | None = Field(None, description="what is new in an update: classes, domains, or named tasks")
    train: dict[str, Any] = Field(default_factory=dict, description="what differs from the method's own settings")
    columns: Columns = Field(Columns(), description="where tables have inputs and labels")
    language: LanguageConfig | None = Field(None, description="objective write: how rows become prompts and answers")
    held_out: float = Field(
        0.2, ge=0, lt=1, description="share of an update that tests and is not learned, where no test is given"
    )
    policy: Policy = Field(Policy(), description="what may stay on the disk of the data")
    gate: GateRules = Field(GateRules(), description="what a candidate must show")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")

    @property
    def lasting(self) -> dict[str, Any]:
        """What a version's numbers depend on: all but where it is computed, and where the model lies."""
        kept = self.model_dump(mode="json", exclude={"device", "gate", "policy"})
        return {**kept, "model": {key: value for key, value in kept["model"].items() if key != "path"}}

    def data(self, **files: Any) -> DataConfig:
        """Where an update's data is, and in which columns."""
        return DataConfig(**files, **self.columns.model_dump(exclude_none=True))


def living_config(
    values: Mapping[str, Any], changes: Sequence[str] = (), source: str = "contune create"
) -> LivingConfig:
    """A checked configuration; `changes` are `key.inner=value`. Raises ConfigError naming the key."""
    given = {key: value for key, value in values.items() if value is not None}
    for change in changes:
        apply_change(given, change)
    check_train(given.get("train") or {}, source)
    try:
        return LivingConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, LivingConfig)}") from error


def read_policy(path: Path) -> dict[str, Any]:
    """The policy in a YAML file: `buffer`, `suites` and `days`."""
    if not path.is_file():
        raise ConfigError(f"there is no policy {path}; give a YAML file such as: buffer: none")
    values = yaml.safe_load(read_yaml(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; give keys: buffer, suites, days")
    return dict(values.get("policy", values))
