"""Files that a configuration names: found, checked and read as bytes."""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from contune.errors import DataError
from contune.stream.config import Files, Paths

GLOB = re.compile(r"[*?\[]")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHUNK = 1 << 16


def paths_by_group(files: Files, base: Path) -> dict[str | None, list[Path]]:
    """The files of every domain, or of None where there are no domains; raises DataError where one is named twice."""
    by_group: dict[str | None, list[Path]] = (
        {group: found_paths(paths, base) for group, paths in files.items()}
        if isinstance(files, dict)
        else {None: found_paths(files, base)}
    )
    named = [path for paths in by_group.values() for path in paths]
    for path in named:
        if named.count(path) > 1:
            raise DataError(f"{path} is named more than once in one split; name every file once")
    return by_group


def found_paths(files: Paths, base: Path) -> list[Path]:
    """The files that a path, a glob or a list of them names, in the order given."""
    found: list[Path] = []
    for text in [files] if isinstance(files, str) else files:
        path = absolute(text, base)
        if not path.exists() and GLOB.search(text):
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if not matches:
                raise DataError(f"no file matches {path}; check the pattern")
            found.extend(matches)
        else:
            found.append(path)
    return found


def absolute(text: str, base: Path) -> Path:
    """The path that a text of the configuration means; relative ones start at `base`."""
    return base / Path(text).expanduser()


def require_file(path: Path, pattern: str) -> None:
    """Raise DataError where there is no such file; `pattern` is what files in a folder of that name would match."""
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path (relative paths start at the configuration's folder)")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a file, a list of files or a glob such as {path}/{pattern}")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file as a stream, unzipped where its name ends in .gz, without a byte order mark.

    What goes wrong while they are read in the block is a DataError.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            zipped = path.name.lower().endswith(".gz")
            stream = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
            if stream.peek(len(BYTE_ORDER_MARK))[: len(BYTE_ORDER_MARK)] == BYTE_ORDER_MARK:
                stream.read(len(BYTE_ORDER_MARK))
            yield cast(IO[bytes], stream)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); write the file again") from error


def content(path: Path) -> bytes:
    """All bytes that `opened` gives."""
    with opened(path) as stream:
        return stream.read()


def first_byte(path: Path) -> bytes:
    """The first byte of a file that is no space; none where there is none."""
    with opened(path) as stream:
        while chunk := stream.read(_CHUNK):
            if chunk.strip():
                return chunk.lstrip()[:1]
    return b""
