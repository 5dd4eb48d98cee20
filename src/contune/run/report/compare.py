"""Compare runs: the same method over seeds and orders is one group, and groups are compared pair by pair."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, final

from contune.errors import RunDirectoryError
from contune.metric.estimate import Estimate, estimate
from contune.run.report.record import Run, read_run

HEADLINE_METRICS = (
    "last_accuracy",
    "average_accuracy",
    "average_incremental_accuracy",
    "learning_accuracy",
    "forgetting",
)
# What may differ between two runs of one group: they repeat the same experiment.
SEED_KEYS = frozenset({"train.seed", "stream.order_seed"})
# What changes no number: where a run was started, where its cache lies, how often it saves.
NEUTRAL_KEYS = frozenset(
    {"base", "cache.folder", "cache.memory_mb", "train.checkpoint_steps", "train.checkpoint_seconds"}
)
STREAM_KEYS = ("name", "kind", "tasks", "modality")
STREAM_TOTALS = ("classes_per_task", "train_examples", "test_examples")


@final
@dataclass(frozen=True)
class MethodRuns:
    """Runs that differ in nothing but their seeds, and the mean and spread of what they measured."""

    label: str
    method: str
    is_joint: bool
    runs: tuple[Run, ...]
    metrics: Mapping[str, Estimate]
    cost: Mapping[str, Estimate]

    @property
    def stream(self) -> str:
        """The stream's name."""
        return str(self.runs[0].stream["name"])

    @property
    def model(self) -> str:
        """The base model's path."""
        return str(self.runs[0].model.get("path", "unknown model"))


@final
@dataclass(frozen=True)
class Difference:
    """`first - second` in one metric, over the pairs of runs that share seed, order and data."""

    metric: str
    first: str
    second: str
    estimate: Estimate


@final
@dataclass(frozen=True)
class Comparison:
    """Groups in the order their first run was given, paired differences, and what stands in the way of comparing."""

    groups: tuple[MethodRuns, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def joint(self) -> MethodRuns | None:
        """The best group that learned all tasks at once, the upper bound of the others."""
        known = [group for group in self.groups if group.is_joint and group.metrics["last_accuracy"].mean is not None]
        return max(known, key=lambda group: group.metrics["last_accuracy"].mean or 0.0, default=None)


def compare(runs: Sequence[Path]) -> Comparison:
    """Compare the run directories `runs`; raise `RunDirectoryError` where one is missing, unfinished or damaged.

    Runs of one method whose configuration differs in nothing but the seeds form a group. A run given twice, or a second
    run with the same seeds, is counted once, and a warning says so.
    """
    if not runs:
        raise RunDirectoryError("no run directory was given; give at least one folder that `contune run` wrote")
    return compare_runs([read_run(Path(folder)) for folder in runs])


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """`compare` for runs that were read already."""
    warnings: list[str] = []
    gathered: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        gathered[_group_key(run)].append(run)
    members = [_without_repeats(group, warnings) for group in gathered.values()]
    labels = _labels([group[0] for group in members])
    joint = _best_joint(members)
    groups = tuple(_group(label, group, joint) for label, group in zip(labels, members, strict=True))
    warnings += _mismatches(groups) + [text for run in runs for text in _disagreements(run)]
    return Comparison(groups, tuple(_differences(groups)), tuple(dict.fromkeys(warnings)))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones.

    >>> flatten({"train": {"lr": 0.1, "seed": 0}})
    {'train.lr': 0.1, 'train.seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def config_differences(groups: Sequence[MethodRuns]) -> dict[str, list[Any]]:
    """The configuration keys in which groups differ, seeds left out, with one value for each group."""
    flats = [_settings(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    values = {key: [flat.get(key) for flat in flats] for key in keys}
    return {key: found for key, found in values.items() if len({_canonical(value) for value in found}) > 1}


def _settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in flatten(run.config).items() if key not in SEED_KEYS | NEUTRAL_KEYS}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def stream_identity(run: Run) -> str:
    """What makes two streams the same apart from their order: name, kind and sizes."""
    stream = run.stream
    totals = [sum(stream.get(key) or ()) for key in STREAM_TOTALS]
    return _canonical([[stream.get(key) for key in STREAM_KEYS], totals])


def model_identity(run: Run) -> str:
    """The base model's hash, or its path where no hash was recorded."""
    return str(run.model.get("sha256") or run.model.get("path"))


def _group_key(run: Run) -> str:
    return _canonical([run.method, stream_identity(run), model_identity(run), _settings(run)])


def _without_repeats(runs: list[Run], warnings: list[str]) -> list[Run]:
    kept: dict[tuple[Any, Any], Run] = {}
    for run in runs:
        first = kept.setdefault(run.seeds, run)
        if first is not run:
            what = "the same folder" if first.folder.resolve() == run.folder.resolve() else "the same experiment"
            warnings.append(
                f"{run.folder} is {what} as {first.folder} ({run.method}, {describe_seeds(run)}); it is counted once."
            )
    return list(kept.values())


def describe_seeds(run: Run) -> str:
    """The seeds of a run in words."""
    train, order = run.seeds
    return f"seed {'unknown' if train is None else train}, {'declared order' if order is None else f'order {order}'}"


def _labels(firsts: Sequence[Run]) -> list[str]:
    """The method's name, with the settings that tell it from another group of the same method."""
    by_method: dict[str, list[int]] = defaultdict(list)
    for number, run in enumerate(firsts):
        by_method[run.method].append(number)
    labels = [run.method for run in firsts]
    for numbers in by_method.values():
        if len(numbers) == 1:
            continue
        flats = [_settings(firsts[number]) for number in numbers]
        keys = [
            key
            for key in dict.fromkeys(key for flat in flats for key in flat)
            if not key.startswith(("stream.", "model.")) and len({_canonical(flat.get(key)) for flat in flats}) > 1
        ]
        for number, flat in zip(numbers, flats, strict=True):
            run = firsts[number]
            told = [f"{key.removeprefix('method.').removeprefix('train.')} {flat[key]}" for key in keys if key in flat]
            streams = {stream_identity(firsts[other]) for other in numbers}
            models = {model_identity(firsts[other]) for other in numbers}
            told += [f"on {run.stream['name']}"] if len(streams) > 1 else []
            told += [f"with {Path(str(run.model.get('path'))).name}"] if len(models) > 1 else []
            labels[number] += f" ({', '.join(told)})" if told else ""
    seen: dict[str, int] = defaultdict(int)
    for number, label in enumerate(labels):
        seen[label] += 1
        labels[number] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return labels


def _best_joint(members: Sequence[Sequence[Run]]) -> Sequence[Run]:
    joints = [group for group in members if group[0].is_joint]
    return max(
        joints, key=lambda group: estimate(run.metrics()["last_accuracy"] for run in group).mean or 0.0, default=()
    )


def joint_row(run: Run, joint: Sequence[Run]) -> tuple[float | None, ...] | None:
    """The last row of the joint run on the same data and model in the same order, of the same seed if there is one."""
    fitting = [
        other
        for other in joint
        if _same_data(run, other) and model_identity(run) == model_identity(other) and other is not run
    ]
    fitting.sort(key=lambda other: other.seeds != run.seeds)
    return fitting[0].matrix[-1] if fitting else None


def _same_data(first: Run, second: Run) -> bool:
    same = stream_identity(first) == stream_identity(second) and first.seeds[1] == second.seeds[1]
    return same and first.stream.get("hash") == second.stream.get("hash")


def _group(label: str, runs: Sequence[Run], joint: Sequence[Run]) -> MethodRuns:
    tables = [run.metrics(joint=joint_row(run, joint)) for run in runs]
    costs = [flatten(run.cost) for run in runs]
    counted = dict.fromkeys(key for cost in costs for key, value in cost.items() if _is_number(value))
    return MethodRuns(
        label=label,
        method=runs[0].method,
        is_joint=runs[0].is_joint,
        runs=tuple(runs),
        metrics={name: estimate(table[name] for table in tables) for name in tables[0]},
        cost={key: estimate(cost[key] for cost in costs if _is_number(cost.get(key))) for key in counted},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differences(groups: Sequence[MethodRuns]) -> list[Difference]:
    found = []
    for first, second in combinations(groups, 2):
        if model_identity(first.runs[0]) != model_identity(second.runs[0]):
            continue
        pairs = [(a, b) for a in first.runs for b in second.runs if a.seeds == b.seeds and _same_data(a, b)]
        if not pairs:
            continue
        tables = [(a.metrics(), b.metrics()) for a, b in pairs]
        for metric in HEADLINE_METRICS:
            both = [(a[metric], b[metric]) for a, b in tables]
            gaps = [x - y for x, y in both if x is not None and y is not None]
            found.append(Difference(metric, first.label, second.label, estimate(gaps)))
    return found


def _mismatches(groups: Sequence[MethodRuns]) -> list[str]:
    """Sentences on what stands in the way of comparing the groups."""
    found = [
        *_split("streams", stream_identity, _describe_stream, groups),
        *_split("base models", model_identity, lambda run: str(run.model.get("path", "unknown model")), groups),
    ]
    for group in groups:
        if any(a.seeds[1] == b.seeds[1] and not _same_data(a, b) for a, b in combinations(group.runs, 2)):
            found.append(
                f"Runs of {group.label} in the same order saw different data (their stream hashes differ), so their "
                "spread is not over seeds alone."
            )
    for first, second in combinations(groups, 2):
        if stream_identity(first.runs[0]) == stream_identity(second.runs[0]):
            found += _unpaired(first, second)
    return found


def _split(
    what: str, identity: Callable[[Run], str], describe: Callable[[Run], str], groups: Sequence[MethodRuns]
) -> list[str]:
    users: dict[str, list[MethodRuns]] = defaultdict(list)
    for group in groups:
        users[identity(group.runs[0])].append(group)
    if len(users) == 1:
        return []
    told = [f"{', '.join(group.label for group in some)}: {describe(some[0].runs[0])}" for some in users.values()]
    return [f"The runs use different {what}, so their numbers do not compare directly: {'; '.join(told)}."]


def _describe_stream(run: Run) -> str:
    return f"{run.stream['name']} ({run.stream['kind']}, {run.tasks} tasks, {sum(run.test_examples)} test examples)"


def _unpaired(first: MethodRuns, second: MethodRuns) -> list[str]:
    pairs = [(a, b) for a in first.runs for b in second.runs]
    orders = {a.seeds[1] for a, b in pairs if a.seeds[1] == b.seeds[1] and not _same_data(a, b)}
    found = [
        f"{first.label} and {second.label} saw different data in order {order} (their stream hashes differ), so no "
        "paired difference is given for it."
        for order in sorted(orders, key=str)
    ]
    if not any(a.seeds == b.seeds for a, b in pairs):
        found.append(f"{first.label} and {second.label} share no seed and order, so no paired difference is given.")
    return found


def _disagreements(run: Run) -> list[str]:
    stored = run.results.get("metrics") or {}
    found = []
    for name, value in run.metrics().items():
        told = stored.get(name)
        if isinstance(told, int | float) and value is not None and abs(told - value) > 1e-6:
            found.append(
                f"{run.folder / 'results.json'} says {name} is {told:.6f} but its accuracy matrix gives {value:.6f}; "
                "the matrix is used."
            )
    if len(run.matrix) < run.tasks:
        found.append(f"{run.folder} has learned {len(run.matrix)} of {run.tasks} tasks; its numbers are over those.")
    return found
