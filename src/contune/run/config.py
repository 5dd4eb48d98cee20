"""The configuration: one YAML file, or the same keys as `key=value`, checked whole before anything is computed."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contune.backbone.config import ModelConfig
from contune.contract.settings import CacheSettings, TrainSettings
from contune.errors import ConfigError, did_you_mean
from contune.stream.config import StreamConfig


@final
class RunConfig(BaseModel):
    """Everything a run depends on. `methods` instead of `method` runs several on the same stream and compares them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    stream: StreamConfig
    method: str | dict[str, Any] | None = Field(None, description="a recipe's name, {name, options}, or parts")
    methods: list[str | dict[str, Any]] | None = Field(None, description="several methods, compared")
    train: dict[str, Any] = Field(default_factory=dict, description="what differs from the method's own settings")
    cache: CacheSettings = CacheSettings()
    device: str = Field("auto", description="auto, cpu, cuda or mps")

    @model_validator(mode="after")
    def _one_of(self) -> "RunConfig":
        if (self.method is None) == (self.methods is None):
            raise ValueError("give either method or methods")
        return self

    def single(self, method: str | dict[str, Any]) -> "RunConfig":
        """This configuration with one of its methods; a method may bring its own `train` settings."""
        own = dict(method) if isinstance(method, dict) else {"name": method}
        own_train: Any = own.pop("train", {})
        train = {**self.train, **own_train}
        return self.model_copy(update={"method": own, "methods": None, "train": train})

    def label(self) -> str:
        """A short name for folders and tables."""
        if isinstance(self.method, str):
            return self.method
        if self.method and "name" in self.method:
            return str(self.method["name"])
        parts = (
            [self.method.get("adapter", "none"), self.method.get("head", "linear"), *self.method.get("rules", [])]
            if self.method
            else []
        )
        return "+".join(part if isinstance(part, str) else next(iter(part)) for part in parts)


def builtin_configs() -> list[str]:
    """Names of the configurations that come with contune."""
    return sorted(item.name.removesuffix(".yaml") for item in files("contune.run").joinpath("builtin").iterdir())


def load_config(source: str, changes: Sequence[str] = ()) -> tuple[RunConfig, Path]:
    """The configuration of a YAML file or of a built-in name, with `key.inner=value` changes.

    Gives also the folder that its relative paths start from. Raises `ConfigError` naming the key.
    """
    path = Path(source)
    if path.is_file():
        text, base = path.read_text(), path.resolve().parent
    elif source in builtin_configs():
        text, base = files("contune.run").joinpath("builtin", f"{source}.yaml").read_text(), Path.cwd()
    else:
        raise ConfigError(f"no configuration {source!r}: give a YAML file or one of {', '.join(builtin_configs())}")
    return parse_config(text, changes, source), base


def parse_config(text: str, changes: Sequence[str] = (), source: str = "the configuration") -> RunConfig:
    """A checked configuration from YAML text."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds {type(values).__name__}; give keys: model, stream, method, train")
    for change in changes:
        apply_change(values, change)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from error
    for train in (config.train, *(m.get("train", {}) for m in config.methods or [] if isinstance(m, dict))):
        check_train(train, source)
    return config


def check_train(train: Mapping[str, Any], source: str) -> None:
    """Refuse unknown keys and wrong values of `train`."""
    try:
        TrainSettings.model_validate(train)
    except ValidationError as error:
        raise ConfigError(f"{source}: train: {explain(error, TrainSettings)}") from error


def apply_change(values: dict[str, Any], change: str) -> None:
    """Set `a.b.c=value` in nested mappings; the value is read as YAML.

    >>> values = {"train": {"lr": 1}}
    >>> apply_change(values, "train.epochs=3"); values
    {'train': {'lr': 1, 'epochs': 3}}
    """
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set is given {change!r}; write key=value, such as train.epochs=3")
    place = values
    *outer, last = key.split(".")
    for name in outer:
        inner = place.setdefault(name, {})
        if isinstance(inner, str):
            inner = place[name] = {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {name!r} holds {inner!r}, which has no keys inside")
        place = inner
    place[last] = number_or(yaml.safe_load(text))


def number_or(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string; a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain(error: ValidationError, root: type[BaseModel] = RunConfig) -> str:
    """The first thing wrong, as a sentence with its key."""
    first = error.errors()[0]
    tags = ("name", "mapping") if root is RunConfig else ()  # how pydantic tells the forms of stream.data apart
    place = [str(part) for part in first["loc"] if part not in tags]
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = root
        for part in place[:-1]:
            inner = model.model_fields[part].annotation if part in model.model_fields else None
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
        home = ".".join(place[:-1]) or "the top level"
        return f"unknown key {place[-1]!r} in {home}; {did_you_mean(place[-1], model.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place)}: {message} (given {first.get('input')!r})" if place else message
