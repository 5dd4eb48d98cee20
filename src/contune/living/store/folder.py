"""A living model's folder: what is in it, and how it goes from one version to the next, whatever a command is killed at.

```text
config.json            what never changes: model, method, policy, gate
objects/               blocks of tensors and texts, by their hash
versions/ID.json       one version each: parent, data, suites, answers, and the record of its state
suites/ID.json         one frozen test set each
data/ID.json           what one update learned, by hash
gates/ID.json          one verdict each
certificates/ID.json   what was forgotten, and how
log.jsonl              everything that happened, line after line, each with the hash of the one before
refs/live              the version that answers; replaced by one rename
intent.json            the move of that pointer that is being made
```

Everything a version needs is on the disk before its own record is; its record is there before the pointer can move.
"""

import getpass
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from contune._files import fresh_folder, lock, write_bytes
from contune.errors import ConfigError, RunDirectoryError
from contune.living.store.log import Log, last
from contune.living.store.objects import Objects
from contune.living.store.sealed import canonical, digest, read_sealed, sealed, sha256
from contune.living.store.states import States

RECORDS = ("versions", "suites", "data", "gates", "certificates")
MOVES = ("promoted", "rolled back", "forgot")
Record = dict[str, Any]


def version_id(parent: str | None, data: str | None, config: str, code: str) -> str:
    """What a version is called: the hash of all that it follows from."""
    return digest({"parent": parent, "data": data, "config": config, "code": code})


@final
class Folder:
    """The files. Writing needs the lock; reading needs nothing, because no file is ever changed in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects = Objects(path / "objects")
        self.states = States(self.objects)
        self.log = Log(path / "log.jsonl")

    @staticmethod
    def create(path: Path, config: Mapping[str, Any], root: Callable[["Folder"], Mapping[str, Any]]) -> "Folder":
        """A new folder with version 0, whole or not at all; `root` writes what that version holds and gives its record."""
        with fresh_folder(path) as temporary:
            for name in ("objects", "refs", *RECORDS):
                (temporary / name).mkdir()
            new = Folder(temporary)
            write_bytes(temporary / "config.json", sealed(config))
            first = new.put_version(root(new))
            write_bytes(temporary / "refs" / "live", first.encode() + b"\n")
        return Folder(path)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a path is such a folder."""
        return (path / "refs" / "live").is_file()

    @staticmethod
    def open(path: Path) -> "Folder":
        """The folder at a path."""
        if not Folder.is_one(path):
            raise RunDirectoryError(
                f"{path} is no living model: it has no refs/live; make one with contune create {path} --model MODEL"
            )
        return Folder(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out."""
        with (self.path / ".lock").open("w") as file:
            lock(file, f"{self.path} is being changed by another contune process; wait for it, or stop it first")
            yield

    def config(self) -> Record:
        """What the folder was made with."""
        return read_sealed(self.path / "config.json")

    # Records

    def put(self, room: str, value: Mapping[str, Any], name: str | None = None) -> str:
        """Write a record and give its name, which is its hash unless one is given; one that is there stays."""
        name = name or digest(value)
        path = self.path / room / f"{name}.json"
        if not path.exists():
            self.objects.flush()
            write_bytes(path, sealed(value))
        return name

    def replace(self, room: str, name: str, value: Mapping[str, Any]) -> None:
        """Write a record again with other content."""
        self.objects.flush()
        write_bytes(self.path / room / f"{name}.json", sealed(value))

    def get(self, room: str, name: str) -> Record:
        """The record of that name."""
        return read_sealed(self.path / room / f"{name}.json")

    def has(self, room: str, name: str) -> bool:
        """Whether there is a record of that name."""
        return (self.path / room / f"{name}.json").is_file()

    def names(self, room: str) -> list[str]:
        """The names of all records of one kind."""
        return sorted(path.stem for path in (self.path / room).glob("*.json") if not path.name.startswith("."))

    # Versions

    def put_version(self, manifest: Mapping[str, Any]) -> str:
        """Write a version's record, then say so in the log."""
        name: str = manifest["id"]
        self.put("versions", manifest, name)
        if not any(line["event"] == "made" and line["version"] == name for line in self.log.lines()):
            self.log.add("made", version=name, at=now(), actor=actor())
        return name

    def version(self, name: str) -> Record:
        """A version's record."""
        return self.get("versions", name)

    def order(self) -> list[str]:
        """All versions in the order in which they were made; their numbers are their places in it."""
        return [line["version"] for line in self.log.lines() if line["event"] == "made"]

    def find(self, given: str | int) -> str:
        """The version that a number, a name or the beginning of an id means, such as 3, `january` or `7f31c0de`."""
        order, text = self.order(), str(given)
        if text.isdigit() and int(text) < len(order):
            return order[int(text)]
        named = [name for name in order if self.version(name)["name"] == text]
        begun = [name for name in order if len(text) >= 6 and name.startswith(text)]
        found = named[-1:] or begun
        if len(found) != 1:
            raise ConfigError(f"there is no version {text!r} in {self.path}; contune history {self.path} lists them")
        return found[0]

    def live(self) -> str:
        """The version that answers."""
        name = (self.path / "refs" / "live").read_bytes().decode(errors="replace").removesuffix("\n")
        if len(name) != 64 or not self.has("versions", name):
            raise RunDirectoryError(f"{self.path / 'refs' / 'live'} is damaged: it names no version of this folder")
        return name

    def retired(self) -> set[str]:
        """Versions whose states hold what was to be forgotten; they cannot be gone back to."""
        return {name for line in self.log.lines() if line["event"] == "forgot" for name in line["retired"]}

    # The pointer

    def move(self, to: str, event: str, command: str, **values: Any) -> None:
        """Make `to` the version that answers: the intent, the pointer by one rename, the log, the intent's end.

        `command` says which command it is and what it was given. Killed anywhere, `settle` ends the same move.
        """
        intent = {"from": self.live(), "to": to, "event": event, "command": command, "at": now(), "actor": actor()}
        write_bytes(self.path / "intent.json", sealed({**intent, "values": values}))
        write_bytes(self.path / "refs" / "live", to.encode() + b"\n")
        self.settle()

    def intent(self) -> Record | None:
        """The move that is being made."""
        path = self.path / "intent.json"
        return read_sealed(path) if path.exists() else None

    def settle(self, command: str | None = None) -> str | None:
        """End a move whose pointer was set, or drop one whose was not.

        Gives the version it led to where the move was that of the same `command`, killed before it could end.
        """
        intent = self.intent()
        if intent is None:
            return None
        arrived = self.live() == intent["to"]
        if arrived:
            mark = sha256(canonical(intent))
            newest = last(self.log.lines(), *MOVES)
            if newest is None or newest.get("intent") != mark:
                line = {"version": intent["to"], "from": intent["from"], "at": intent["at"], "actor": intent["actor"]}
                self.log.add(intent["event"], intent=mark, **line, **intent["values"])
        (self.path / "intent.json").unlink()
        same = arrived and command is not None and intent["command"] == command
        return intent["to"] if same else None


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def actor() -> str:
    """Who does it: the name of the user whose process this is."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
