"""Streams whose answers are several labels, tags of words, or numbers: from checked rows to tasks.

Class-incremental: names are permuted and cut into tasks as classes are. A row belongs to every task of which it has a
label (or an entity), and there it has that task's alone: what else it may hold, nobody has annotated. Domain-incremental:
each domain is a task, with all its rows and names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from contune.errors import ConfigError, DataError
from contune.stream.config import StreamConfig
from contune.stream.order import arrival_order, cut, split_rows, task_sizes
from contune.stream.plan import few
from contune.stream.read.rows import Row, as_inputs
from contune.stream.read.sources import Source
from contune.stream.task import Examples, Stream, Targets, Task

OUTSIDE = "O"


@final
@dataclass(frozen=True)
class Part:
    """One task before its examples are collected: the names it asks for, and which rows are its own."""

    name: str
    class_names: tuple[str, ...]
    owns: Callable[[Row], bool]


def target_stream(source: Source, config: StreamConfig, groups: Sequence[str], notes: Sequence[str]) -> Stream:
    """The stream of checked rows with their targets; `groups` are the domains in declared order, where there are any."""
    train = source.splits["train"].rows
    parts = by_groups(groups, train, config) if config.grouped else by_names(train, config)
    tasks = tuple(task_of(part, source, config, place) for place, part in enumerate(parts))
    known = {name for task in tasks for name in task.class_names}
    unknown = sorted({name for row in source.splits["test"].rows for name in names_of(row, config)} - known)
    said = [f"no training example has {few(unknown)}, so that tests are not asked about it"] if unknown else []
    return Stream(source.name, config.kind, tasks, config.order_seed, (*notes, *said), (), config.objective)


def names_of(row: Row, config: StreamConfig) -> tuple[str, ...]:
    """The names that a row's answer holds; none where answers are numbers."""
    return () if config.objective == "regress" else tuple(row.target)


def type_of(tag: str) -> str:
    """What a tag is about: PER of B-PER, the tag itself where it has no prefix.

    >>> type_of("B-PER"), type_of("NOUN")
    ('PER', 'NOUN')
    """
    prefix, dash, kind = tag.partition("-")
    return kind if dash and len(prefix) == 1 else tag


def by_names(train: Sequence[Row], config: StreamConfig) -> list[Part]:
    """Tasks by labels, or by the types of tags."""
    if config.objective == "regress":
        raise ConfigError("numbers come from domain to domain; give by, the column with the domain, or files by domain")
    tags = config.objective == "tag"
    present = sorted({name for row in train for name in row.target if not (tags and name == OUTSIDE)})
    kinds = list(config.classes or sorted({type_of(name) for name in present} if tags else present))
    missing = [kind for kind in kinds if not any((type_of(name) if tags else name) == kind for name in present)]
    if missing:
        raise ConfigError(f"stream.classes names {missing[0]!r}, but no training example has it; remove it")
    order = arrival_order(len(kinds), config.order_seed)
    parts = []
    for number, piece in enumerate(cut(order, task_sizes(len(kinds), config.tasks, config.sizes)), 1):
        own = [kinds[at] for at in piece]
        names = [name for kind in own for name in present if (type_of(name) if tags else name) == kind]
        parts.append(Part(f"task {number}", tuple([OUTSIDE, *names] if tags else names), _has(frozenset(names))))
    return parts


def by_groups(groups: Sequence[str], train: Sequence[Row], config: StreamConfig) -> list[Part]:
    """Tasks by domain."""
    if config.tasks is not None and config.tasks != len(groups):
        raise ConfigError(
            f"stream.tasks is {config.tasks}, but the data has {len(groups)} domains and every domain is one task; "
            "give that number or leave tasks out"
        )
    parts = []
    for at in arrival_order(len(groups), config.order_seed):
        group = groups[at]
        if config.objective == "regress":
            names: list[str] = ["value"]
        else:
            names = sorted({name for row in train if row.group == group for name in row.target})
        parts.append(Part(group, tuple(names), _in_group(group)))
    return parts


def _has(names: frozenset[str]) -> Callable[[Row], bool]:
    return lambda row: not names.isdisjoint(row.target)


def _in_group(group: str) -> Callable[[Row], bool]:
    return lambda row: row.group == group


def task_of(part: Part, source: Source, config: StreamConfig, place: int) -> Task:
    """A part with its examples; `per_class` is the most training examples of a task, `validation` the share held out."""
    splits = {name: [row for row in split.rows if part.owns(row)] for name, split in source.splits.items()}
    for name in ("train", "test"):
        if not splits[name]:
            raise DataError(f"{part.name} ({few(part.class_names)}) has no {name} example; add some")
    kept, held = split_rows(
        len(splits["train"]), share=config.validation, keep=config.per_class, seed=(config.seed, place)
    )
    train, validation = ([splits["train"][at] for at in rows.tolist()] for rows in (kept, held))
    validation += splits.get("validation", [])
    made = {
        "train": examples_of(train, part, source, config),
        "test": examples_of(splits["test"], part, source, config),
        "validation": examples_of(validation, part, source, config) if validation else None,
    }
    return Task(part.name, part.class_names, **made)  # type: ignore[arg-type]


def examples_of(rows: Sequence[Row], part: Part, source: Source, config: StreamConfig) -> Examples:
    """The rows in source order, with what the part asks of them as targets."""
    ordered = sorted(rows, key=lambda row: row.id)
    place: Mapping[str, int] = {name: at for at, name in enumerate(part.class_names)}
    if config.objective == "regress":
        targets = Targets.of_rows([[row.target] for row in ordered], numbers=True)
    elif config.objective == "tag":
        targets = Targets.of_rows([[place.get(tag, place.get(OUTSIDE, 0)) for tag in row.target] for row in ordered])
    else:
        targets = Targets.of_rows([[place[name] for name in row.target if name in place] for row in ordered])
    ids = np.array([row.id for row in ordered], dtype=np.int64)
    modality = source.splits["train"].modality
    return Examples(as_inputs(ordered), np.zeros(len(ordered), dtype=np.int64), ids, modality, targets)


def unequal_tags(rows: Sequence[Row]) -> tuple[Row, int, int] | None:
    """The first row whose words and tags are not as many, with both numbers."""
    for row in rows:
        words = len(row.inputs[row.at])
        if words != len(row.target):
            return row, words, len(row.target)
    return None
