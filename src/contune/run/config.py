"""The configuration: one YAML file, or the same keys as `key=value`, checked whole before anything is computed."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, final, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from contune.backbone.config import ModelConfig
from contune.contract.settings import CacheSettings, TrainSettings
from contune.errors import ConfigError, did_you_mean
from contune.stream.config import StreamConfig


@final
class RunConfig(BaseModel):
    """Everything a run depends on.

    `methods` instead of `method` runs several on the same stream and compares them. `sweep` names keys with the values
    to try: every combination is a run of its own, for each method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = Field(description="the frozen model that a run starts from")
    stream: StreamConfig = Field(description="which data arrives in which tasks")
    method: str | dict[str, Any] | None = Field(None, description="a recipe's name, {name, options}, or parts")
    methods: list[str | dict[str, Any]] | None = Field(None, description="several methods, compared")
    sweep: dict[str, list[Any]] | None = Field(None, description="values to try by key, such as train.seed: [0, 1]")
    train: dict[str, Any] = Field(default_factory=dict, description="what differs from the method's own settings")
    cache: CacheSettings = Field(CacheSettings(), description="where results of the frozen model are kept")
    device: str = Field("auto", description="auto (cuda where there is one, else cpu), cpu, cuda, cuda:1 or mps")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
            raise ValueError("not known; give auto, cpu, cuda, cuda:1 (the second of several) or mps")
        return device

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
        return self.model_copy(update={"method": own, "methods": None, "sweep": None, "train": train})

    @property
    def several(self) -> bool:
        """Whether this is more than one run."""
        return self.methods is not None or bool(self.sweep)

    def with_values(self, values: Mapping[str, Any]) -> "RunConfig":
        """This configuration of one method with other values of some keys, such as `train.seed`; checked again."""
        changed = self.model_dump(mode="json", exclude_unset=True)
        for key, value in values.items():
            set_key(changed, key, value, "--sweep")
        return checked(changed, "--sweep " + " ".join(f"{key}={value}" for key, value in values.items()))

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


def load_config(source: str, changes: Sequence[str] = (), sweeps: Sequence[str] = ()) -> tuple[RunConfig, Path]:
    """The configuration of a YAML file or of a built-in name, with `key.inner=value` changes.

    `sweeps` are `key.inner=value,value,...`: the values to try.

    Gives also the folder that its relative paths start from. Raises `ConfigError` naming the key.
    """
    path = Path(source)
    if path.is_file():
        text, base = read_yaml(path), path.resolve().parent
    elif source in builtin_configs():
        text, base = files("contune.run").joinpath("builtin", f"{source}.yaml").read_text("utf-8"), Path.cwd()
    else:
        raise ConfigError(f"no configuration {source!r}: give a YAML file or one of {', '.join(builtin_configs())}")
    return parse_config(text, changes, source, sweeps), base


def read_yaml(path: Path) -> str:
    """The text of a YAML file, which is UTF-8 whatever the locale says."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error


def located(config: RunConfig, base: Path) -> RunConfig:
    """The configuration with its model's and its cache's folder as whole paths, so that it means the same everywhere.

    Relative paths start at `base`, the folder of the configuration. Raises `ConfigError` where the model's folder is found
    from the working folder alone.
    """
    model, folder, base = config.model, config.cache.folder, base.resolve()
    path = Path(model.path).expanduser()
    if (base / path).is_dir():
        model = model.model_copy(update={"path": str(base / path)})
    elif path.is_dir():
        raise ConfigError(
            f"model.path is {model.path!r}, which is no folder in {base}, where the configuration's paths start, but one in "
            f"{Path.cwd()}; write {str(path.resolve())!r}"
        )
    cache = config.cache
    if folder is not None:
        cache = cache.model_copy(update={"folder": str(base / Path(folder).expanduser())})
    return config.model_copy(update={"model": model, "cache": cache})


def read_resolved(folder: Path) -> tuple[RunConfig, Path]:
    """The configuration of a run directory, and the folder that its relative paths start from."""
    values = yaml.safe_load(read_yaml(folder / "config.yaml"))
    base = Path(values.pop("base", "."))
    return located(checked(values, str(folder / "config.yaml")), base), base


def parse_config(
    text: str, changes: Sequence[str] = (), source: str = "the configuration", sweeps: Sequence[str] = ()
) -> RunConfig:
    """A checked configuration from YAML text."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds {type(values).__name__}; give keys: model, stream, method, train")
    for change in changes:
        apply_change(values, change)
    for sweep in sweeps:
        add_sweep(values, sweep)
    return checked(values, source)


def checked(values: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration that these values make; raises `ConfigError` naming the key."""
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
    set_key(values, key, number_or(yaml.safe_load(text)), "--set")


def set_key(values: dict[str, Any], key: str, value: Any, option: str) -> None:
    """Put a value under `a.b.c` in nested mappings; `option` is where the user wrote it."""
    place = values
    *outer, last = key.split(".")
    for name in outer:
        inner = place.setdefault(name, {})
        if isinstance(inner, str):
            inner = place[name] = {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"{option} {key}: {name!r} holds {inner!r}, which has no keys inside")
        place = inner
    place[last] = value


def add_sweep(values: dict[str, Any], sweep: str) -> None:
    """Add `a.b=value,value,...` to the sweep; the values are read as YAML.

    >>> values = {}
    >>> add_sweep(values, "train.lr=1e-3,0.1"); add_sweep(values, "method.layers=all,[1, 2]"); values
    {'sweep': {'train.lr': [0.001, 0.1], 'method.layers': ['all', [1, 2]]}}
    """
    key, sign, text = sweep.partition("=")
    try:
        found = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        found = None
    if not sign or not key or not found:
        raise ConfigError(f"--sweep is given {sweep!r}; write key=value,value, such as train.seed=0,1,2")
    whole = values.setdefault("sweep", {})
    if key in whole:
        raise ConfigError(f"{key} is swept twice; write all of its values behind one --sweep {key}=")
    whole[key] = [number_or(value) for value in found]


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
        home = ".".join(place[:-1]) or "the top level"
        return f"unknown key {place[-1]!r} in {home}; {did_you_mean(place[-1], section_at(root, place).model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return message
    field = section_at(root, place).model_fields.get(place[-1])
    meaning = f"; {place[-1]} is: {field.description}" if field is not None and field.description else ""
    return f"{'.'.join(place)}: {message} (given {first.get('input')!r}){meaning}"


def section_at(root: type[BaseModel], place: Sequence[str]) -> type[BaseModel]:
    """The section of the configuration that holds the last of these keys."""
    model = root
    for part in place[:-1]:
        found = model_in(model.model_fields[part].annotation) if part in model.model_fields else None
        model = found or model
    return model


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, alone or among other forms."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (model_in(each) for each in get_args(annotation))
    return next((model for model in found if model is not None), None)
