"""What a long stream costs: the time of a late task against an early one, and a million examples through a head.

    python benchmarks/scale.py tasks                                  # 200 tasks of two classes, methods that do not grow
    python benchmarks/scale.py tasks --methods nmc lora --tasks 50
    python benchmarks/scale.py examples                               # 1,000,000 examples of 384 features, 2 GiB at most

`tasks`: synthetic images through a tiny random model, one JSON line for each method: milliseconds to learn a task and to
answer its test examples at task 5 and at the last one, medians of five neighbours, and their ratio, the growth. Only the
number of classes grows, in the head. `examples`: a head learns from the store's blocks of features, made when they are
asked for and not kept (`--memory-mb`, `--folder` let the store keep them): once in tasks of 20,000 over the same classes,
once all in one task; peak_mb is the most that the process ever held, with 230 of imports. The seconds count making the
features. Every method and head runs in its own process, on one thread, in seconds of that process alone, so a busy machine
does little.
"""

import argparse
import json
import resource
import time
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

import pairs
from sweep import named

METHODS = ["nmc", "ranpac:small", "acil", "linear-probe", "lora", "er", "der++", "ewc", "mas", "l2", "lwf", "l2p"]
WIDTH, CLASSES, EARLY = 384, 10, 5


def image_task(number: int, examples: int):
    """Two new classes: two random patterns of 16 x 16 pixels, with noise."""
    from contune import Task
    from contune.stream.task import Examples

    draw = np.random.default_rng([7, number])
    patterns = draw.integers(0, 256, (2, 16, 16, 3))

    def split(first: int) -> Examples:
        labels = np.arange(examples) % 2
        noisy = patterns[labels] + draw.normal(0, 40, (examples, 16, 16, 3))
        images = list(noisy.clip(0, 255).astype(np.uint8))
        return Examples(images, labels.astype(np.int64), np.arange(first, first + examples), "image")

    return Task(f"task {number}", (f"{number} a", f"{number} b"), split(0), split(examples))


def timed_tasks(chosen, count: int) -> tuple[dict[str, list[float]], float, int]:
    """Seconds to learn and to answer each of the first tasks, the mean accuracy right after learning, bytes kept."""
    from contune import Learner
    from contune.checks.run import tiny_model
    from contune.method.catalog import build_method

    learner, right = Learner(tiny_model(), build_method(*named(chosen.part))), []
    seconds: dict[str, list[float]] = {"learn": [], "answer": []}
    for number in range(count):
        task = image_task(number, chosen.per_task)
        started = time.process_time()
        learner.learn(task)
        seconds["learn"].append(time.process_time() - started)
        data = learner.test_dataset(task)
        started = time.process_time()
        right.append(float(np.mean(learner.answers(data) == data.labels)))
        seconds["answer"].append(time.process_time() - started)
    return seconds, float(np.mean(right)), learner.stored_bytes()


def time_of_tasks(chosen) -> dict[str, object]:
    """How the time of a task grows over the stream; the early tasks are timed last, by a new learner, all being warm."""
    late, accuracy, kept = timed_tasks(chosen, chosen.tasks)
    early, _, _ = timed_tasks(chosen, EARLY + 2)
    found: dict[str, object] = {"method": chosen.part, "tasks": chosen.tasks, "learning_accuracy": round(accuracy, 4)}
    for name in early:
        first, last = (1000 * median(seconds[name][-5:]) for seconds in (early, late))
        found |= {f"{name}_early_ms": round(first, 2), f"{name}_late_ms": round(last, 2)}
        found[f"{name}_growth"] = round(last / first, 3)
    return {**found, "stored_bytes": kept}


@dataclass(frozen=True)
class Features:
    """All that a closed-form head asks of its context, with features made when they are asked for."""

    index: int
    store: object
    rows: int

    @property
    def passes(self) -> "Features":
        return self

    @property
    def model(self):
        from contune.objective.classify import Classify

        backbone = SimpleNamespace(device=torch.device("cpu"))
        columns = torch.ones(1, CLASSES, dtype=torch.bool)
        own = {"backbone": backbone, "adapter_trainable": False, "feature_size": lambda: WIDTH}
        return SimpleNamespace(**own, objective=Classify(), class_tasks=columns)

    @cached_property
    def task(self):
        from contune.contract.context import TaskView
        from contune.contract.settings import TrainSettings

        columns, names = tuple(range(CLASSES)), tuple(str(name) for name in range(CLASSES))
        data, kind = self.dataset, "domain-incremental"
        return TaskView(self.index, "", columns, CLASSES, CLASSES, kind, names, data, TrainSettings())

    @cached_property
    def dataset(self):
        from contune.contract.data import Dataset
        from contune.stream.task import Examples

        ids = np.arange(self.rows)
        labels, first = ids % CLASSES, 10_000_000 * self.index
        examples = Examples(range(first, first + self.rows), labels, ids, "text")
        prepared = SimpleNamespace(lengths=np.ones(self.rows, dtype=np.int64))
        return Dataset(examples, prepared, labels, np.full(self.rows, self.index))

    def made(self, rows: np.ndarray) -> torch.Tensor:
        centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1 + 10_000_000 * self.index + int(rows[0]))
        return torch.randn(len(rows), WIDTH, generator=generator).mul_(4).add_(centres[rows % CLASSES])

    def feature_blocks(self, dataset):
        return self.store.feature_blocks(dataset, f"features-{WIDTH}", WIDTH, self.made)


def million_examples(chosen, per_task: int) -> dict[str, object]:
    """All examples through one head, in one task or in many, and then some that it has not seen."""
    from contune.contract.processes import Processes
    from contune.contract.settings import CacheSettings
    from contune.engine.kept.cache import FeatureCache
    from contune.head.solved.class_means import ClassMeans
    from contune.head.solved.ridge import Ridge
    from contune.metric.ledger import Ledger

    head = ClassMeans() if chosen.part == "nmc" else Ridge(random_features=chosen.random_features)
    cache = CacheSettings(memory_mb=chosen.memory_mb, folder=chosen.folder)
    store = FeatureCache(cache, Ledger(), Processes())
    started, tasks = time.process_time(), -(-chosen.examples // per_task)
    for index in range(tasks):
        task = Features(index, store, min(per_task, chosen.examples - index * per_task))
        head.begin_task(task)
        head.fit(task)
        head.end_task(task)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    unseen = Features(tasks, store, 1000)
    right = head.logits(unseen.made(np.arange(1000))).argmax(1).numpy() == unseen.dataset.labels
    size = {"head": chosen.part, "examples": chosen.examples, "tasks": tasks, "memory_mb": chosen.memory_mb}
    if chosen.part != "nmc":
        size |= {"random_features": chosen.random_features, "strength": head.state().values["strength"]}
    return {**size, "seconds": round(seconds, 1), "peak_mb": round(peak), "accuracy": round(float(right.mean()), 4)}


def main() -> None:
    """Run every part in a process of its own and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tasks", "examples"])
    parser.add_argument(
        "--methods", nargs="*", help="default: some that do not grow by design; with `examples` the heads"
    )
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--per-task", type=int, default=40, help="training examples of a task, and as many to test")
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--block", type=int, nargs="+", help="examples of a task; default: 20,000, and all in one task")
    parser.add_argument("--random-features", type=int, default=2000, help="of ranpac")
    parser.add_argument("--memory-mb", type=int, default=0, help="what the store may keep; the whole task is 1465")
    parser.add_argument("--folder", help="where the store may keep features on disk; default: nowhere")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        torch.set_num_threads(1)
        found = time_of_tasks(chosen) if chosen.what == "tasks" else million_examples(chosen, chosen.block[0])
        print(json.dumps(found))
        return
    sizes = [0] if chosen.what == "tasks" else chosen.block or [20_000, chosen.examples]
    for part in chosen.methods or (METHODS if chosen.what == "tasks" else ["nmc", "ranpac"]):
        for size in sizes:
            print(json.dumps(pairs.again("--part", part, "--block", str(size), threads=1)), flush=True)


if __name__ == "__main__":
    main()
