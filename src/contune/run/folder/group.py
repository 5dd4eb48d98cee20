"""Several runs of one configuration: a directory of run directories that is begun and gone on with as a whole.

The runs are those of its `methods`, for every combination of the values in its `sweep`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, final

import yaml

from contune._files import atomic_path
from contune.errors import RunDirectoryError
from contune.run.config import RunConfig, checked, read_yaml

FILE = "methods.yaml"


@final
@dataclass(frozen=True)
class RunGroup:
    """The runs of a configuration with `methods` or a `sweep`: each one's folder name and own configuration, in order."""

    folder: Path
    base: Path
    members: tuple[tuple[str, RunConfig], ...]

    @staticmethod
    def create(folder: Path, config: RunConfig, base: Path) -> "RunGroup":
        """A new directory that remembers the whole configuration; raises where it is not empty."""
        if folder.exists() and any(folder.iterdir()):
            raise RunDirectoryError(f"{folder} exists already and is never overwritten; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        values = {**config.model_dump(mode="json", exclude_unset=True), "base": str(base)}
        with atomic_path(folder / FILE) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return RunGroup(folder, base, members_of(config))

    @staticmethod
    def read(folder: Path) -> "RunGroup | None":
        """The group of a directory, or None where it holds a single run."""
        file = folder / FILE
        if not file.exists():
            return None
        values = yaml.safe_load(read_yaml(file))
        base = Path(values.pop("base"))
        return RunGroup(folder, base, members_of(checked(values, str(file))))

    def begun(self, label: str) -> bool:
        """Whether this member's run directory exists."""
        return (self.folder / label / "config.yaml").exists()

    def finished(self, label: str) -> bool:
        """Whether this member's run has come to its end."""
        results = self.folder / label / "results.json"
        return results.exists() and bool(json.loads(results.read_text(encoding="utf-8")).get("finished"))


def members_of(config: RunConfig) -> tuple[tuple[str, RunConfig], ...]:
    """Folder name and configuration of every method with every combination of the sweep's values.

    The folder is named by what tells the runs apart: the method where there are several, then `key=value`. Raises
    `ConfigError` for a key or value that a run cannot have.
    """
    sweep, labels, singles = config.sweep or {}, [], []
    for method in config.methods or [config.method or {}]:
        for chosen in product(*sweep.values()):
            single, values = config.single(method), dict(zip(sweep, chosen, strict=True))
            singles.append(single.with_values(values) if values else single)
            name = [single.label()] if config.methods or not sweep else []
            labels.append(",".join([*name, *(f"{key}={shown(value)}" for key, value in values.items())]))
    return tuple(zip(unique(labels), singles, strict=True))


def shown(value: Any) -> str:
    """A value as a part of a folder's name.

    >>> shown(0.001), shown(None), shown([1, 2]), shown("data/a b.csv")
    ('0.001', 'null', '1-2', 'data-a-b.csv')
    """
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")[:60]


def unique(labels: Sequence[str]) -> list[str]:
    """The labels with numbers where one comes twice.

    >>> unique(["er", "lora", "er"])
    ['er', 'lora', 'er-2']
    """
    seen: dict[str, int] = {}
    named = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        named.append(label if seen[label] == 1 else f"{label}-{seen[label]}")
    return named
