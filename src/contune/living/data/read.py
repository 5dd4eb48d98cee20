"""From whatever holds an update's examples to one task: a file, a folder, rows in Python, or a task itself."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from contune.errors import ConfigError, DataError, did_you_mean
from contune.living.config import LivingConfig
from contune.run.config import explain
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.python import stream_of
from contune.stream.task import Examples, Stream, Task

NO_TEST = "is read as training and as test data"
UPDATE = "contune update"  # a column that says that all rows came together


def read_update(
    data: Any, test: Any, name: str, config: LivingConfig, labels: Mapping[str, str]
) -> tuple[Task, bool, tuple[str, ...]]:
    """The task, whether it brought examples to test with, and notes about rows; `labels` renames its classes.

    Raises DataError for the first bad row, before anything is learned.
    """
    task, brought, notes = _read(data, test, name, config)
    unknown = sorted(set(labels) - set(task.class_names))
    if unknown:
        raise ConfigError(
            f"labels renames {unknown[0]!r}, which is no class of {name!r}; {did_you_mean(unknown[0], task.class_names)}"
        )
    names = tuple(dict.fromkeys(labels.get(one, one) for one in task.class_names))
    return (renumbered(task, names, labels) if labels else task), brought, notes


def _read(data: Any, test: Any, name: str, config: LivingConfig) -> tuple[Task, bool, tuple[str, ...]]:
    if isinstance(data, Stream):
        if len(data.tasks) != 1:
            raise DataError(f"the stream {data.name} has {len(data.tasks)} tasks; give one of stream.tasks at a time")
        data = data.tasks[0]
    if isinstance(data, Task):
        own = data.test if len(data.test) else None
        given = own if test is None else as_names(one_task(test, name, config)[0], data)
        return replace(data, name=name, test=given or data.train.take([]), validation=None), given is not None, ()
    task, notes = one_task(data, name, config)
    if test is None:
        brought = isinstance(data, str | Path) and Path(data).is_dir()
        return (task if brought else replace(task, test=task.train.take([]))), brought, notes
    other, more = one_task(test, name, config)
    names = tuple(dict.fromkeys((*task.class_names, *other.class_names)))
    task, other = renumbered(task, names), renumbered(other, names)
    return replace(task, test=other.train), True, (*notes, *more)


def one_task(data: Any, name: str, config: LivingConfig) -> tuple[Task, tuple[str, ...]]:
    """All rows of a source as the training examples of one task."""
    if isinstance(data, Task):
        return data, ()
    stream = _from_path(Path(data), name, config) if isinstance(data, str | Path) else _from_python(data, name, config)
    notes = tuple(note for note in stream.notes if NO_TEST not in note)
    return replace(stream.tasks[0], name=name, validation=None), notes


def _from_path(path: Path, name: str, config: LivingConfig) -> Stream:
    path = path.expanduser().absolute()
    keys: dict[str, Any] = {"objective": config.objective, "language": config.language, "order_seed": None}
    if path.is_dir():
        return load_stream(StreamConfig(data=str(path), tasks=1, **keys))
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    data = config.data(train={name: str(path)}, test={name: str(path)})
    return load_stream(StreamConfig(data=data, kind="domain-incremental", **keys))


def _from_python(data: Any, name: str, config: LivingConfig) -> Stream:
    keys: dict[str, Any] = {**config.columns.model_dump(exclude_none=True), "objective": config.objective}
    marked = with_update(data, name) if config.objective != "classify" else None
    if marked is not None:
        data = marked
        keys |= {"by": UPDATE, "kind": "domain-incremental"}
    else:
        keys |= {"tasks": 1}
    try:
        return stream_of(data, data, name=name, order_seed=None, **keys)
    except ValidationError as error:
        raise ConfigError(f"the data of {name}: {explain(error, StreamConfig)}") from error


def with_update(data: Any, name: str) -> Any:
    """Rows that have columns with one more, in which all are alike; None where there are no columns."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return data.assign(**{UPDATE: name})
    rows: Any = (
        data if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, tuple) else ()
    )
    if len(rows) and isinstance(rows[0], Mapping):
        return [{**row, UPDATE: name} for row in rows]
    return None


def as_names(task: Task, like: Task) -> Examples:
    """A task's examples with their labels as positions in the names of another task, which must have them all."""
    names = tuple(dict.fromkeys((*like.class_names, *task.class_names)))
    if names != like.class_names:
        raise DataError(
            f"the test data has the class {names[len(like.class_names)]!r}, which the task {like.name!r} does not name; "
            "add it to its class_names"
        )
    return renumbered(task, names).train


def renumbered(task: Task, names: tuple[str, ...], renamed: Mapping[str, str] | None = None) -> Task:
    """The task with its labels as positions in other names, some of which are called otherwise there."""
    called = renamed or {}
    places = np.array([names.index(called.get(name, name)) for name in task.class_names], dtype=np.int64)
    return Task(task.name, names, moved(task.train, places), moved(task.test, places))


def moved(examples: Examples, places: np.ndarray[Any, np.dtype[np.int64]]) -> Examples:
    """Examples whose labels and targets are told by other positions."""
    targets = None if examples.targets is None else examples.targets.mapped(places)
    labels = places[examples.labels] if len(places) else examples.labels
    return replace(examples, labels=labels, targets=targets)
