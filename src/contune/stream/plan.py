"""From checked rows to tasks: which classes come when, and which examples go where. Pure functions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contune.errors import ConfigError, DataError
from contune.stream.config import StreamConfig
from contune.stream.order import arrival_order, cut, split_rows, task_sizes
from contune.stream.read.rows import Row, as_inputs
from contune.stream.task import Examples, Task

RowsByClass = dict[tuple[str | None, str], list[Row]]


@dataclass(frozen=True)
class TaskPlan:
    """One task before its examples are collected: its classes in order and, for groups, which group it is."""

    name: str
    class_names: tuple[str, ...]
    group: str | None = None


def plan_by_classes(
    classes: Sequence[str], *, tasks: int | None, sizes: Sequence[int] | None, order_seed: int | None
) -> list[TaskPlan]:
    """Cut the permuted class order into tasks.

    >>> [plan.class_names for plan in plan_by_classes("abcde", tasks=2, sizes=None, order_seed=0)]
    [('c', 'e', 'd'), ('a', 'b')]
    """
    pieces = cut(arrival_order(len(classes), order_seed), task_sizes(len(classes), tasks, sizes))
    return [TaskPlan(f"task {number}", tuple(classes[at] for at in piece)) for number, piece in enumerate(pieces, 1)]


def plan_by_groups(
    groups: Sequence[str], classes: Sequence[str], train: Sequence[Row], config: StreamConfig
) -> list[TaskPlan]:
    """One task per group, in permuted order, with the classes that its training rows have.

    Raises ConfigError where `tasks` says another number, or where a class would come twice in a class-incremental
    stream.
    """
    if config.tasks is not None and config.tasks != len(groups):
        raise ConfigError(
            f"stream.tasks is {config.tasks}, but the data has {len(groups)} domains and every domain is one task; "
            "give that number or leave tasks out"
        )
    occurring = {(row.group, row.label) for row in train}
    ordered = [groups[at] for at in arrival_order(len(groups), config.order_seed)]
    plans = [TaskPlan(group, tuple(name for name in classes if (group, name) in occurring), group) for group in ordered]
    if config.kind == "class-incremental":
        _require_disjoint(plans)
    return plans


def _require_disjoint(plans: Sequence[TaskPlan]) -> None:
    owner: dict[str, str] = {}
    for plan in plans:
        for name in plan.class_names:
            if name in owner:
                raise ConfigError(
                    f"class {name!r} occurs in the domains {owner[name]!r} and {plan.name!r}, but kind is "
                    "class-incremental, where every class comes once; use domain-incremental or task-incremental"
                )
            owner[name] = plan.name


def collect_tasks(
    plans: Sequence[TaskPlan],
    rows: dict[str, Sequence[Row]],
    modality: str,
    *,
    seeds: dict[tuple[str | None, str], tuple[int, int]],
    config: StreamConfig,
) -> tuple[Task, ...]:
    """Give every plan its examples. `rows` has train, test and perhaps validation.

    `seeds` numbers every (group, class) by its declared place, so that another order of arrival holds out and keeps
    the same examples. Raises DataError for a task without a test example.
    """
    by_class = {split: _by_class(found, plans) for split, found in rows.items()}
    tasks: list[Task] = []
    for plan in plans:
        train: list[Row] = []
        validation: list[Row] = _of_plan(plan, by_class.get("validation", {}))
        for name in plan.class_names:
            own = by_class["train"][plan.group, name]
            seed = (config.seed, *seeds[plan.group, name])
            kept, held_out = split_rows(len(own), share=config.validation, keep=config.per_class, seed=seed)
            train += [own[at] for at in kept]
            validation += [own[at] for at in held_out]
        test = _of_plan(plan, by_class["test"])
        if not test:
            raise DataError(
                f"{plan.name} ({few(plan.class_names)}) has no test example; add some, or cut the stream otherwise"
            )
        tasks.append(
            Task(
                plan.name,
                plan.class_names,
                examples_of(train, plan.class_names, modality),
                examples_of(test, plan.class_names, modality),
                examples_of(validation, plan.class_names, modality) if validation else None,
            )
        )
    return tuple(tasks)


def _by_class(rows: Sequence[Row], plans: Sequence[TaskPlan]) -> RowsByClass:
    grouped = any(plan.group is not None for plan in plans)
    found: RowsByClass = defaultdict(list)
    for row in rows:
        found[row.group if grouped else None, row.label].append(row)
    return found


def _of_plan(plan: TaskPlan, rows: RowsByClass) -> list[Row]:
    return [row for name in plan.class_names for row in rows.get((plan.group, name), [])]


def examples_of(rows: Sequence[Row], class_names: Sequence[str], modality: str) -> Examples:
    """The rows in source order, with labels as positions in `class_names`."""
    ordered = sorted(rows, key=lambda row: row.id)
    position = {name: at for at, name in enumerate(class_names)}
    labels: NDArray[np.int64] = np.array([position[row.label] for row in ordered], dtype=np.int64)
    ids: NDArray[np.int64] = np.array([row.id for row in ordered], dtype=np.int64)
    return Examples(as_inputs(ordered), labels, ids, modality)


def untested_classes(tasks: Sequence[Task]) -> list[str]:
    """A sentence for every task that has classes without a test example."""
    sentences = []
    for task in tasks:
        tested = set(task.test.labels.tolist())
        names = [name for label, name in enumerate(task.class_names) if label not in tested]
        if names:
            what = "class" if len(names) == 1 else "classes"
            sentences.append(f"{task.name}: no test example has the {what} {few(names)}")
    return sentences


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more.

    >>> few("ab")
    "'a', 'b'"
    """
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
