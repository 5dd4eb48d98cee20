"""The log: one line for everything that happened, each with the hash of the line before. Lines are only ever added."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from contune._files import append_line
from contune.errors import RunDirectoryError
from contune.living.store.sealed import sealed_line, sha256, unsealed

START = "0" * 64


@final
class Log:
    """The lines of a log. A last line without its end was being written when a process was killed, and does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All lines, the chain checked; raises RunDirectoryError naming the first line that is not what it was."""
        before, found = START, []
        for number, data in enumerate(self._whole(), 1):
            line = unsealed(data, f"line {number} of {self.path}")
            if line["before"] != before or line["n"] != number:
                raise RunDirectoryError(f"line {number} of {self.path} does not follow the line before it")
            before = sha256(data)
            found.append(line)
        return found

    def _whole(self) -> list[bytes]:
        data = self.path.read_bytes() if self.path.exists() else b""
        return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)

    def add(self, event: str, **values: Any) -> dict[str, Any]:
        """Add one line and flush it to the disk."""
        whole = self._whole()
        before = sha256(whole[-1]) if whole else START
        line = {"n": len(whole) + 1, "before": before, "event": event, **values}
        append_line(self.path, sealed_line(line))
        return line


def last(lines: Sequence[Mapping[str, Any]], *events: str) -> Mapping[str, Any] | None:
    """The last line about one of these events."""
    return next((line for line in reversed(lines) if line["event"] in events), None)
