"""A folder of files that are one input each, such as images.

`train/<class>/*.png` and `test/<class>/*.png`, or `train/<domain>/<class>/*.png` and so on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final, overload

from contune.errors import DataError
from contune.stream.inputs import Decoded, DecodedCache
from contune.stream.modality import Modality, file_modality, find_modality
from contune.stream.read.rows import BadRow, Place, Row, Split

SPLITS = ("train", "test", "validation")
_NOT_DATA = ("thumbs.db", "desktop.ini")


@final
@dataclass(frozen=True, eq=False)
class Files(Sequence[bytes]):
    """The bytes of files, read when asked; a file that has changed since it was first looked at is refused."""

    paths: list[str] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)  # bytes and time of the last change

    def append(self, path: Path) -> int:
        """One more file; returns its number."""
        found = path.stat()
        self.paths.append(str(path))
        self.stamps.append((found.st_size, found.st_mtime_ns))
        return len(self.paths) - 1

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> "bytes | list[bytes]":
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        path = Path(self.paths[at])
        try:
            found = path.stat()
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read any more ({error.strerror}); restore it and begin again") from error
        if (found.st_size, found.st_mtime_ns) != self.stamps[at]:
            raise DataError(f"{path} has changed since the stream was read; restore it, or read the stream again")
        return data

    def place(self, at: int) -> Place:
        """Where a row is."""
        return Place(self.paths[at])


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has the two sub-folders every image stream needs."""
    return all((folder / split).is_dir() for split in ("train", "test"))


def read_image_folder(folder: Path, *, grouped: bool, cache: DecodedCache | None = None) -> dict[str, Split]:
    """Every split of the folder, its files unread; with `grouped`, the first level below a split is the domain.

    A file that is no image is a bad row. Raises DataError for a missing or empty split, for a layout of another depth,
    and for links that lead out of the folder.
    """
    root = folder.resolve()
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if (folder / name).is_dir():
            splits[name] = _read_split(folder / name, root, grouped=grouped, cache=cache)
        elif name != "validation":
            raise DataError(
                f"{folder} has no sub-folder {name!r}; an image folder needs train/<class>/ and test/<class>/ "
                "with images in them"
            )
    return splits


def list_files(folder: Path) -> list[Path]:
    """The files that lie directly in a folder, sorted by name, one input each. Raises DataError for anything else in it."""
    paths = list(_entries(folder, folder.resolve()))
    modality = _modality_of(paths)
    for path in paths:
        reason = _file_reason(path, modality)
        if reason is not None:
            raise DataError(f"{path}: {reason}; remove it, or name the {modality.noun} one by one")
    return paths


def _modality_of(paths: Sequence[Path]) -> Modality:
    """What the files hold, by the first suffix that is known; images where none is."""
    found = (file_modality(path.name) for path in paths)
    return next((modality for modality in found if modality is not None), find_modality("image"))


def _read_split(folder: Path, root: Path, *, grouped: bool, cache: DecodedCache | None) -> Split:
    found = list(_image_paths(folder, root, grouped=grouped))
    if not found:
        layout = f"{folder}/<domain>/<class>/" if grouped else f"{folder}/<class>/"
        raise DataError(f"{folder} holds no images; put them into {layout}")
    modality = _modality_of([path for path, _, _ in found])
    files = Files()
    inputs = Decoded(files, modality, cache if modality.costly else None)
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, (path, group, label) in enumerate(found):
        reason = _file_reason(path, modality)
        if reason is None:
            rows.append(Row(inputs, files.append(path), label, group, number, files.place))
        else:
            bad.append(BadRow(Place(str(path)), reason, "remove it"))
    return Split(rows, bad, len(found), modality=modality.name)


def _image_paths(folder: Path, root: Path, *, grouped: bool) -> Iterator[tuple[Path, str | None, str]]:
    _require_inside(folder, root)
    for top in _folders(folder, root, "a domain's folder" if grouped else "a class's folder"):
        for class_folder in _folders(top, root, "a class's folder") if grouped else (top,):
            for path in _entries(class_folder, root):
                if path.is_dir():
                    hint = "" if grouped else "; if its parent is a domain, say so with stream.by: folder"
                    raise DataError(
                        f"{path} is a folder inside the folder of one class; only images belong there{hint}"
                    )
                yield path, top.name if grouped else None, class_folder.name


def _folders(folder: Path, root: Path, what: str) -> Iterator[Path]:
    for path in _entries(folder, root):
        if not path.is_dir():
            raise DataError(f"{path} lies outside {what}; move it into one, or remove it")
        yield path


def _entries(folder: Path, root: Path) -> Iterator[Path]:
    """What lies in the folder, sorted by name; hidden files and what file browsers leave behind are not data."""
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not path.name.startswith(".") and path.name.lower() not in _NOT_DATA:
            _require_inside(path, root)
            yield path


def _require_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise DataError(
            f"{path} is a link to {path.resolve()}, outside the image folder {root}; copy the data into the folder"
        )


def _file_reason(path: Path, modality: Modality) -> str | None:
    if not path.is_file():
        return "it is not a regular file"
    if not path.name.lower().endswith(modality.suffixes):
        return f"its suffix is none of {', '.join(modality.suffixes)}"
    return None
