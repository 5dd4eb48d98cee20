"""Several methods on one stream: a directory of run directories that is begun and gone on with as a whole."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import yaml

from contune._files import atomic_path
from contune.errors import RunDirectoryError
from contune.run.config import RunConfig, parse_config

FILE = "methods.yaml"


@final
@dataclass(frozen=True)
class Group:
    """The runs of a configuration with `methods`: each one's folder name and its own configuration, in order."""

    folder: Path
    base: Path
    members: tuple[tuple[str, RunConfig], ...]

    @staticmethod
    def create(folder: Path, config: RunConfig, base: Path) -> "Group":
        """A new directory that remembers the whole configuration; raises where it is not empty."""
        if folder.exists() and any(folder.iterdir()):
            raise RunDirectoryError(f"{folder} exists already and is never overwritten; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        values = {**config.model_dump(mode="json", exclude_none=True), "base": str(base)}
        with atomic_path(folder / FILE) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False))
        return Group(folder, base, members_of(config))

    @staticmethod
    def read(folder: Path) -> "Group | None":
        """The group of a directory, or None where it holds a single run."""
        file = folder / FILE
        if not file.exists():
            return None
        values = yaml.safe_load(file.read_text())
        base = Path(values.pop("base"))
        return Group(folder, base, members_of(parse_config(yaml.safe_dump(values), source=str(file))))

    def begun(self, label: str) -> bool:
        """Whether this member's run directory exists."""
        return (self.folder / label / "config.yaml").exists()

    def finished(self, label: str) -> bool:
        """Whether this member's run has come to its end."""
        results = self.folder / label / "results.json"
        return results.exists() and bool(json.loads(results.read_text()).get("finished"))


def members_of(config: RunConfig) -> tuple[tuple[str, RunConfig], ...]:
    """Folder name and configuration of every method."""
    singles = [config.single(method) for method in config.methods or []]
    return tuple(zip(unique([single.label() for single in singles]), singles, strict=True))


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
