"""From configuration to a stream, with everything checked before any training.

```text
read      files, folder, hub set or built-in to rows          bad rows are collected, with their place
decode    every image once                                    unreadable ones are bad rows
name      classes and groups, in declared or sorted order     labels that training never has are bad rows
plan      the permuted order, cut into tasks
collect   examples into tasks; validation out of training
```
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from contune.errors import ConfigError, DataError
from contune.stream.chat.language import load_language_stream
from contune.stream.config import StreamConfig
from contune.stream.modality import find_modality
from contune.stream.plan import collect_tasks, few, plan_by_classes, plan_by_groups, untested_classes
from contune.stream.read.answers import ANSWERS
from contune.stream.read.rows import BadRow, Row, Split, settle_bad_rows
from contune.stream.read.sources import Source, read_source
from contune.stream.read.validate import decode_rows
from contune.stream.targets import target_stream, unequal_tags
from contune.stream.task import Stream


def load_stream(config: StreamConfig, *, base: Path | None = None) -> Stream:
    """Read, check and cut the data that `config` describes; relative paths start at `base` (or the current folder).

    The class order is `numpy.random.default_rng(order_seed).permutation(n_classes)` over the declared or sorted label
    names, cut into consecutive tasks; groups (domains) are permuted by the same law. Declared are `classes`, or else
    the class labels of a Parquet or hub set; labels that are all whole numbers sort as numbers. Ids are row numbers
    from 0 over a split's files, bad rows counted. Raises DataError for the first bad file, column or row, and
    ConfigError where the configuration and the data do not fit.

    >>> stream = load_stream(StreamConfig(data="digits"))
    >>> [task.class_names for task in stream.tasks]
    [('4', '6'), ('2', '7'), ('3', '5'), ('9', '0'), ('8', '1')]
    """
    if config.objective == "write":
        return load_language_stream(config, (base or Path.cwd()).absolute())
    return stream_from(read_source(config, (base or Path.cwd()).absolute()), config)


def stream_from(source: Source, config: StreamConfig) -> Stream:
    """Check what was read and cut it into tasks, as `load_stream` says."""
    source = _decoded(source)
    train = source.splits["train"]
    bad = [row for split in source.splits.values() for row in split.bad]
    notes = [*source.notes, *settle_bad_rows(bad, skip_bad=config.skip_bad)]
    _require_rows(source)
    if config.objective in ANSWERS:
        _require_tags(source, config)
        return target_stream(source, config, _group_names(config, source.splits) if config.grouped else [], notes)
    classes, class_notes = _class_names(config, train)
    groups = _group_names(config, source.splits) if config.grouped else []
    unseen = _unseen_labels(source.splits, grouped=config.grouped)
    notes += [*class_notes, *settle_bad_rows(unseen, skip_bad=config.skip_bad)]
    if config.grouped:
        plans = plan_by_groups(groups, classes, train.rows, config)
    else:
        tasks = config.tasks if config.tasks or config.sizes else source.tasks
        plans = plan_by_classes(classes, tasks=tasks, sizes=config.sizes, order_seed=config.order_seed)
    places = product(enumerate(groups or [None]), enumerate(classes))
    seeds = {(group, name): (group_at, class_at) for (group_at, group), (class_at, name) in places}
    rows = _without(source.splits, unseen)
    collected = collect_tasks(plans, rows, train.modality, seeds=seeds, config=config)
    notes += untested_classes(collected)
    return Stream(source.name, config.kind, collected, config.order_seed, tuple(notes))


def _decoded(source: Source) -> Source:
    expected = source.splits["train"].modality
    splits = {}
    for name, split in source.splits.items():
        if split.modality != expected:
            raise DataError(
                f"the training data of {source.name} holds {find_modality(expected).noun} but its {name} data holds "
                f"{find_modality(split.modality).noun}; give the same kind"
            )
        rows, bad = decode_rows(split.rows, find_modality(expected))
        splits[name] = replace(split, rows=rows, bad=[*split.bad, *bad])
    return replace(source, splits=splits)


def _require_tags(source: Source, config: StreamConfig) -> None:
    """Every word must have a tag."""
    for split in source.splits.values() if config.objective == "tag" else ():
        unequal = unequal_tags(split.rows)
        if unequal is not None:
            row, words, tags = unequal
            raise DataError(f"{row.place}: the row has {words} words and {tags} tags; give one tag for every word")


def _require_rows(source: Source) -> None:
    for name, split in source.splits.items():
        if not split.rows:
            raise DataError(f"the {name} data of {source.name} has no usable row; give at least one")


def _class_names(config: StreamConfig, train: Split) -> tuple[list[str], list[str]]:
    """Every class that training has, in declared or sorted order, and notes about declared ones it lacks."""
    present = {row.label for row in train.rows}
    if config.classes is not None:
        _require_declared(train.rows, [row.label for row in train.rows], "label", "classes", config.classes)
        return list(config.classes), []
    if train.names is None:
        return sorted(present, key=int) if train.numeric else sorted(present), []
    disabled = [name for name in train.names if name not in present]
    note = f"{len(disabled)} of {len(train.names)} declared classes have no training example and are left out: "
    return [name for name in train.names if name in present], [note + few(disabled)] if disabled else []


def _group_names(config: StreamConfig, splits: dict[str, Split]) -> list[str]:
    """Every group that training has, in declared or sorted order; no other split may have another one."""
    train = splits["train"]
    present = {str(row.group) for row in train.rows}
    if config.domains is not None:
        _require_declared(train.rows, [str(row.group) for row in train.rows], "domain", "domains", config.domains)
        names = list(config.domains)
    else:
        names = [name for name in train.group_names or sorted(present) if name in present]
    for name, split in splits.items():
        unknown = next((row for row in split.rows if row.group not in present), None)
        if unknown is not None:
            raise DataError(
                f"{unknown.place}: the domain {unknown.group!r} of this {name} row never occurs in training; "
                f"training has {few(names)}"
            )
    return names


def _require_declared(rows: Sequence[Row], found: Sequence[str], what: str, key: str, declared: Sequence[str]) -> None:
    """Every name found must be declared, and the other way round."""
    allowed = set(declared)
    for row, name in zip(rows, found, strict=True):
        if name not in allowed:
            raise DataError(
                f"{row.place}: the {what} {name!r} is not in stream.{key}; list every one there, or leave {key} out"
            )
    disabled = [name for name in declared if name not in set(found)]
    if disabled:
        raise ConfigError(f"stream.{key} names {disabled[0]!r}, but no training example has that {what}; remove it")


def _unseen_labels(splits: dict[str, Split], *, grouped: bool) -> list[BadRow]:
    """Rows of test and validation whose label training never has (within the row's group, if there are groups)."""
    seen = {(row.group, row.label) for row in splits["train"].rows}
    where = "in the training data of its domain" if grouped else "in training"
    return [
        BadRow(
            row.place,
            f"the label {row.label!r} never occurs {where}",
            f"add training examples of it, or remove the row from {name}",
        )
        for name, split in splits.items()
        for row in split.rows
        if (row.group, row.label) not in seen
    ]


def _without(splits: dict[str, Split], bad: Sequence[BadRow]) -> dict[str, Sequence[Row]]:
    left_out = {row.place for row in bad}
    return {name: [row for row in split.rows if row.place not in left_out] for name, split in splits.items()}
