"""What there was: versions, what they learned, gained and forgot, who moved them, what two of them answer otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from contune.contract.state import examples_from_state
from contune.living.config import LivingConfig, Policy
from contune.living.gate.decide import RIGHT
from contune.living.gating import verdict_of
from contune.living.learning import get_answers, mean_score
from contune.living.store.folder import MOVES, Folder, Record

MOST_SHOWN = 80  # characters of an example


@final
@dataclass(frozen=True)
class Row:
    """One version.

    `gain`: what its own suite gained over the version that answered then; `forgetting`: the mean over earlier suites of
    their best score in this line less the score now; `accuracy`: the mean over all its suites. All three are shares, None
    where nothing measures them. `served`: from when to when it answered. `kept`: what stays of its examples.
    """

    number: int
    id: str
    name: str
    kind: str
    parent: int | None
    at: str
    actor: str
    live: bool
    retired: bool
    learned: int
    tested: int
    outcome: str | None
    sentence: str
    gain: float | None
    forgetting: float | None
    accuracy: float | None
    served: tuple[tuple[str, str | None], ...]
    reasons: tuple[str, ...]
    kept: str

    def values(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def history(folder: Folder, config: LivingConfig) -> list[Row]:
    """All versions, the oldest first."""
    order, live, retired = folder.order(), folder.live(), folder.retired()
    lines = folder.log.lines()
    times = served(lines, order[0])
    versions = {name: folder.version(name) for name in order}
    scores = {name: {} if name in retired else scores_of(folder, one) for name, one in versions.items()}
    found = []
    for number, (name, version) in enumerate(versions.items()):
        verdict, counts = verdict_of(folder, lines, name), version["found"]
        new = [one for one in verdict.compared if one.new and ": " not in one.name] if verdict else []
        means, before = list(scores[name].values()), [scores[one] for one in ancestors(versions, name)]
        parent = None if version["parent"] is None else order.index(version["parent"])
        said = [str(line.get("reason", "")) for line in lines if line["event"] in MOVES and line["version"] == name]
        found.append(
            Row(
                number, name, version["name"], version["kind"], parent, version["at"], version["actor"], name == live,
                name in retired, counts.get("learned", 0), counts.get("tested", 0),
                verdict.outcome if verdict else None, verdict.sentence if verdict else "",
                new[0].candidate - new[0].live if new else None,
                forgetting(before, scores[name]), sum(means) / len(means) if means else None,
                tuple(times.get(name, ())), tuple(said), kept(folder, version, config.policy),
            )
        )  # fmt: skip
    return found


def scores_of(folder: Folder, version: Record) -> dict[str, float]:
    """The mean score of a version on each of its suites that it was asked about."""
    found = {suite: mean_score(get_answers(folder, name)) for suite, name in version["answers"].items()}
    return {suite: value for suite, value in found.items() if value is not None}


def line_of(folder: Folder, version: Record) -> list[Record]:
    """A version's ancestors and itself, the oldest first."""
    found = [version]
    while found[0]["parent"] is not None:
        found.insert(0, folder.version(found[0]["parent"]))
    return found


def ancestors(versions: Mapping[str, Record], name: str) -> list[str]:
    """The versions that one follows from, the newest first."""
    found = []
    while (parent := versions[name]["parent"]) is not None:
        found.append(parent)
        name = parent
    return found


def forgetting(before: Sequence[Mapping[str, float]], now: Mapping[str, float]) -> float | None:
    """Mean over the suites of earlier versions of the best score, theirs or now, less the score now.

    >>> forgetting([{"may": 0.9}, {"may": 0.8}], {"may": 0.5, "june": 1.0})
    0.4
    """
    lost = [
        max(max(then[suite] for then in before if suite in then), now[suite]) - now[suite]
        for suite in now
        if any(suite in then for then in before)
    ]
    return sum(lost) / len(lost) if lost else None


def served(lines: Sequence[Mapping[str, Any]], first: str) -> dict[str, list[tuple[str, str | None]]]:
    """From when to when each version answered; the one that answers now has no end."""
    moves = [(line["version"], line["at"]) for line in lines if line["event"] in MOVES]
    made = next((line["at"] for line in lines if line["event"] == "made"), "")
    begins = [(first, made), *moves]
    found: dict[str, list[tuple[str, str | None]]] = {}
    for at, (name, start) in enumerate(begins):
        end = begins[at + 1][1] if at + 1 < len(begins) else None
        found.setdefault(name, []).append((start, end))
    return found


def kept(folder: Folder, version: Record, policy: Policy) -> str:
    """What stays on the disk of the examples of a version, in words."""
    raw = version["data"] is not None and folder.has("data", version["data"])
    stays = "raw" if raw and folder.get("data", version["data"])["state"] else "hashes"
    tests = "raw" if version["suite"] and folder.get("suites", version["suite"])["state"] else "hashes"
    days = f", {policy.days} days" if policy.days and stays == "raw" else ""
    return f"learned: {stays if raw else 'nothing'}{days}; tested: {tests if version['suite'] else 'nothing'}"


@final
@dataclass(frozen=True)
class Changed:
    """One example that the second version answers otherwise; `shown` is its beginning, where it was kept and is text."""

    suite: str
    id: str
    shown: str
    label: str
    before: str
    after: str
    flip: str


@final
@dataclass(frozen=True)
class Flips:
    """So many examples of a suite or a class, both scores, and the flips."""

    name: str
    n: int
    before: float
    after: float
    lost: int
    won: int


@final
@dataclass(frozen=True)
class Difference:
    """What two versions answer otherwise on the suites that both were asked about."""

    first: int
    second: int
    suites: tuple[Flips, ...]
    classes: tuple[Flips, ...]
    changed: tuple[Changed, ...]

    def values(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def difference(folder: Folder, first: str, second: str) -> Difference:
    """Compare the stored answers of two versions."""
    one, other = folder.version(first), folder.version(second)
    answers = answers_with_gate(folder, one, other)
    suites, changed = [], []
    by_class: dict[str, list[tuple[float, float]]] = {}
    for suite in other["answers"]:
        if suite not in answers:
            continue
        record = folder.get("suites", suite)
        before, after = get_answers(folder, answers[suite]), get_answers(folder, other["answers"][suite])
        suites.append(flips(record["name"], list(zip(before["score"], after["score"], strict=True))))
        for (_, label), *pair in zip(record["rows"], before["score"], after["score"], strict=True):
            by_class.setdefault(label, []).append((pair[0], pair[1]))
        changed += changes(folder, record, before, after)
    order = folder.order()
    classes = tuple(flips(name, pairs) for name, pairs in sorted(by_class.items()))
    return Difference(order.index(first), order.index(second), tuple(suites), classes, tuple(changed))


def answers_with_gate(folder: Folder, one: Record, other: Record) -> dict[str, str]:
    """A version's stored answers, and those it gave at the gate to the suite of another one."""
    found: dict[str, str] = dict(one["answers"])
    for name in folder.names("gates"):
        record = folder.get("gates", name)
        if record["live"] == one["id"] and record["candidate"] == other["id"]:
            found |= record["answers"]
    return found


def flips(name: str, pairs: Sequence[tuple[float, float]]) -> Flips:
    """Pairs of scores, counted.

    >>> flips("cat", [(1.0, 0.0), (1.0, 1.0)])
    Flips(name='cat', n=2, before=1.0, after=0.5, lost=1, won=0)
    """
    n = max(len(pairs), 1)
    lost = sum(before >= RIGHT > after for before, after in pairs)
    won = sum(after >= RIGHT > before for before, after in pairs)
    return Flips(name, len(pairs), sum(b for b, _ in pairs) / n, sum(a for _, a in pairs) / n, lost, won)


def changes(folder: Folder, record: Record, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Changed]:
    """The examples of a suite that are answered otherwise."""
    found, n = [], len(record["rows"])
    texts = shown_inputs(folder, record)
    old, new = (one.get("prediction", one["score"]) for one in (before, after))
    for at in range(n):
        if old[at] == new[at]:
            continue
        was, is_now = before["score"][at] >= RIGHT, after["score"][at] >= RIGHT
        flip = "same" if was == is_now else "won" if is_now else "lost"
        name, label = record["rows"][at]
        said, says = ("–" if value is None else str(value) for value in (old[at], new[at]))
        found.append(Changed(record["name"], name[:12], texts[at], label, said, says, flip))
    return found


def shown_inputs(folder: Folder, record: Record) -> list[str]:
    """The beginnings of a suite's examples, where they were kept and are texts."""
    if record["state"] is None:
        return [""] * len(record["rows"])
    inputs = examples_from_state(folder.states.get(record["state"])).inputs
    return [one[:MOST_SHOWN] if isinstance(one, str) else "" for one in inputs]
