"""Where the inputs of tables wait until they are asked for: in memory while they are few, else in a temporary file."""

import os
import tempfile
from array import array
from collections.abc import Sequence
from typing import IO, final, overload

MEMORY_LIMIT = 1 << 20


@final
class Spool(Sequence[bytes]):
    """Runs of bytes by number. Up to `limit` bytes are held in memory; more go to a file that ends with the process.

    The file has no name, so that nothing is left behind by a process that was killed, and is a copy, so that the data's
    own file may change. Numbers take 8 bytes each.

    >>> spool = Spool(limit=4)
    >>> for run in (b"one", b"", b"three"):
    ...     spool.append(run)
    >>> len(spool), spool[0], spool[1], spool[-1]
    (3, b'one', b'', b'three')
    """

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        self._limit = limit
        self._ends = array("q", [0])
        self._pending = bytearray()  # what is not in the file yet: its end
        self._file: IO[bytes] | None = None

    def append(self, data: bytes) -> None:
        """Put one more run of bytes behind the others."""
        self._pending += data
        self._ends.append(self._ends[-1] + len(data))
        if len(self._pending) > self._limit:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="contune-", buffering=0)  # noqa: SIM115
            view = memoryview(self._pending)
            while view:
                view = view[self._file.write(view) :]
            self._pending = bytearray()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> "bytes | list[bytes]":
        if isinstance(at, slice):
            return [self[row] for row in range(len(self))[at]]
        row = range(len(self))[at]
        start, stop = self._ends[row], self._ends[row + 1]
        border = self._ends[-1] - len(self._pending)
        if start >= border:
            return bytes(self._pending[start - border : stop - border])
        assert self._file is not None
        # A place of its own for every read: threads and forked processes share the file.
        return os.pread(self._file.fileno(), stop - start, start)
