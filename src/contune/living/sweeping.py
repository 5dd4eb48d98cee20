"""What was forgotten leaves every record: data, suites, answers. Driven by the certificates, and harmless when repeated."""

from contune.contract.state import examples_from_state, examples_state
from contune.living.store.feedback import drop_feedback, is_forgotten
from contune.living.store.folder import Folder, Record

GONE = "forgotten"


def forgotten(folder: Folder) -> set[str]:
    """The hashes of all rows that certificates in force say were forgotten."""
    named = {line["certificate"] for line in folder.log.lines() if line["event"] == "forgot"}
    return {row for name in named for row in folder.get("certificates", name)["rows"]}


def sweep(folder: Folder) -> None:
    """Take what was forgotten out of all records of what was learned and what tests."""
    rows = forgotten(folder)
    if not rows:
        return
    drop_feedback(folder.path, is_forgotten(rows))
    for room in ("data", "suites"):
        for name in folder.names(room):
            record = folder.get(room, name)
            if any(row in rows for row, _ in record["rows"]):
                folder.replace(room, name, without(folder, record, rows))
    needed = needed_data(folder)
    for name in folder.names("data"):
        record = folder.get("data", name)
        if record["state"] is not None and name not in needed:
            folder.replace("data", name, {**record, "state": None})


def needed_data(folder: Folder) -> set[str]:
    """The data of all versions that can be used, and of their ancestors: what may have to be learned again."""
    needed: set[str] = set()
    for name in set(folder.order()) - folder.retired():
        version: Record | None = folder.version(name)
        while version is not None:
            needed |= {version["data"]} - {None}
            version = folder.version(version["parent"]) if version["parent"] else None
    return needed


def without(folder: Folder, record: Record, rows: set[str]) -> Record:
    """A record without forgotten rows.

    What was learned is cut to what is left. In a suite the rows are blank, so that stored answers keep their places, and its
    examples go: it is asked no more, and newer versions have one of their own without them.
    """
    if "task" in record:
        blank = [[GONE, GONE] if row in rows else [row, answer] for row, answer in record["rows"]]
        return {**record, "rows": blank, "state": None, "swept": True}
    left = [at for at, (row, _) in enumerate(record["rows"]) if row not in rows]
    state = record["state"]
    if state is not None:
        examples = examples_from_state(folder.states.get(state))
        state = folder.states.put(examples_state(examples.take(left))) if left else None
    return {**record, "rows": [record["rows"][at] for at in left], "state": state, "swept": True}


def unswept(folder: Folder) -> list[str]:
    """Records that still hold what was forgotten."""
    rows = forgotten(folder)
    return [
        f"{folder.path / room / name}.json still holds what was forgotten; run contune gc {folder.path}"
        for room in ("data", "suites")
        for name in folder.names(room)
        if any(row in rows for row, _ in folder.get(room, name)["rows"])
    ]
