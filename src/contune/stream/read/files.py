"""Files that a configuration names: found, checked and read as bytes."""

import gzip
import re
import zlib
from pathlib import Path

from contune.errors import DataError
from contune.stream.config import Files, Paths

GLOB = re.compile(r"[*?\[]")


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


def content(path: Path) -> bytes:
    """The bytes of a file, unzipped where its name ends in .gz, without a byte order mark."""
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); write the file again") from error
    return data.removeprefix(b"\xef\xbb\xbf")
