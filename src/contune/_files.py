"""The one way contune writes a file or a folder: to a temporary name beside it, flushed to the disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contune.errors import RunDirectoryError


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
                with item.open("rb") as file:
                    os.fsync(file.fileno())
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


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
