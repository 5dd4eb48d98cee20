"""One update: from what came in to a candidate on the disk. Nothing here moves the pointer.

```text
read      every row checked                                     contune.living.data.read
sides     learned, frozen to test, left out; counted and said   contune.living.data.sides
learn     a learner where the live version stands               contune.engine.learner
ask       every suite of this line                              contune.living.learning
write     blocks, suite, data, and last the version's record    contune.living.store
```
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import contune
from contune.living.data.sides import Arrived, Seen, data_id
from contune.living.gate.decide import Outcome, Verdict
from contune.living.learning import (
    Workshop,
    ask,
    put_answers,
    put_task,
    require_policy,
    suite_task,
)
from contune.living.store.folder import Folder, Record, actor, now, version_id
from contune.living.store.sealed import digest
from contune.stream.task import Task


@final
@dataclass(frozen=True)
class Update:
    """What became of an update: the version's `number`, `id` and `name`, what was found in the data, and the gate's verdict.

    `promoted`: it answers now. `outcome` is None where the gate was not asked. `again`: it had been made before.
    """

    number: int
    id: str
    name: str
    promoted: bool
    outcome: Outcome | None
    sentence: str
    found: tuple[str, ...]
    again: bool = False


def seen_before(folder: Folder, parent: Record) -> Seen:
    """What was learned and what tests in all versions there are; what tests in this line."""
    learned: dict[str, set[str]] = {}
    tested: set[str] = set()
    for name in folder.order():
        version = folder.version(name)
        if version["data"] is not None and folder.has("data", version["data"]):
            for row, answer in folder.get("data", version["data"])["rows"]:
                learned.setdefault(row, set()).add(answer)
        for suite in version["suites"]:
            if folder.has("suites", suite):
                tested |= {row for row, _ in folder.get("suites", suite)["rows"]}
    here = {row for suite in parent["suites"] for row, _ in folder.get("suites", suite)["rows"]}
    return Seen(learned, tested, here)


def root_version(config: str, state: str | None, classes: list[str], kind: str) -> Record:
    """Version 0."""
    own = {"kind": kind, "name": "start", "data": None, "suite": None, "state": state}
    asked: Record = {"suites": [], "answers": {}, "before": None, "classes": classes}
    made = {"parent": None, "config": config, "code": contune.__version__, "at": now(), "actor": actor()}
    data = None if state is None else digest(state)
    name = version_id(None, data, config, contune.__version__)
    return {"id": name, **own, **asked, **made, "found": {}, "cost": {}}


def id_after(folder: Folder, parent: Record, data: str) -> str:
    """The id of the version that these data make of another one."""
    return version_id(parent["id"], data, folder.config()["id"], contune.__version__)


def make_version(shop: Workshop, parent: Record, arrived: Arrived) -> Record:
    """Learn, ask, write; gives the version's record. One that is there already is not made again."""
    folder, name = shop.folder, arrived.task.name
    new = id_after(folder, parent, arrived.data_id)
    if folder.has("versions", new):
        folder.put_version(folder.version(new))
        return folder.version(new)
    learner = shop.fresh(parent)
    place = learner.learned
    before = put_answers(folder, ask(learner, arrived.suite, place)) if arrived.tested else None
    shop.learn(learner, arrived.task)
    state = learner.state()
    require_policy(state, shop.config.policy, shop.config)
    kept = folder.states.put(state, parent["state"])
    put_data(shop, arrived)
    suites = list(parent["suites"])
    own = put_suite(shop, arrived, place) if arrived.tested else None
    suites += [] if own is None or own in suites else [own]
    asked = {one: ask_suite(shop, learner, one, arrived.suite if one == own else None) for one in suites}
    answers = {one: put_answers(folder, found) for one, found in asked.items() if found is not None}
    manifest = {
        "id": new, "parent": parent["id"], "kind": "update", "name": name, "data": arrived.data_id, "suite": own,
        "config": parent["config"], "code": contune.__version__, "state": kept, "suites": suites, "answers": answers,
        "before": before, "classes": list(learner.class_names), "found": asdict(arrived.counted),
        "at": now(), "actor": actor(), "cost": learner.ledger.values(),
    }  # fmt: skip
    folder.put_version(manifest)
    shop.keep(manifest, learner)
    return manifest


def put_data(shop: Workshop, arrived: Arrived) -> None:
    """Write down what is learned: hashes and answers, and the examples where they may be kept."""
    folder = shop.folder
    if folder.has("data", arrived.data_id):
        return
    raw = put_task(folder, arrived.task) if shop.config.policy.allows_raw else None
    own = {"name": arrived.task.name, "class_names": list(arrived.task.class_names)}
    rows = [list(row) for row in arrived.learned]
    folder.put("data", {"id": arrived.data_id, **own, "rows": rows, "state": raw, "at": now()}, arrived.data_id)


def put_suite(shop: Workshop, arrived: Arrived, place: int) -> str:
    """Freeze what tests an update."""
    folder = shop.folder
    own = {"name": arrived.suite.name, "class_names": list(arrived.suite.class_names), "task": place}
    rows = [list(row) for row in arrived.tested]
    raw = put_task(folder, arrived.suite) if shop.config.policy.suites == "raw" else None
    name = suite_id(own["name"], arrived.suite.class_names, place, rows)  # type: ignore[arg-type]
    return folder.put("suites", {"id": name, **own, "rows": rows, "state": raw, "at": now()}, name)


def suite_id(name: str, class_names: Any, place: int, rows: Any) -> str:
    """What a suite is called."""
    return digest({"data": data_id(name, class_names, rows), "task": place})


def ask_suite(shop: Workshop, learner: Any, suite: str, given: Task | None) -> Mapping[str, Any] | None:
    """A learner's answers to a suite; None where its examples are nowhere any more."""
    record = shop.folder.get("suites", suite)
    if given is None and record["state"] is None:
        return None
    return ask(learner, given or suite_task(shop.folder, suite), record["task"])


def told(folder: Folder, version: Record, verdict: Verdict | None, found: tuple[str, ...], again: bool) -> Update:
    """What became of an update."""
    number, live = folder.order().index(version["id"]), folder.live()
    outcome, sentence = (None, "") if verdict is None else (verdict.outcome, verdict.sentence)
    return Update(number, version["id"], version["name"], live == version["id"], outcome, sentence, found, again)
