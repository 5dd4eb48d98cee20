"""The one way contune writes a file or a folder: to a temporary name beside it, flushed to the disk, then renamed.

Lines are added to a file in place, and who changes a folder locks it.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from contune.errors import RunDirectoryError

BLOCK = 2**16  # bytes that are read at once


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it takes the place of `path` in one step.

    A reader, or a process that starts after a kill, sees the old file or the new one and never a part. Without `flush` that
    holds for kills but not for a power cut: whoever writes many files flushes them together, before anything names them.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if flush:
            sync_file(temporary)
        temporary.replace(path)
        if flush:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes this name in one step when the block ends well.

    A folder that exists already is never touched; after an error nothing is left behind.
    """
    target = Path(out).absolute()
    require_free(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            if item.is_file():
                sync_file(item)
            else:
                sync_folder(item)
        sync_folder(temporary)
        require_free(target)
        temporary.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(out: Path) -> None:
    """Refuse to write where something is."""
    if out.exists() or out.is_symlink():
        raise RunDirectoryError(f"{out} exists already and is never overwritten; name a new folder")


def write_bytes(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write a whole file atomically."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON; NaN and infinities are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, line: bytes, *, mode: int = 0o644) -> None:
    """Add a line, its end included, and flush it to the disk; part of a line that a kill has left is cut off first."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        os.ftruncate(handle, end_of_lines(handle))
        os.lseek(handle, 0, os.SEEK_END)
        if os.write(handle, line) != len(line):
            raise OSError(f"{path} could not be written whole; is the disk full?")
        os.fsync(handle)
    finally:
        os.close(handle)
    if new:
        sync_folder(path.parent)


def end_of_lines(handle: int) -> int:
    """Where the last whole line of a file ends; reads no more of it than the part of a line that comes after."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(end - BLOCK, 0)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def lock(file: IO[str], taken: str) -> None:
    """Take the lock of an open file; where another process has it, say the sentence `taken`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunDirectoryError(taken) from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
