"""Made-up run directories whose files agree with each other: matrix and metrics derive from the predictions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from contune.metric.predictions import matrix_from_predictions
from contune.metric.summary import summary


@dataclass(frozen=True)
class Profile:
    """How a made-up method behaves: accuracy when a task is new, and the share of it left when it is old."""

    learned: float
    kept: float
    decay: float = 0.6
    trainable_parameters: int = 147_456
    train_seconds: float = 93.0

    def accuracy(self, age: int) -> float:
        return self.learned * (self.kept + (1 - self.kept) * self.decay**age)


PROFILES = {
    "sequential-lora": Profile(0.97, 0.25, 0.5),
    "replay": Profile(0.95, 0.82, 0.8, train_seconds=141.0),
    "o-lora": Profile(0.93, 0.62, 0.8, trainable_parameters=1_474_560),
    "ranpac": Profile(0.86, 0.97, 0.9, trainable_parameters=0, train_seconds=6.5),
    "joint": Profile(0.96, 1.0, train_seconds=388.0),
}


def write_run(
    folder: Path,
    method: str = "sequential-lora",
    *,
    tasks: int = 10,
    classes: int = 4,
    examples: int = 12,
    seed: int = 0,
    order: int = 0,
    names: Sequence[str] | None = None,
    kind: str = "class-incremental",
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write one run directory; `names` replaces the first class names, `settings` goes into the method's recipe."""
    folder.mkdir(parents=True)
    profile = PROFILES.get(method.split(" ")[0], PROFILES["o-lora"])
    class_names = [[f"class {task * classes + place}" for place in range(classes)] for task in range(tasks)]
    for number, name in enumerate(names or ()):
        class_names[number // classes % tasks][number % classes] = name
    rng = np.random.default_rng([seed, order, len(method), sum(map(ord, method))])
    columns = _predict(profile, class_names, examples, rng, joint=method == "joint")
    _write_predictions(folder, columns)
    matrix = matrix_from_predictions(columns["after_task"], columns["task"], columns["correct"], tasks)
    stream = {
        "name": "stdlib-docstrings", "kind": kind, "tasks": tasks, "modality": "text",
        "task_names": [f"{some[0]}, {some[1 % len(some)]}" for some in class_names],
        "classes_per_task": [classes] * tasks, "test_examples": [classes * examples] * tasks,
        "train_examples": [classes * 40] * tasks,
        "hash": hashlib.sha256(json.dumps([order, class_names]).encode()).hexdigest(),
    }  # fmt: skip
    results = {
        "format": 1, "method": method, "method_config": {"rank": 8, **(settings or {})}, "stream": stream,
        "accuracy_matrix": matrix, "metrics": summary(matrix, [classes * examples] * tasks),
        "cost": _cost(profile, tasks),
        "model": {"path": "sentence-transformers/all-MiniLM-L6-v2", "sha256": "5f" * 32, "base_unchanged": True,
                  "feature": "mean"},
        "seeds": {"train": seed, "order": order},
        "versions": {"contune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    config = {
        "model": {"path": "sentence-transformers/all-MiniLM-L6-v2"},
        "stream": {"data": "stdlib-docstrings", "kind": kind, "tasks": tasks, "order_seed": order},
        "method": {"name": method, "rank": 8, **(settings or {})},
        "train": {"epochs": 5, "batch_size": 32, "lr": 0.001, "seed": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _write_events(folder, tasks, rng)
    return folder


def _predict(
    profile: Profile, class_names: list[list[str]], examples: int, rng: np.random.Generator, joint: bool
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("after_task", "task", "example", "label", "prediction")}
    tasks = len(class_names)
    for after in [tasks - 1] if joint else range(tasks):
        for task in range(after + 1):
            labels = [name for name in class_names[task] for _ in range(examples)]
            accuracy = profile.accuracy(0 if joint else after - task)
            for number, label in enumerate(labels):
                answer = label
                if rng.random() > accuracy:
                    # Most errors fall into the newest task's classes, as they do in sequential training.
                    source = after if rng.random() < 0.6 else int(rng.integers(after + 1))
                    answer = class_names[source][int(rng.integers(len(class_names[source])))]
                for name, value in zip(columns, (after, task, task * 1000 + number, label, answer), strict=True):
                    columns[name].append(value)
    columns["correct"] = [a == b for a, b in zip(columns["label"], columns["prediction"], strict=True)]
    return columns


def _write_predictions(folder: Path, columns: dict[str, list[Any]]) -> None:
    parquet.write_table(pa.table(columns), folder / "predictions.parquet")


def _cost(profile: Profile, tasks: int) -> dict[str, Any]:
    return {
        "trainable_parameters": profile.trainable_parameters,
        "total_parameters": 22_713_216 + profile.trainable_parameters,
        "stored_bytes": 4 * profile.trainable_parameters + 61_440 * tasks,
        "train_seconds": profile.train_seconds, "eval_seconds": 7.25, "fit_seconds": 0.0,
        "peak_memory_bytes": 1_482_000_000, "examples_forward": 26_400, "examples_backward": 8_000 * tasks,
        "cache_hits": 18_400, "steps": 250 * tasks,
    }  # fmt: skip


def _write_events(folder: Path, tasks: int, rng: np.random.Generator) -> None:
    lines = []
    for task in range(tasks):
        lines.append({"event": "task", "task": task})
        for step in range(20):
            loss = float(1.8 * np.exp(-step / 5) + 0.1 + 0.03 * rng.random())
            lines.append({"event": "loss", "task": task, "epoch": 0, "step": step * 10, "loss": loss})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_study(
    root: Path, methods: Sequence[str], *, seeds: Sequence[int] = (0,), tasks: int = 10, **options: Any
) -> list[Path]:
    """One run for every method and seed; the seed is the order's too."""
    return [
        write_run(root / f"{method}-{seed}", method, tasks=tasks, seed=seed, order=seed, **options)
        for method in methods
        for seed in seeds
    ]
