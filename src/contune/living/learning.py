"""Learners of a living model: made from its configuration, put where a version stands, asked about frozen suites."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from contune.contract.state import State, examples_from_state, examples_state
from contune.engine.kept.cache import MemoryCache
from contune.engine.learner import Learner
from contune.engine.observer import Observer
from contune.errors import ConfigError, RunDirectoryError
from contune.living.config import LivingConfig, Policy
from contune.living.store.folder import Folder, Record
from contune.living.store.sealed import canonical
from contune.run.execute import choose_device, method_of
from contune.stream.task import Task, names_tasks

Answers = Mapping[str, Any]  # score (n,), and what the objective stores of each answer, by column


@final
class Workshop:
    """Makes learners. The one that was asked for last is kept, and so is what the frozen model has computed."""

    def __init__(self, folder: Folder, config: LivingConfig, observer: Observer | None = None) -> None:
        self.folder, self.config = folder, config
        self.observer = observer or Observer()
        self._memory = MemoryCache()
        self._kept: tuple[str | None, Learner] | None = None

    def new(self) -> Learner:
        """A learner that knows nothing."""
        config = self.config
        return Learner(
            config.model,
            method_of(config.method),
            objective=config.objective,
            kind=config.kind,
            train=config.train,
            device=choose_device(config.device),
            observer=self.observer,
            memory_cache=self._memory,
        )

    def fresh(self, version: Record) -> Learner:
        """A learner of its own where a version stands, free to be changed."""
        learner = self.new()
        if version["state"] is not None:
            learner.load_state(self.folder.states.get(version["state"]))
        return learner

    def at(self, version: Record) -> Learner:
        """A learner where a version stands, to be asked and not changed."""
        if self._kept is None or self._kept[0] != version["id"]:
            self._kept = version["id"], self.fresh(version)
        return self._kept[1]

    def keep(self, version: Record, learner: Learner) -> None:
        """The learner that has just become a version: it answers as one that is loaded would."""
        self._kept = version["id"], learner

    def learn(self, learner: Learner, task: Task) -> None:
        """Learn a task, watched."""
        context = learner.begin(task)
        self.observer.task_begins(context.task, 1, learner.steps(context), len(task.train))
        learner.fit(context, lambda report: None)
        learner.end(context)


def require_policy(state: State, policy: Policy, config: LivingConfig) -> None:
    """Refuse a state that holds learned examples where the policy forbids it; nothing of it has been written."""
    if policy.allows_raw or not holds_examples(state.values):
        return
    raise ConfigError(
        f"the method {config.method!r} keeps learned examples to replay them, and policy.buffer is {policy.buffer}, which "
        "forbids it; take a method without a buffer, such as ranpac or ease, or create the model with policy.buffer=raw"
    )


def holds_examples(values: Any) -> bool:
    """Whether examples are among what a state holds, by the mark that stored examples carry.

    >>> holds_examples({"rule0": {"examples": {"modality": "text", "texts": ["a"]}}}), holds_examples({"rule0": {}})
    (True, False)
    """
    if not isinstance(values, Mapping):
        return False
    return "modality" in values or any(holds_examples(inner) for inner in values.values())


def put_task(folder: Folder, task: Task) -> str:
    """Keep a task's examples as they are: those that test, or those it learned where none tests."""
    return folder.states.put(examples_state(task.test if len(task.test) else task.train))


def suite_task(folder: Folder, suite: str) -> Task:
    """A frozen suite as a task that only tests."""
    record = folder.get("suites", suite)
    if record["state"] is None:
        raise RunDirectoryError(f"the examples of suite {record['name']!r} were not kept (policy.suites: none)")
    examples = examples_from_state(folder.states.get(record["state"]))
    return Task(record["name"], tuple(record["class_names"]), examples.take([]), examples)


def learned_task(folder: Folder, data: str) -> Task:
    """What an update learned, where it was kept."""
    record = folder.get("data", data)
    if record["state"] is None:
        raise ConfigError(
            f"the examples of {record['name']!r} were not kept (policy.buffer is not raw, or their days are over); give "
            "them again with --examples"
        )
    examples = examples_from_state(folder.states.get(record["state"]))
    return Task(record["name"], tuple(record["class_names"]), examples, examples.take([]))


def ask(learner: Learner, suite: Task, index: int) -> Answers:
    """A learner's answers to a suite; what it cannot know yet, because it has not met the class or task, is wrong.

    `index` is the task's place among those learned, which matters where streams name tasks.
    """
    n = len(suite.test)
    blank: Answers = {"score": [0.0] * n}
    known = set(learner.class_names)
    rows = known_rows(suite, known)
    if not len(rows) or (names_tasks(learner.kind) and index >= learner.learned):
        return blank
    names = tuple(name for name in suite.class_names if name in known)
    judged = learner.judge_task(index, learner.test_dataset(narrowed(suite, names, rows), index))
    score = np.zeros(n)
    score[rows] = judged.score
    columns: dict[str, list[Any]] = {key: [None] * n for key in judged.columns if key != "correct"}
    for key, found in columns.items():
        for at, value in zip(rows.tolist(), judged.columns[key], strict=True):
            found[at] = plain(value)
    return {"score": score.tolist(), **columns}


def known_rows(suite: Task, known: set[str]) -> NDArray[np.int64]:
    """Which examples of a suite a learner of these classes can be asked about."""
    if suite.test.targets is not None or not suite.class_names:
        return np.arange(len(suite.test) if known.issuperset(suite.class_names) else 0)
    met = np.array([name in known for name in suite.class_names], dtype=np.bool_)
    return np.flatnonzero(met[suite.test.labels])


def narrowed(suite: Task, names: tuple[str, ...], rows: NDArray[np.int64]) -> Task:
    """The suite with some rows, and labels as positions in fewer names."""
    if names == suite.class_names:
        return suite if len(rows) == len(suite.test) else Task(suite.name, names, suite.train, suite.test.take(rows))
    from contune.living.data.read import moved

    places = np.array([names.index(name) if name in names else -1 for name in suite.class_names], dtype=np.int64)
    return Task(suite.name, names, suite.train, moved(suite.test.take(rows), places))


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(one) for one in value]
    return value


def put_answers(folder: Folder, answers: Answers) -> str:
    """Keep answers."""
    return folder.objects.put(canonical(answers))


def get_answers(folder: Folder, name: str) -> Answers:
    """The answers of that name."""
    found: Answers = json.loads(folder.objects.get(name))
    return found


def mean_score(answers: Answers) -> float | None:
    """Mean score, None of nothing."""
    scores: Sequence[float] = answers["score"]
    return sum(scores) / len(scores) if scores else None
