"""Blocks of bytes under the name of their hash: written once, shared by all who hold the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import final

from contune._files import sync_file, sync_folder, write_bytes
from contune.errors import RunDirectoryError
from contune.living.store.sealed import sha256


@final
class Objects:
    """A folder of blocks; what is read is checked against its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fresh: set[Path] = set()

    def path(self, name: str) -> Path:
        """Where a block is."""
        return self.folder / name[:2] / name[2:]

    def put(self, data: bytes) -> str:
        """Keep a block; one that is there and whole is not written again. `flush` before anything names it."""
        name = sha256(data)
        path = self.path(name)
        if not (path.is_file() and sha256(path.read_bytes()) == name):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data, flush=False)
            self._fresh.add(path)
        return name

    def flush(self) -> None:
        """Bring all new blocks to the disk: together, which costs far less than one by one."""
        for path in sorted(self._fresh):
            sync_file(path)
        for folder in sorted({path.parent for path in self._fresh}):
            sync_folder(folder)
        if self._fresh:
            sync_folder(self.folder)
        self._fresh.clear()

    def get(self, name: str) -> bytes:
        """The block of that name; raises RunDirectoryError where it is missing or not what it was."""
        try:
            data = self.path(name).read_bytes()
        except OSError as error:
            raise RunDirectoryError(f"object {name[:12]} ({self.path(name)}) cannot be read: {error}") from error
        if sha256(data) != name:
            raise RunDirectoryError(f"object {name[:12]} ({self.path(name)}) is damaged: it does not match its name")
        return data

    def names(self) -> Iterator[str]:
        """All blocks there are, in order; files that a killed process was still writing are none."""
        for path in sorted(self.folder.glob("??/*")):
            if not path.name.startswith("."):
                yield path.parent.name + path.name

    def size(self, name: str) -> int:
        """Bytes of a block."""
        return self.path(name).stat().st_size

    def remove(self, name: str) -> None:
        """Drop a block that nobody refers to."""
        self.path(name).unlink(missing_ok=True)
