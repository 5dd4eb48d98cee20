"""To which side an example belongs, for ever: learned, or frozen to test with. Pure functions on hashes.

What was ever learned never tests, and what tests is never learned; who has not been seen is put to a side by its hash alone.
"""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from contune.living.store.sealed import digest
from contune.stream.modality import find_modality
from contune.stream.task import Examples, Task


def input_hashes(examples: Examples) -> list[str]:
    """The hash of every input (n,), whatever its label: equal inputs have equal ones, in every update."""
    return [input_hash(item, examples.modality) for item in examples.inputs]


def input_hash(item: Any, modality: str) -> str:
    """The hash of one input of a modality."""
    kind = find_modality(modality)
    data, shape = kind.content(item)
    start = f"{kind.hash_name}|{'' if shape is None else list(shape)}|".encode()
    return hashlib.sha256(start + bytes(data)).hexdigest()


def answers_of(examples: Examples, class_names: Sequence[str]) -> list[str]:
    """What is right for every example (n,) as a text: its class, or the hash of its targets by name."""
    if examples.targets is None:
        return [class_names[label] if class_names else "" for label in examples.labels.tolist()]
    targets = examples.targets
    rows = [targets.of(row).tolist() for row in range(len(targets))]
    named = [[class_names[at] if isinstance(at, int) else repr(at) for at in row] for row in rows]
    return [digest(row)[:16] for row in named]


def number_of(name: str) -> int:
    """The id of an example as a whole number, from its hash: the same whenever and beside whatever it comes.

    >>> number_of("f" * 64) < 2**63
    True
    """
    return int(name[:15], 16)


def tests_by_hash(name: str, share: float) -> bool:
    """Whether an example that nobody has seen yet belongs to the `share` that tests.

    >>> sum(tests_by_hash(f"{at:064x}", 0.2) for at in range(1000)) in range(160, 240)
    True
    """
    draw = hashlib.sha256(f"side|{name}".encode()).digest()[:8]
    return int.from_bytes(draw, "big") < share * 2**64


@final
@dataclass(frozen=True)
class Seen:
    """What there was before: answers of learned inputs by hash, inputs that test, and those that test in this line."""

    learned: Mapping[str, Set[str]] = field(default_factory=dict)
    tested: Set[str] = frozenset()
    tested_here: Set[str] = frozenset()


@final
@dataclass(frozen=True)
class Counted:
    """What was found in an update before anything was learned.

    `twice`: examples that came more than once. `known`: learned before. `contradictions`: inputs with several answers, here
    or earlier. `kept_out`: examples not learned because they test. `not_tested`: test examples left out, because they were
    learned, or test already.
    """

    learned: int
    tested: int
    twice: int
    known: int
    contradictions: int
    kept_out: int
    not_tested: int

    def sentences(self) -> list[str]:
        """What a person should know, each a sentence."""
        told = [
            (self.twice, "came more than once in this update, and count as often"),
            (self.known, "were learned before with the same answer"),
            (self.contradictions, "have another answer elsewhere, here or in an earlier update"),
            (self.kept_out, "are not learned, because they test"),
            (self.not_tested, "do not test, because they were learned or test already"),
        ]
        return [f"{count:,} examples {what}." for count, what in told if count]


@final
@dataclass(frozen=True, eq=False)
class Arrived:
    """An update with every example on its side: what `task` trains on is learned, what `suite` tests with is frozen.

    `learned` and `tested` are hash and answer of each.
    """

    task: Task
    suite: Task
    learned: tuple[tuple[str, str], ...]
    tested: tuple[tuple[str, str], ...]
    counted: Counted

    @property
    def data_id(self) -> str:
        """Names what is learned: the same rows under the same name in the same order have the same."""
        return data_id(self.task.name, self.task.class_names, self.learned)


def data_id(name: str, class_names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """What data are called."""
    return digest({"name": name, "class_names": list(class_names), "rows": [list(row) for row in rows]})


def settled(task: Task, brought_test: bool, share: float, seen: Seen, known_classes: Sequence[str]) -> Arrived:
    """Every example on its side. Without a test of its own, a `share` by hash tests."""
    names, answers = input_hashes(task.train), answers_of(task.train, task.class_names)
    if brought_test:
        testing = [name in seen.tested for name in names]
        test_names, test_answers = input_hashes(task.test), answers_of(task.test, task.class_names)
        own = set(names)
        fresh = [name not in own and name not in seen.learned and name not in seen.tested_here for name in test_names]
        test = task.test.take(np.flatnonzero(fresh))
        tested = [pair for pair, keep in zip(zip(test_names, test_answers, strict=True), fresh, strict=True) if keep]
        kept_out, dropped = sum(testing), len(fresh) - sum(fresh)
    else:
        kinds = answers if task.train.targets is None else [""] * len(answers)
        testing = sides(names, kinds, share, seen, known_classes)
        fresh = [tests and name not in seen.tested_here for tests, name in zip(testing, names, strict=True)]
        test = task.train.take(np.flatnonzero(fresh))
        tested = [pair for pair, keep in zip(zip(names, answers, strict=True), fresh, strict=True) if keep]
        kept_out = sum(tests and name in seen.tested for tests, name in zip(testing, names, strict=True))
        dropped = 0
    rows = [at for at, tests in enumerate(testing) if not tests]
    learned = tuple((names[at], answers[at]) for at in rows)
    train = numbered(task.train.take(rows), learned)
    nothing = train.take([])
    made = only_classes(Task(task.name, task.class_names, train, nothing))
    suite = only_classes(Task(task.name, task.class_names, nothing, numbered(test, tested)))
    return Arrived(made, suite, learned, tuple(tested), counted(learned, tested, seen, kept_out, dropped))


def sides(names: Sequence[str], answers: Sequence[str], share: float, seen: Seen, known: Sequence[str]) -> list[bool]:
    """Which examples test: those that did, and the share of the new ones; of a new answer one example at least is learned.

    >>> sides(["a" * 64], ["cat"], 0.999, Seen(), ())
    [False]
    """
    found = [name in seen.tested or (name not in seen.learned and tests_by_hash(name, share)) for name in names]
    places: dict[str, list[int]] = {}
    for at, answer in enumerate(answers):
        places.setdefault(answer, []).append(at)
    for answer, own in places.items():
        free = [at for at in own if names[at] not in seen.tested]
        if answer not in known and all(found[at] for at in own) and free:
            first = names[min(free, key=lambda at: names[at])]
            found = [tests and name != first for tests, name in zip(found, names, strict=True)]
    return found


def numbered(examples: Examples, rows: Sequence[tuple[str, str]]) -> Examples:
    """Examples with their ids from their hashes."""
    ids = np.array([number_of(name) for name, _ in rows], dtype=np.int64)
    return Examples(examples.inputs, examples.labels, ids, examples.modality, examples.targets)


def only_classes(task: Task) -> Task:
    """The task with the classes alone that its examples have; where answers are no single class, with all names."""
    if task.train.targets is not None or not task.class_names:
        return task
    used = np.union1d(task.train.labels, task.test.labels)
    places = np.full(len(task.class_names), -1, dtype=np.int64)
    places[used] = np.arange(len(used))
    names = tuple(task.class_names[at] for at in used.tolist())
    train, test = (Examples(one.inputs, places[one.labels], one.ids, one.modality) for one in (task.train, task.test))
    return Task(task.name, names, train, test)


def counted(
    learned: Sequence[tuple[str, str]], tested: Sequence[Any], seen: Seen, kept_out: int, dropped: int
) -> Counted:
    """What there is to say about an update."""
    own: dict[str, set[str]] = {}
    for name, answer in learned:
        own.setdefault(name, set()).add(answer)
    several = [name for name, answers in own.items() if len(answers | set(seen.learned.get(name, ()))) > 1]
    known = sum(answer in seen.learned.get(name, ()) for name, answer in learned)
    twice = len(learned) - len(set(learned))
    return Counted(len(learned), len(tested), twice, known, len(several), kept_out, dropped)
