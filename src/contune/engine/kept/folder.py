"""Kept results on disk: one file a key, checked as a whole before anything in it is used."""

import hashlib
import json
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from contune._files import atomic_path
from contune.errors import ContuneError

LAYOUT = "2"  # of the files; raise it where what they hold is computed otherwise than before
_CHUNK = 2**20


class Unfit(ContuneError):
    """A file that cannot be used; its text says why."""


@final
class CacheFolder:
    """A folder of float32 matrices, shared by runs. A file that is not whole, or not of these libraries, is never used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[str, tuple[int, int, int]] = {}  # files whose checksum this process has seen to be right

    def path(self, key: str) -> Path:
        """Where the result of this key lies, or would."""
        return self.folder / f"{key}.safetensors"

    def read(self, key: str, shape: tuple[int, int]) -> Tensor | None:
        """The matrix mapped from its file, so that rows come into memory when they are looked at; None: no such file.

        Raises `Unfit` where the file is damaged, of another shape, or made by other versions of the libraries.
        """
        path = self.path(key)
        try:
            state = path.stat()
        except FileNotFoundError:
            return None
        mark = (state.st_ino, state.st_size, state.st_mtime_ns)
        try:
            if self._whole.get(key) != mark:
                _require_whole(path)
            with safe_open(path, "pt") as file:
                result: Tensor = file.get_tensor("result")
        except Unfit:
            raise
        except Exception as error:  # the library that reads it has no common base for what it raises
            raise Unfit(f"{path.name}: it is no whole safetensors file ({error})") from error
        if tuple(result.shape) != shape:
            raise Unfit(f"{path.name}: it has shape {tuple(result.shape)} in place of {shape}")
        self._whole[key] = mark
        return result

    def write(self, key: str, values: Tensor) -> None:
        """Keep float32 values under this key."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = values.detach().contiguous()
        about = {"made_by": made_by(), "sha256": hashlib.sha256(values.numpy().data).hexdigest()}
        with atomic_path(self.path(key)) as temporary:
            save_file({"result": values}, temporary, metadata=about)


@cache
def made_by() -> str:
    """What a result's last bits depend on beside its key: the layout here, and the libraries that compute."""
    return f"layout {LAYOUT}, torch {version('torch')}, transformers {version('transformers')}"


def _require_whole(path: Path) -> None:
    """Compare the checksum of a file's values with the one in its header; the file is read in pieces, not mapped."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= os.fstat(file.fileno()).st_size - 8:
            raise Unfit(f"{path.name}: it is cut short")
        header = json.loads(file.read(length))
        about, entry = header.get("__metadata__", {}), header.get("result", {})
        if entry.get("dtype") != "F32" or about.get("made_by") != made_by():
            raise Unfit(f"{path.name}: it was made by {about.get('made_by', 'another version of contune')}")
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != about.get("sha256"):
        raise Unfit(f"{path.name}: its checksum is wrong")
