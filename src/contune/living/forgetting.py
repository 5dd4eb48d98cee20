"""Forgetting: a version that never had some examples, or no longer has them, and a certificate that says how.

```text
subtracted      a head of sums over frozen features gives the examples up: as if never seen, to rounding
learned again   back to the last version before them, and what came later is learned again without them: the very version,
                by its id and to the bit, of a model that never saw them
```

Versions that hold them are retired: they cannot be gone back to, and their blocks are dropped at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

import contune
from contune.contract.capability import Lifetime
from contune.errors import ConfigError
from contune.living.checking import clear
from contune.living.data.read import one_task
from contune.living.data.sides import Arrived, Counted, input_hashes, only_classes
from contune.living.gating import Say
from contune.living.history import line_of
from contune.living.learning import Workshop, learned_task, put_answers, suite_task
from contune.living.store.feedback import drop_feedback, is_forgotten
from contune.living.store.folder import Folder, Record, actor, now, version_id
from contune.living.store.sealed import digest
from contune.living.updating import ask_suite, make_version, put_suite
from contune.stream.task import Task

Way = Literal["subtracted", "learned again", "nothing was learned of it"]


@final
@dataclass(frozen=True)
class Certificate:
    """What was forgotten (`rows`, the hashes of the examples), how, which version answers now, and which are retired."""

    what: str
    way: Way
    rows: tuple[str, ...]
    version: str
    number: int
    retired: tuple[str, ...]
    at: str
    actor: str

    def sentence(self) -> str:
        """In words."""
        return (
            f"{len(self.rows):,} examples ({self.what}) are forgotten: {self.way}; version {self.number} answers now, and "
            f"{len(self.retired)} versions that held them are retired."
        )


def forget(
    shop: Workshop,
    classes: Sequence[str],
    ids: Sequence[str],
    update: str | int | None,
    examples: Any,
    command: str,
    say: Say,
) -> Certificate:
    """Make the version without, move to it, retire those with, and sweep."""
    folder = shop.folder
    rows, what = wanted(folder, classes, ids, update)
    live = folder.version(folder.live())
    line = line_of(folder, live)
    held = [version for version in line if holds(folder, version, rows)]
    if not held:
        new, way = live, "nothing was learned of it"
    elif can_subtract(shop, line, held):
        say(f"{len(rows):,} examples are subtracted from the sums of the head.")
        new, way = subtracted(shop, live, held, rows, examples), "subtracted"
    else:
        after = line[line.index(held[0]) :]
        say(f"{len(after)} updates are learned again without {len(rows):,} examples.")
        new, way = learned_again(shop, folder.version(str(held[0]["parent"])), after, rows), "learned again"
    number = folder.order().index(new["id"])
    retired = tuple(name for name in folder.order() if name != new["id"] and has_seen(folder, name, rows))
    certificate = Certificate(what, way, tuple(sorted(rows)), new["id"], number, retired, now(), actor())  # type: ignore[arg-type]
    name = folder.put("certificates", asdict(certificate))
    if new["id"] == live["id"]:
        folder.log.add("forgot", version=new["id"], certificate=name, retired=list(retired), at=now(), actor=actor())
    else:
        folder.move(new["id"], "forgot", command, certificate=name, retired=list(retired), reason=what)
    drop_feedback(folder.path, is_forgotten(rows, set(classes)))
    clear(folder, shop.config.policy)
    return certificate


def wanted(
    folder: Folder, classes: Sequence[str], ids: Sequence[str], update: str | int | None
) -> tuple[set[str], str]:
    """The hashes of the examples that are meant, and what they are in words."""
    everything: list[tuple[str, str]] = []
    for room in ("data", "suites"):
        everything += [(row, answer) for name in folder.names(room) for row, answer in folder.get(room, name)["rows"]]
    short = [one for one in ids if len(one) < 12]
    if short:
        raise ConfigError(f"{short[0]!r} is too short to name an example; give at least 12 signs of its hash")
    rows = {row for row, answer in everything if answer in set(classes)}
    rows |= {row for row, _ in everything if any(row.startswith(one) for one in ids)}
    said = [*(f"class {name}" for name in classes), *([f"{len(ids):,} ids"] if ids else [])]
    if update is not None:
        version = folder.version(folder.find(update))
        for room, name in (("data", version["data"]), ("suites", version["suite"])):
            rows |= {row for row, _ in folder.get(room, name)["rows"]} if name else set()
        said.append(f"update {version['name']}")
    if not rows:
        raise ConfigError(f"nothing of {', '.join(said) or 'this'} was ever learned or tested; check the names")
    return rows, ", ".join(said)


def holds(folder: Folder, version: Record, rows: set[str]) -> bool:
    """Whether a version's own data have one of the examples."""
    name = version["data"]
    return bool(name) and folder.has("data", name) and any(row in rows for row, _ in folder.get("data", name)["rows"])


def has_seen(folder: Folder, name: str, rows: set[str]) -> bool:
    """Whether a version or one of its ancestors has learned one of the examples."""
    return any(holds(folder, version, rows) for version in line_of(folder, folder.version(name)))


def can_subtract(shop: Workshop, line: Sequence[Record], held: Sequence[Record]) -> bool:
    """Whether what was learned is in the head's sums alone."""
    learner = shop.at(line[-1])
    method = learner.method
    if method.rules or method.router is not None or not method.head.closed_form:
        return False
    first = next((version for version in line if version["data"] is not None), None)
    trained_once = method.adapt != "every-task" and first not in held
    return method.adapter.lifetime is Lifetime.NOTHING or trained_once


def subtracted(shop: Workshop, live: Record, held: Sequence[Record], rows: set[str], examples: Any) -> Record:
    """The live version without some examples in its sums."""
    folder = shop.folder
    learner = shop.fresh(live)
    for version in held:
        learner.forget(part(given_or_kept(shop, version, examples), rows))
    forgot = digest({"forgot": sorted(rows)})
    new = version_id(live["id"], forgot, live["config"], contune.__version__)
    suites = [suite_without(shop, suite, rows) for suite in live["suites"]]
    kept = [suite for suite in suites if suite is not None]
    asked = {suite: ask_suite(shop, learner, suite, None) for suite in kept}
    answers = {suite: put_answers(folder, found) for suite, found in asked.items() if found is not None}
    state = folder.states.put(learner.state())  # shares nothing with versions that held them
    manifest = {
        **live, "id": new, "parent": live["id"], "kind": "forget", "name": "forgotten", "data": None, "forgot": forgot,
        "suite": None, "before": None, "state": state, "suites": kept, "answers": answers, "found": {},
        "at": now(), "actor": actor(), "cost": learner.ledger.values(),
    }  # fmt: skip
    folder.put_version(manifest)
    return manifest


def given_or_kept(shop: Workshop, version: Record, examples: Any) -> Task:
    """What an update learned: as it was kept, or given again, of which only what it had learned counts."""
    if examples is None:
        return learned_task(shop.folder, version["data"])
    task, _ = one_task(examples, version["name"], shop.config)
    learned = {row for row, _ in shop.folder.get("data", version["data"])["rows"]}
    return part(task, learned)


def part(task: Task, rows: set[str]) -> Task:
    """The training examples of a task with one of these hashes."""
    chosen = [at for at, name in enumerate(input_hashes(task.train)) if name in rows]
    if not chosen:
        raise ConfigError("the examples to forget are not among those given; give them as they were learned")
    return only_classes(replace(task, train=task.train.take(chosen), test=task.test.take([])))


def learned_again(shop: Workshop, base: Record, after: Sequence[Record], rows: set[str]) -> Record:
    """What came after a version, learned again without some examples."""
    tasks = [(version, learned_task(shop.folder, version["data"])) for version in after if version["data"]]
    version = base
    for old, task in tasks:
        found = arrived_without(shop, old, task, rows)
        if found is not None:
            version = make_version(shop, version, found)
    return version


def arrived_without(shop: Workshop, old: Record, task: Task, rows: set[str]) -> Arrived | None:
    """An update as it would have come without some examples; None where nothing is left of it."""
    record = shop.folder.get("data", old["data"])
    left = [at for at, (row, _) in enumerate(record["rows"]) if row not in rows]
    if not left:
        return None
    learned = tuple((row, answer) for row, answer in (record["rows"][at] for at in left))
    train = task.train.take(left)
    made = only_classes(Task(task.name, task.class_names, train, train.take([])))
    suite, tested = suite_rows(shop.folder, old["suite"], rows) if old["suite"] else (None, ())
    if suite is None:
        suite = Task(task.name, (), train.take([]), train.take([]))
    counts: Mapping[str, int] = {**old["found"], "learned": len(learned), "tested": len(tested)}
    return Arrived(made, suite, learned, tested, Counted(**counts))


def suite_rows(folder: Folder, suite: str, rows: set[str]) -> tuple[Task | None, tuple[tuple[str, str], ...]]:
    """A suite without some examples; None where it was not kept or nothing is left."""
    record = folder.get("suites", suite)
    left = [at for at, (row, _) in enumerate(record["rows"]) if row not in rows]
    if record["state"] is None or not left:
        return None, ()
    task = suite_task(folder, suite)
    kept = only_classes(replace(task, test=task.test.take(left)))
    return kept, tuple((row, answer) for row, answer in (record["rows"][at] for at in left))


def suite_without(shop: Workshop, suite: str, rows: set[str]) -> str | None:
    """The name of a suite without some examples: its own where it has none of them."""
    record = shop.folder.get("suites", suite)
    if not any(row in rows for row, _ in record["rows"]):
        return suite
    task, tested = suite_rows(shop.folder, suite, rows)
    if task is None:
        return None
    counts = Counted(0, len(tested), 0, 0, 0, 0, 0)
    return put_suite(shop, Arrived(task, task, (), tested, counts), record["task"])
