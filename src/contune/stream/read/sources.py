"""From the `data` key to rows: finds the files, the folder, the hub set or the built-in that it means, and reads it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from contune.errors import ConfigError, DataError, did_you_mean
from contune.stream.builtin.registry import BUILTIN_STREAMS
from contune.stream.config import DataConfig, Files, StreamConfig
from contune.stream.inputs import DecodedCache
from contune.stream.read.columns import Columns, split_from_table
from contune.stream.read.files import absolute, paths_by_group
from contune.stream.read.folder import is_image_folder, read_image_folder
from contune.stream.read.hub import HubError, read_hub_splits
from contune.stream.read.rows import Split, join_splits
from contune.stream.read.tables import SUFFIXES, read_table

SPLITS = ("train", "test", "validation")
COLUMN_KEYS = ("text", "image", "input", "label")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, eq=False)
class Source:
    """Everything that was read: rows by split, the name to show, and what the source itself settles or notes."""

    name: str
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    tasks: int | None = None


def read_source(config: StreamConfig, base: Path) -> Source:
    """Read what `config.data` names; relative paths start at `base`. Bad rows come back in the splits, not as errors.

    Where `config.validation` asks for a share of training data, a validation split that the data brings is left
    unused, with a note.
    """
    return without_unused(_read(config, base, DecodedCache(config.decoded_mb)), config)


def without_unused(source: Source, config: StreamConfig) -> Source:
    """The source without its validation data where the configuration asks for a share of the training data."""
    if config.validation == 0 or "validation" not in source.splits:
        return source
    note = f"the validation data of {source.name} is not used, because stream.validation asks for a share of training"
    splits = {name: split for name, split in source.splits.items() if name != "validation"}
    return replace(source, splits=splits, notes=(*source.notes, note))


def _read(config: StreamConfig, base: Path, cache: DecodedCache) -> Source:
    if isinstance(config.data, str):
        return _read_named(config, config.data, base, cache)
    data = config.data
    if data.folder is not None:
        folder = absolute(data.folder, base)
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; check data.folder")
        return _read_folder(config, data, data.folder, folder, cache)
    if data.hub is not None:
        return _read_hub(config, data, data.hub, cache)
    return _read_files(config, data, _shown(data.train), base, cache)


def _read_named(config: StreamConfig, name: str, base: Path, cache: DecodedCache) -> Source:
    if name in BUILTIN_STREAMS:
        if config.grouped:
            raise ConfigError(
                f"the built-in stream {name!r} has no domains; "
                "use kind class-incremental or task-incremental, without by"
            )
        builtin = BUILTIN_STREAMS[name]
        splits, notes = builtin.read()
        return Source(name, splits, notes, builtin.tasks)
    path = absolute(name, base)
    if path.is_dir():
        return _read_folder(config, DataConfig(folder=name), name, path, cache)
    if path.exists():
        raise DataError(
            f"stream.data is the one file {path}; a stream needs a test file too, give data: {{train: …, test: …}}"
        )
    if not _HUB_ID.fullmatch(name) or name.lower().endswith(SUFFIXES):
        raise DataError(f"stream.data is {name!r}, but there is no file or folder {path}; check the path")
    try:
        return _read_hub(config, DataConfig(hub=name), name, cache)
    except HubError as error:
        raise DataError(
            f"stream.data is {name!r}, which is no built-in stream ({did_you_mean(name, BUILTIN_STREAMS)}) and no file "
            f"or folder under {base}; taken as a hub id: {error}"
        ) from error


def _read_folder(config: StreamConfig, data: DataConfig, name: str, folder: Path, cache: DecodedCache) -> Source:
    """A folder of images by class, or one with a train, a test and perhaps a validation file."""
    if is_image_folder(folder):
        columns = [key for key in COLUMN_KEYS if getattr(data, key) is not None]
        if columns:
            raise ConfigError(f"data.{columns[0]} names a column, but {folder} is a folder of images; leave it out")
        return Source(name, read_image_folder(folder, grouped=config.grouped, cache=cache))
    files: dict[str, str] = {}
    for split in SPLITS:
        found = [folder / (split + suffix) for suffix in SUFFIXES if (folder / (split + suffix)).is_file()]
        if len(found) > 1:
            raise DataError(
                f"{folder} has both {found[0].name} and {found[1].name}; name the right one with data.{split}"
            )
        if not found and split != "validation":
            raise DataError(
                f"{folder} is no folder of images (train/<class>/, test/<class>/) and has no {split} file "
                f"({split}{SUFFIXES[0]}, …); give one of both, or name the files with data.train and data.test"
            )
        if found:
            files[split] = str(found[0])
    columns_only = data.model_dump(include=set(COLUMN_KEYS))
    return _read_files(config, DataConfig.model_validate(files | columns_only), name, folder, cache)


def _read_files(config: StreamConfig, data: DataConfig, name: str, base: Path, cache: DecodedCache) -> Source:
    if not isinstance(data.train, dict):
        require_by(config, name)
    columns = Columns(data.input_columns, data.label, config.by, config.objective)
    splits: dict[str, Split] = {}
    used: dict[str, set[Path]] = {}
    for split, files in (("train", data.train), ("test", data.test), ("validation", data.validation)):
        if files is not None:
            paths = paths_by_group(files, base)
            splits[split] = _read_split(paths, columns, cache)
            used[split] = {path.resolve() for group in paths.values() for path in group}
    notes = tuple(
        f"{path} is read as training and as test data, so accuracy on it is accuracy on training data"
        for path in sorted(used["train"] & used["test"])
    )
    return Source(name, splits, notes)


def _read_split(paths: dict[str | None, list[Path]], columns: Columns, cache: DecodedCache) -> Split:
    groups: list[Split] = []
    first_id = 0
    for group, files in paths.items():
        parts: list[Split] = []
        for path in files:
            table = read_table(path)
            parts.append(split_from_table(table, columns, first_id=first_id, group=group, cache=cache))
            first_id += parts[-1].total
        groups.append(join_splits(parts))
    return join_splits(groups, same_names=False)


def _read_hub(config: StreamConfig, data: DataConfig, name: str, cache: DecodedCache) -> Source:
    require_by(config, name)
    # The configuration admits only single names of splits beside a hub id.
    tables = read_hub_splits(name, data.name, {split: cast(str | None, getattr(data, split)) for split in SPLITS})
    columns = Columns(data.input_columns, data.label, config.by, config.objective)
    return Source(name, {split: split_from_table(table, columns, cache=cache) for split, table in tables.items()})


def require_by(config: StreamConfig, name: str) -> None:
    """Raise ConfigError where tasks are domains and no column says which."""
    if config.grouped and config.by is None:
        raise ConfigError(
            f"kind is {config.kind}, but nothing says which domain a row of {name} is from; "
            "name the column with stream.by"
        )


def _shown(files: Files | None) -> str:
    if isinstance(files, dict):
        return ", ".join(files)
    return files if isinstance(files, str) else ", ".join(files or ())
