"""Is every byte what was written, and is anything there that nobody needs?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, final

from contune.errors import RunDirectoryError
from contune.living.config import Policy
from contune.living.data.sides import data_id
from contune.living.store.feedback import drop_old_feedback
from contune.living.store.folder import RECORDS, Folder, Record, version_id
from contune.living.store.log import last
from contune.living.store.sealed import sha256
from contune.living.sweeping import needed_data, sweep, unswept
from contune.living.updating import suite_id


@final
@dataclass(frozen=True)
class Cleared:
    """What `gc` has dropped: blocks with their bytes, records, and updates whose raw examples are over."""

    objects: int
    bytes: int
    records: int
    expired: int


def problems(folder: Folder) -> list[str]:
    """What is not as it was written, each a sentence."""
    found: list[str] = []

    def check(step: Callable[[], Any]) -> None:
        try:
            found.extend(step() or ())
        except (RunDirectoryError, OSError, KeyError, ValueError) as error:
            found.append(str(error))

    steps = [lambda: folder.config() and (), lambda: log_problems(folder), lambda: pointer_problems(folder)]
    for step in steps:
        check(step)
    for room in RECORDS:
        for name in folder.names(room):
            check(lambda room=room, name=name: record_problems(folder, room, name))  # type: ignore[misc]
    if found:  # what refers to what cannot be told before the records are whole
        return found + [problem for name in folder.objects.names() if (problem := object_problem(folder, name))]
    found += object_problems(folder)
    check(lambda: unswept(folder))
    check(lambda: retired_problems(folder))
    return found


def retired_problems(folder: Folder) -> list[str]:
    """Certificates hold: what versions that held forgotten examples had for themselves is gone, and none of them answers."""
    uses, live, found = used(folder), folder.live(), []
    for name in sorted(folder.retired()):
        version = folder.version(name)
        own = [block for block in (version["state"], *version["answers"].values()) if block and block not in uses]
        if any(folder.objects.path(block).exists() for block in own):
            found.append(
                f"blocks of version {version['name']!r}, which held what was forgotten, are still there; run contune gc"
            )
        if name == live:
            found.append(
                f"version {version['name']!r} answers, though it held what was forgotten; roll back to another"
            )
    return found


def log_problems(folder: Folder) -> list[str]:
    """A chain that is whole, and no line without its end."""
    lines = folder.log.lines()
    whole = folder.log.path.read_bytes().endswith(b"\n")
    missing = [
        line["version"] for line in lines if line["event"] == "made" and not folder.has("versions", line["version"])
    ]
    said = [f"version {name[:12]} is in the log, but its record is gone" for name in missing]
    return said if whole else [*said, f"{folder.log.path} ends in a line that was never finished"]


def pointer_problems(folder: Folder) -> list[str]:
    """The pointer and the last line about it agree."""
    live, intent = folder.live(), folder.intent()
    moved = last(folder.log.lines(), "promoted", "rolled back", "forgot")
    said = folder.order()[0] if moved is None else moved["version"]
    if said == live or (intent is not None and intent["to"] == live):
        return []
    return [f"refs/live names {live[:12]}, but the log says that {said[:12]} answers"]


def record_problems(folder: Folder, room: str, name: str) -> list[str]:
    """A record is whole, and called what it holds."""
    record = folder.get(room, name)
    expected = name
    if room == "versions" and record["kind"] in ("update", "forget"):
        expected = version_id(record["parent"], record["data"] or record["forgot"], record["config"], record["code"])
    if room == "data" and not record.get("swept"):
        expected = data_id(record["name"], record["class_names"], record["rows"])
    if room == "suites" and not record.get("swept"):
        expected = suite_id(record["name"], record["class_names"], record["task"], record["rows"])
    return [] if expected == name else [f"{folder.path / room / name}.json is not called what it holds"]


def object_problem(folder: Folder, name: str) -> str | None:
    """Why a block cannot be read, or None."""
    try:
        folder.objects.get(name)
    except RunDirectoryError as error:
        return str(error)
    return None


def object_problems(folder: Folder) -> list[str]:
    """Blocks that are damaged or gone, each with the versions that it touches."""
    uses = used(folder)
    there = set(folder.objects.names())
    found = []
    for name in sorted(there | set(uses)):
        problem = object_problem(folder, name)
        if problem is not None:
            touched = ", ".join(sorted(uses.get(name, ()))) or "none"
            found.append(f"{problem}; versions it touches: {touched}")
    return found


def used(folder: Folder) -> dict[str, set[str]]:
    """Every block that is needed, and the versions that need it by number and name."""
    found: dict[str, set[str]] = {}
    retired = folder.retired()
    needed = needed_data(folder)
    for number, name in enumerate(folder.order()):
        version = folder.version(name)
        if name in retired:
            blocks = state_blocks(folder, version["data"], "data") if version["data"] in needed else iter(())
        else:
            blocks = blocks_of(folder, version)
        for block in blocks:
            found.setdefault(block, set()).add(f"{number} ({version['name']})")
    return found


def blocks_of(folder: Folder, version: Record) -> Iterator[str]:
    """The blocks of a version: its state, answers, suites and data, and what the live version answered at its gate."""
    yield from parts_of(folder, version["state"])
    for room, name in [*(("suites", one) for one in version["suites"]), ("data", version["data"])]:
        yield from state_blocks(folder, name, room)
    yield from version["answers"].values()
    if version["before"]:
        yield version["before"]
    for gate in folder.names("gates"):
        record = folder.get("gates", gate)
        if version["id"] in (record["candidate"], record["live"]):
            yield from record["answers"].values()


def state_blocks(folder: Folder, name: str | None, room: str) -> Iterator[str]:
    """The blocks of the examples of a suite or of data, where they are kept."""
    if name is not None and folder.has(room, name):
        yield from parts_of(folder, folder.get(room, name)["state"])


def parts_of(folder: Folder, state: str | None) -> Iterator[str]:
    """The blocks of a state, its record first; of a damaged record that alone."""
    if state is None:
        return
    yield state
    try:
        yield from folder.states.parts(state)
    except (RunDirectoryError, ValueError):
        return  # which is said of the record itself


def clear(folder: Folder, policy: Policy) -> Cleared:
    """Drop what no version needs: first records, then blocks, so that nothing that is kept ever lacks anything."""
    sweep(folder)
    expired = expire(folder, policy)
    records = 0
    made = {name: folder.version(name) for name in folder.order()}
    needed = {
        "versions": set(made),
        "suites": {suite for version in made.values() for suite in version["suites"]},
        "data": {version["data"] for version in made.values()},
    }
    for room, names in needed.items():
        for name in set(folder.names(room)) - names:
            (folder.path / room / f"{name}.json").unlink()
            records += 1
    uses = used(folder)
    dropped = [name for name in folder.objects.names() if name not in uses]
    size = sum(folder.objects.size(name) for name in dropped)
    for name in dropped:
        folder.objects.remove(name)
    for rest in folder.path.rglob(".*.tmp"):
        rest.unlink()
    return Cleared(len(dropped), size, records, expired)


def expire(folder: Folder, policy: Policy) -> int:
    """Let go of raw learned examples that are older than the policy's days; how many updates that was."""
    if policy.days is None:
        return 0
    oldest = datetime.now(UTC) - timedelta(days=policy.days)
    count = 0
    drop_old_feedback(folder.path, oldest.strftime("%Y-%m-%d"))
    for name in folder.names("data"):
        record = folder.get("data", name)
        if record["state"] is not None and datetime.fromisoformat(record["at"]) < oldest:
            folder.replace("data", name, {**record, "state": None})
            count += 1
    return count


def sizes(folder: Folder) -> Mapping[str, int]:
    """`unique`: bytes of all blocks of states; `total`: what the states of all versions would take one by one."""
    names: set[str] = set()
    total = 0
    for name in folder.order():
        state = folder.version(name)["state"]
        if state is not None and name not in folder.retired():
            names |= folder.states.parts(state)
            total += folder.states.get(state).nbytes()
    return {"unique": sum(folder.objects.size(name) for name in names), "total": total}


def checksum(folder: Folder) -> str:
    """One hash of all files but the lock, to compare two folders by."""
    files = sorted(path for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock")
    return sha256("\n".join(f"{path.relative_to(folder.path)} {sha256(path.read_bytes())}" for path in files).encode())
