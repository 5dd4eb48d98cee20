"""A finished run as it lies on the disk: read, checked, and given names."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import yaml
from numpy.typing import NDArray

from contune.errors import ContuneError, DataError, RunDirectoryError
from contune.metric.matrix import check_matrix
from contune.metric.summary import summary

FORMAT = 1
PREDICTION_COLUMNS = ("after_task", "task", "label", "prediction", "correct")


@final
@dataclass(frozen=True)
class Run:
    """One run directory's `results.json` and `config.yaml`.

    `matrix` holds the rows that were learned, so it has fewer rows than `tasks` where the run is not finished.
    """

    folder: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    matrix: tuple[tuple[float | None, ...], ...]

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.results["method"])

    @property
    def stream(self) -> Mapping[str, Any]:
        """The stream's name, kind, tasks and sizes."""
        stream: Mapping[str, Any] = self.results["stream"]
        return stream

    @property
    def tasks(self) -> int:
        """Number of tasks of the stream."""
        return len(self.matrix[0])

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, "task 1" and so on where the stream names none."""
        names = self.stream.get("task_names") or [f"task {number + 1}" for number in range(self.tasks)]
        return [str(name) for name in names]

    @property
    def test_examples(self) -> list[int]:
        """Size of each task's test set."""
        return [int(count) for count in self.stream["test_examples"]]

    @property
    def measures(self) -> list[Mapping[str, Any]]:
        """What was measured beside the accuracy matrix: name, title, meaning and matrix of each."""
        found: list[Mapping[str, Any]] = self.results.get("measures") or []
        return found

    @property
    def anytime(self) -> list[tuple[int, float]]:
        """Accuracy along the way, by the number of examples that had come; empty where the stream had tasks."""
        return [(int(count), float(value)) for count, value in self.results.get("anytime") or []]

    @property
    def measure_meaning(self) -> str:
        """What the accuracy matrix holds."""
        measure = self.results.get("measure") or {}
        return str(measure.get("meaning", "the share of test examples answered rightly."))

    @property
    def arrives(self) -> str:
        """What is new in a task: `classes` that every task has of its own, `domains` with the same ones, or `tasks`."""
        kinds = {"class-incremental": "classes", "domain-incremental": "domains"}
        return kinds.get(str(self.stream["kind"]), "tasks")

    @property
    def has_classes(self) -> bool:
        """Whether every answer is the name of one class."""
        return str(self.stream.get("objective", "classify")) == "classify"

    @property
    def retention(self) -> Mapping[str, Mapping[str, list[float | None]]]:
        """Measures of each retention set, of the untouched model first and then after every task; empty without any."""
        found: Mapping[str, Mapping[str, list[float | None]]] = self.results.get("retention") or {}
        return found

    @property
    def diagnostics(self) -> list[Mapping[str, Mapping[str, float]]]:
        """What parts of the method found out in every task, by part and name; empty where they say nothing."""
        found: list[Mapping[str, Mapping[str, float]]] = self.results.get("diagnostics") or []
        return found

    @property
    def diagnostic_names(self) -> list[tuple[str, str]]:
        """Part and name of everything that was found out in any task."""
        named = [(part, name) for task in self.diagnostics for part, values in task.items() for name in values]
        return list(dict.fromkeys(named))

    @property
    def is_joint(self) -> bool:
        """Whether all tasks were learned at once, so that only the last row of the matrix is measured."""
        earlier = [value for row in self.matrix[:-1] for value in row]
        return self.method == "joint" or (len(self.matrix) > 1 and all(value is None for value in earlier))

    @property
    def seeds(self) -> tuple[Any, Any]:
        """The training seed and the order seed."""
        seeds = self.results.get("seeds") or {}
        return seeds.get("train"), seeds.get("order")

    @property
    def cost(self) -> Mapping[str, Any]:
        """The cost ledger's totals; empty where the run recorded none."""
        cost: Mapping[str, Any] = self.results.get("cost") or {}
        return cost

    @property
    def model(self) -> Mapping[str, Any]:
        """Path, hash and feature of the base model; empty where the run recorded none."""
        model: Mapping[str, Any] = self.results.get("model") or {}
        return model

    def metrics(self, joint: Sequence[float | None] | None = None) -> dict[str, float | None]:
        """All metrics of the matrix, recomputed; `joint` (tasks,) is the last row of a joint run in the same order."""
        return summary(self.matrix, self.test_examples, joint=joint)


@final
@dataclass(frozen=True)
class Predictions:
    """The columns of `predictions.parquet`, each of length n; `score` is 0 or 1 where answers are classes."""

    after_task: NDArray[np.int64]
    task: NDArray[np.int64]
    label: list[str]
    prediction: list[str]
    correct: NDArray[np.bool_]
    score: NDArray[np.float64]


def read_run(folder: Path) -> Run:
    """The run in `folder`; `RunDirectoryError` names the file that is missing or damaged."""
    if not folder.is_dir():
        raise RunDirectoryError(f"{folder} is not a folder; give a run directory, the folder that `contune run` wrote")
    path = folder / "results.json"
    if not path.is_file():
        raise RunDirectoryError(
            f"{folder} has no results.json; if a run was stopped there, `contune resume {folder}` finishes it, "
            "otherwise give the folder that `contune run` wrote"
        )
    results = _read_json(path)
    if results.get("format") != FORMAT:
        raise RunDirectoryError(
            f"{path} has format {results.get('format')!r} and this version of contune reads {FORMAT}; "
            "use the version that wrote it"
        )
    _text(results, "method", path)
    tasks = _check_stream(_mapping(results, "stream", path), path)
    for key in ("cost", "model", "seeds", "versions", "metrics", "method_config"):
        if results.get(key) is not None:
            _mapping(results, key, path)
    for name in ("train", "order"):
        seed = (results.get("seeds") or {}).get(name)
        if seed is not None and not isinstance(seed, int):
            raise RunDirectoryError(f"seeds.{name} in {path} is {seed!r}; a seed is a whole number or null")
    return Run(folder, results, _read_config(folder / "config.yaml"), _read_matrix(results, tasks, path))


def _check_stream(stream: Mapping[str, Any], path: Path) -> int:
    for key in ("name", "kind"):
        _text(stream, key, path, "stream.")
    tasks = stream.get("tasks")
    if not isinstance(tasks, int) or isinstance(tasks, bool) or tasks < 1:
        raise RunDirectoryError(f"stream.tasks in {path} is {tasks!r}; it must be a number of tasks, 1 or more")
    lists = ["test_examples", *(key for key in ("task_names", "classes_per_task") if stream.get(key) is not None)]
    for key in lists:
        value = stream.get(key)
        if not isinstance(value, list) or len(value) != tasks:
            given = f"{len(value)} entries" if isinstance(value, list) else repr(value)
            raise RunDirectoryError(
                f"stream.{key} in {path} has {given}; it must be a list of {tasks}, one for each task"
            )
    for key in ("test_examples", "classes_per_task"):
        for number in stream.get(key) or ():
            if not isinstance(number, int) or number < 0:
                raise RunDirectoryError(f"stream.{key} in {path} holds {number!r}; it must hold counts")
    return tasks


def _read_matrix(results: Mapping[str, Any], tasks: int, path: Path) -> tuple[tuple[float | None, ...], ...]:
    matrix = results.get("accuracy_matrix")
    if not isinstance(matrix, list) or not all(isinstance(row, list) for row in matrix):
        raise RunDirectoryError(f"accuracy_matrix in {path} is not a list of rows; the file is damaged")
    for number, row in enumerate(matrix):
        for column, value in enumerate(row):
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1
            ):
                raise RunDirectoryError(
                    f"accuracy_matrix[{number}][{column}] in {path} is {value!r}; an accuracy is 0 to 1, or null"
                )
    try:
        check_matrix(matrix)
    except DataError as error:
        raise RunDirectoryError(f"{path}: {error}") from error
    if len(matrix[0]) != tasks:
        raise RunDirectoryError(f"accuracy_matrix in {path} has {len(matrix[0])} columns and stream.tasks is {tasks}")
    learned = max((number + 1 for number, row in enumerate(matrix) if any(v is not None for v in row)), default=0)
    if learned == 0:
        raise RunDirectoryError(f"accuracy_matrix in {path} holds no accuracy at all; run the configuration again")
    return tuple(tuple(row) for row in matrix[:learned])


def read_predictions(run: Run) -> Predictions:
    """The stored predictions of `run`, checked against its number of tasks."""
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    path = run.folder / "predictions.parquet"
    if not path.is_file():
        raise RunDirectoryError(
            f"{path} is missing; every number of a report derives from it, so restore it or run again"
        )
    try:
        names = parquet.read_schema(path).names
        missing = [name for name in PREDICTION_COLUMNS if name not in names]
        if missing:
            raise RunDirectoryError(f"{path} lacks the columns {missing}; it has {names}")
        wanted = [*PREDICTION_COLUMNS, *(["score"] if "score" in names else [])]
        table = parquet.read_table(path, columns=wanted)
        arrays = {name: table[name].combine_chunks() for name in wanted}
        holes = [name for name, array in arrays.items() if array.null_count]
        if holes:
            raise RunDirectoryError(f"{path} has empty cells in the columns {holes}; the file is damaged")
        found = Predictions(
            after_task=np.asarray(arrays["after_task"].to_numpy(zero_copy_only=False), dtype=np.int64),
            task=np.asarray(arrays["task"].to_numpy(zero_copy_only=False), dtype=np.int64),
            label=[str(name) for name in arrays["label"].to_pylist()],
            prediction=[str(name) for name in arrays["prediction"].to_pylist()],
            correct=np.asarray(arrays["correct"].to_numpy(zero_copy_only=False), dtype=np.bool_),
            score=np.asarray(arrays[wanted[-1]].to_numpy(zero_copy_only=False), dtype=np.float64),
        )
    except ContuneError:
        raise
    except (ArrowException, OSError, ValueError, TypeError) as error:
        raise RunDirectoryError(f"{path} cannot be read as Parquet ({error}); restore it or run again") from error
    for name, values in (("after_task", found.after_task), ("task", found.task)):
        if len(values) and (values.min() < 0 or values.max() >= run.tasks):
            raise RunDirectoryError(f"column {name} of {path} must be 0 to {run.tasks - 1}, the stream's tasks")
    return found


def read_losses(run: Run) -> list[float]:
    """The training losses in `events.jsonl`, in order; empty where the method has no loss or logged none."""
    path = run.folder / "events.jsonl"
    if not path.is_file():
        return []
    losses = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            # The last line of a killed run may be cut off; the log is not a source of numbers.
            continue
        loss = event.get("loss") if isinstance(event, dict) and event.get("event") == "loss" else None
        if isinstance(loss, int | float) and math.isfinite(loss):
            losses.append(float(loss))
    return losses


def _read_json(path: Path) -> Mapping[str, Any]:
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} cannot be read as JSON ({error}); restore it or run again") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} holds a {type(value).__name__}; it must hold a JSON object")
    return value


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise RunDirectoryError(f"{path} is missing; a run directory holds the configuration it ran with")
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunDirectoryError(f"{path} cannot be read as YAML ({error}); restore it or run again") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} holds a {type(value).__name__}; it must hold keys and values")
    return value


def _text(mapping: Mapping[str, Any], key: str, path: Path, prefix: str = "") -> None:
    if not isinstance(mapping.get(key), str) or not mapping[key]:
        raise RunDirectoryError(f"{prefix}{key} in {path} is {mapping.get(key)!r}; it must be a name")


def _mapping(mapping: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = mapping.get(key)
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{key} in {path} is {value!r}; it must be an object with keys and values")
    return value
