"""An inbox: files that come are learned one after the other, each once, whatever the watcher is killed at."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from contune._files import file_sha256
from contune.errors import ContuneError, DataError
from contune.living.data.read import one_task
from contune.living.gating import Say
from contune.living.model import LivingModel
from contune.living.store.folder import now
from contune.stream.read.tables import SUFFIXES

SETTLED = 2.0  # seconds since a file was last written from which on it is taken to be whole


@final
@dataclass(frozen=True)
class Taken:
    """A file of the inbox: the version it made and what the gate said, or the sentence with which it was refused."""

    file: str
    version: int | None
    outcome: str | None
    sentence: str


def watch(
    model: LivingModel,
    inbox: Path,
    *,
    every: float | None = None,
    rows: int = 1,
    say: Say,
    wait: Callable[[float], None] = time.sleep,
) -> list[Taken]:
    """Look into the inbox once, or `every` so many seconds for ever; learn when at least `rows` new examples lie there."""
    if not inbox.is_dir():
        raise DataError(f"{inbox} is no folder; make it, and put files with new examples there")
    while True:
        found = look(model, inbox, rows, say)
        if every is None:
            return found
        wait(every)


def look(model: LivingModel, inbox: Path, rows: int, say: Say) -> list[Taken]:
    """Learn what is new in the inbox, in the order of the files' names."""
    new = new_files(model, inbox)
    count = sum(rows_of(model, path) for path in new) if rows > 1 else rows
    if count < rows:
        say(f"{count:,} new examples in {inbox}; {rows:,} are waited for")
        return []
    return [take(model, path, say) for path in new]


def new_files(model: LivingModel, inbox: Path) -> list[Path]:
    """Files that nobody has taken yet and that are written no more; a file is known by its content."""
    known = {line["sha256"] for line in model.folder.log.lines() if line["event"] == "taken"}
    files = [path for path in sorted(inbox.iterdir()) if path.is_file() and path.name.lower().endswith(SUFFIXES)]
    whole = [path for path in files if time.time() - path.stat().st_mtime >= SETTLED and not path.name.startswith(".")]
    return [path for path in whole if file_sha256(path) not in known]


def rows_of(model: LivingModel, path: Path) -> int:
    """How many examples a file has; none where it cannot be read, which is said when it is taken."""
    try:
        return len(one_task(str(path), path.stem, model.config)[0].train)
    except ContuneError:
        return 0


def take(model: LivingModel, path: Path, say: Say) -> Taken:
    """Learn one file, and write down that it was taken; a bad file is refused, and the others go on."""
    mark = file_sha256(path)
    try:
        made = model.update(str(path))
        taken = Taken(path.name, made.number, made.outcome, made.sentence)
    except DataError as error:
        taken = Taken(path.name, None, None, str(error))
    say(f"{path.name}: {taken.sentence}")
    with model.folder.locked():
        model.folder.log.add("taken", file=path.name, sha256=mark, version=taken.version, at=now())
    return taken
