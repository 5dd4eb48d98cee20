"""A folder of images: `train/<class>/*.png` and `test/<class>/*.png`, or `train/<domain>/<class>/*.png` and so on."""

from collections.abc import Iterator
from pathlib import Path

from contune.errors import DataError
from contune.stream.read.images import SUFFIXES
from contune.stream.read.rows import BadRow, Place, Row, Split

SPLITS = ("train", "test", "validation")
_NOT_DATA = ("thumbs.db", "desktop.ini")


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has the two sub-folders every image stream needs."""
    return all((folder / split).is_dir() for split in ("train", "test"))


def read_image_folder(folder: Path, *, grouped: bool) -> dict[str, Split]:
    """Every split of the folder, images still encoded; with `grouped`, the first level below a split is the domain.

    A file that is no image is a bad row. Raises DataError for a missing or empty split, for a layout of another depth,
    and for links that lead out of the folder.
    """
    root = folder.resolve()
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if (folder / name).is_dir():
            splits[name] = _read_split(folder / name, root, grouped=grouped)
        elif name != "validation":
            raise DataError(
                f"{folder} has no sub-folder {name!r}; an image folder needs train/<class>/ and test/<class>/ "
                "with images in them"
            )
    return splits


def list_images(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, sorted by name. Raises DataError for anything else in it."""
    paths = list(_entries(folder, folder.resolve()))
    for path in paths:
        reason = _file_reason(path)
        if reason is not None:
            raise DataError(f"{path}: {reason}; remove it, or name the images one by one")
    return paths


def _read_split(folder: Path, root: Path, *, grouped: bool) -> Split:
    rows: list[Row] = []
    bad: list[BadRow] = []
    total = 0
    for path, group, label in _image_paths(folder, root, grouped=grouped):
        place = Place(str(path))
        reason = _file_reason(path)
        if reason is None:
            rows.append(Row(path.read_bytes(), label, group, total, place))
        else:
            bad.append(BadRow(place, reason, "remove it"))
        total += 1
    if total == 0:
        layout = f"{folder}/<domain>/<class>/" if grouped else f"{folder}/<class>/"
        raise DataError(f"{folder} holds no images; put them into {layout}")
    return Split(rows, bad, total, modality="image")


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


def _file_reason(path: Path) -> str | None:
    if not path.is_file():
        return "it is not a regular file"
    if path.suffix.lower() not in SUFFIXES:
        return f"its suffix is none of {', '.join(SUFFIXES)}"
    return None
