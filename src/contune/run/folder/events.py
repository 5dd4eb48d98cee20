"""The event file: one JSON object a line, cut back on resume to what the checkpoint knew."""

import json
import os
from pathlib import Path
from typing import Any, final


@final
class EventFile:
    """Appends events; `offset` is what a checkpoint remembers."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        path.touch()
        os.truncate(path, min(offset, path.stat().st_size))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")

    def offset(self) -> int:
        """Bytes written so far, all of them on their way to the disk."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """No more events."""
        self._file.close()
