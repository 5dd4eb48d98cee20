"""Faults at every point where something reaches the disk: the process is killed there, or the disk says no."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """The process ends here: no handler of errors may go on."""


POINTS = ((Path, "write_bytes"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync"), (os, "write"))


@contextmanager
def fault_at(number: int | None, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """Count the points of writing, flushing, renaming and removing; at `number` (from 0) fail before it is done.

    A write that fails has written half. After a kill nothing more reaches the disk.
    """
    seen: list[str] = []
    dead = False
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in POINTS:
            real = getattr(owner, name)

            def planted(*args: Any, real: Any = real, name: str = name, **keys: Any) -> Any:
                nonlocal dead
                if dead:
                    raise Killed
                seen.append(name)
                if number is None or len(seen) - 1 != number:
                    return None if name == "fsync" else real(*args, **keys)  # a kill does not reach what is written
                if name in ("write", "write_bytes"):
                    real(args[0], args[1][: len(args[1]) // 2], *args[2:], **keys)
                found = error()
                dead = isinstance(found, Killed)
                raise found

            patch.setattr(owner, name, planted)
        yield seen


ERRORS: dict[str, Callable[[], BaseException]] = {
    "killed": Killed,
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "input/output error": lambda: OSError(errno.EIO, "Input/output error"),
}
