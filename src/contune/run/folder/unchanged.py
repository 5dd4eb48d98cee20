"""A run goes on under the configuration that it began with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contune.errors import ConfigError

# What changes no number of a run, or is compared by its content: the model's weights and the stream's data have hashes.
FREE = ("model.path", "stream.data", "cache.", "device", "train.checkpoint_steps", "train.checkpoint_seconds")


def require_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a checkpoint that was made under another configuration.

    Raises `ConfigError` naming the keys that differ.
    """
    found = differences(before, now)
    if found:
        raise ConfigError(
            f"{folder / 'config.yaml'} has changed since the checkpoint was made: {'; '.join(found)}. Put it back, or start "
            "a new run"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each key that differs, as a clause. A key that the older one did not know is none.

    >>> differences({"train": {"lr": 0.1, "epochs": 1}}, {"train": {"lr": 0.5, "epochs": 1}, "device": "cpu"})
    ['train.lr was 0.1 and is 0.5']
    """
    one, other = flat(before), flat(now)
    return [
        f"{key} was {value!r} and is {other.get(key)!r}"
        for key, value in one.items()
        if not key.startswith(FREE) and other.get(key) != value
    ] + [f"{key} is {other[key]!r} and was not there" for key in other if key.startswith("method.") and key not in one]


def flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested mappings as one, by `a.b.c`.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{start}{key}.") if isinstance(value, Mapping) and value else {f"{start}{key}": value}
    return found
