"""What users said would have been right: lines of JSON in `feedback/`, a file a day, which `contune update` reads as it is.

What the policy forbids of learned examples it forbids of these too: then a line holds the hash of the input and no text.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contune._files import append_line, write_bytes

Line = Mapping[str, Any]


def add_feedback(folder: Path, line: Line) -> Path:
    """Append one line, flushed to the disk; gives the file. A part of a line that a kill has left is cut off first.

    Under `feedback` a line says where it comes from, at least the `hash` of the input and the right `label`.
    """
    room = folder / "feedback"
    with kept_out(room):
        path = room / f"{time.strftime('%Y-%m-%d', time.gmtime())}.jsonl"
        append_line(path, json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n", mode=0o600)
    return path


def drop_feedback(folder: Path, gone: Callable[[Line], bool]) -> int:
    """Take the lines that are `gone` out of all files; how many these were."""
    room = folder / "feedback"
    if not room.is_dir():
        return 0
    count = 0
    with kept_out(room):
        for path in sorted(room.glob("*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            left = [line for line in lines if line.endswith(b"\n") and not gone(json.loads(line))]
            if len(left) < len(lines):
                count += len(lines) - len(left)
                write_bytes(path, b"".join(left)) if left else path.unlink()
    return count


def is_forgotten(rows: Set[str], classes: Set[str] = frozenset()) -> Callable[[Line], bool]:
    """Whether a line is about an example, or a class, that was forgotten."""
    return lambda line: line["feedback"]["hash"] in rows or line["feedback"]["label"] in classes


def drop_old_feedback(folder: Path, oldest: str) -> int:
    """Drop the files of days before `oldest` (as 2026-11-28); how many these were."""
    old = [path for path in (folder / "feedback").glob("*.jsonl") if path.stem < oldest]
    for path in old:
        path.unlink()
    return len(old)


@contextmanager
def kept_out(room: Path) -> Iterator[None]:
    """Keep every other process out that writes feedback."""
    room.mkdir(exist_ok=True)
    with (room / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
