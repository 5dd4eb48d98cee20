"""The gate asked about a candidate: both versions' answers to the same suites, the verdict, its record."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from contune.errors import ConfigError
from contune.living.gate.decide import Suite, Verdict, decide
from contune.living.gate.power import power_of
from contune.living.gate.rules import GateRules
from contune.living.learning import Answers, Workshop, get_answers, put_answers
from contune.living.store.folder import Folder, Record, actor, now
from contune.living.store.sealed import digest
from contune.living.updating import ask_suite
from contune.stream.task import Task

Say = Callable[[str], None]


def gate_id(live: str, candidate: str, rules: GateRules) -> str:
    """What the record of a verdict is called: other rules make another one."""
    return digest({"live": live, "candidate": candidate, "rules": rules.model_dump(mode="json")})


def ask_gate(shop: Workshop, candidate: Record, say: Say, new: Task | None = None) -> Verdict:
    """Whether a candidate may take the live version's place; says what could be found before it looks.

    `new` is the candidate's own suite where its examples were not kept.
    """
    folder = shop.folder
    live = folder.version(folder.live())
    if live["id"] == candidate["id"]:
        raise ConfigError(f"version {candidate['name']!r} answers already; name another candidate")
    asked = [suite for suite in candidate["suites"] if suite in candidate["answers"]]
    before = {suite: answers for suite in asked if (answers := live_answers(shop, live, candidate, suite, new))}
    suites = [suite_of(folder, live, candidate, suite, before[suite], shop.config.gate.slices) for suite in before]
    say(power_of([len(suite.live) for suite in suites if not suite.new], shop.config.gate).sentence)
    verdict = decide(suites, shop.config.gate)
    own = {suite: put_answers(folder, found) for suite, found in before.items() if suite not in live["answers"]}
    made = {"live": live["id"], "candidate": candidate["id"], "at": now(), "actor": actor(), "suites": list(before)}
    name = gate_id(live["id"], candidate["id"], shop.config.gate)
    if not folder.has("gates", name):
        folder.put("gates", {**made, "verdict": verdict.values(), "answers": own}, name)
        folder.log.add("gate", version=candidate["id"], live=live["id"], gate=name, outcome=verdict.outcome, at=now())
    return verdict


def live_answers(shop: Workshop, live: Record, candidate: Record, suite: str, new: Task | None) -> Answers | None:
    """What the live version answers: as it was stored when it was made, else asked now."""
    if suite in live["answers"]:
        return get_answers(shop.folder, live["answers"][suite])
    if suite == candidate["suite"] and candidate["before"] and candidate["parent"] == live["id"]:
        return get_answers(shop.folder, candidate["before"])
    given = new if suite == candidate["suite"] else None
    return ask_suite(shop, shop.at(live), suite, given)


def suite_of(folder: Folder, live: Record, candidate: Record, suite: str, before: Answers, slices: str) -> Suite:
    """The scores of both on one suite."""
    record = folder.get("suites", suite)
    after = get_answers(folder, candidate["answers"][suite])
    parts: dict[str, Any] = {}
    if slices == "classes":
        for at, (_, answer) in enumerate(record["rows"]):
            parts.setdefault(answer, []).append(at)
    old, new = (np.array(found["score"], dtype=np.float64) for found in (before, after))
    return Suite(record["name"], old, new, suite not in live["suites"], parts if len(parts) > 1 else {})


def verdict_of(folder: Folder, lines: Sequence[Record], name: str) -> Verdict | None:
    """The last verdict about a version, by the lines of the log."""
    found = [line["gate"] for line in lines if line["event"] == "gate" and line["version"] == name]
    return Verdict.of(folder.get("gates", found[-1])["verdict"]) if found else None
