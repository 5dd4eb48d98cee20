"""The run directory: created once, locked while in use, with checksummed checkpoints of which the newest two are kept."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from contune._files import lock, write_text
from contune.contract.state import State
from contune.engine.saved import read_state, write_state
from contune.errors import RunDirectoryError

KEPT = 2


@final
class RunDirectory:
    """One run's files. `create` refuses a folder that holds anything; `open` refuses one that is no run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def create(folder: Path, config_yaml: str) -> "RunDirectory":
        """A new run directory that holds its resolved configuration."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunDirectoryError(
                f"{folder} exists already and is never overwritten; choose another --out, "
                f"or go on with it: contune resume {folder}"
            )
        (folder / "checkpoints").mkdir(parents=True)
        write_text(folder / "config.yaml", config_yaml)
        return RunDirectory(folder)

    @staticmethod
    def open(folder: Path) -> "RunDirectory":
        """An existing run directory."""
        if not (folder / "config.yaml").is_file():
            raise RunDirectoryError(
                f"{folder} is not a run directory: it has no config.yaml; give one that contune run made"
            )
        (folder / "checkpoints").mkdir(exist_ok=True)
        return RunDirectory(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process off this directory; the lock falls with the process, also when it is killed."""
        with (self.folder / ".lock").open("w") as file:
            lock(file, f"{self.folder} is in use by another contune process; wait for it, or stop it first")
            yield

    def save(self, state: State, position: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, then drop all but the newest two."""
        name = f"{position['task']:05d}-{position['step']:08d}"
        write_state(self.folder / "checkpoints" / name, state, position)
        self._prune()

    def newest(self) -> tuple[State, dict[str, Any], list[str]] | None:
        """The newest checkpoint that is whole, its position, and a sentence for each damaged one passed over."""
        warnings: list[str] = []
        folders = sorted(self._checkpoints(), reverse=True)
        for folder in folders:
            try:
                return (*read_state(folder), warnings)
            except RunDirectoryError as error:
                warnings.append(f"{error}; the checkpoint before it is used")
        if folders:
            raise RunDirectoryError(
                f"no checkpoint of {self.folder} is whole: {warnings[0].split(';')[0]}; start the run anew"
            )
        return None

    def _checkpoints(self) -> list[Path]:
        return [item for item in (self.folder / "checkpoints").iterdir() if not item.name.startswith(".")]

    def _prune(self) -> None:
        for old in sorted(self._checkpoints())[:-KEPT]:
            shutil.rmtree(old)
        for rest in (self.folder / "checkpoints").glob(".*.tmp"):
            shutil.rmtree(rest, ignore_errors=True)
