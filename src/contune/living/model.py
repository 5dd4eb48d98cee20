"""A living model in Python: a folder that learns what comes, update by update, and never answers worse unseen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from contune.engine.learner import Learner
from contune.engine.observer import Observer
from contune.errors import ConfigError
from contune.living.checking import Cleared, clear, problems
from contune.living.config import LivingConfig
from contune.living.data.read import read_update
from contune.living.data.sides import settled
from contune.living.forgetting import Certificate, forget
from contune.living.gate.decide import Verdict
from contune.living.gating import Say, ask_gate, verdict_of
from contune.living.history import Difference, Row, difference, history
from contune.living.learning import Workshop
from contune.living.start import started
from contune.living.store.folder import Folder, Record
from contune.living.store.sealed import digest
from contune.living.updating import Update, id_after, make_version, seen_before, told
from contune.stream.inputs import Inputs


class Answer(NamedTuple):
    """A label, how sure the model is of it (0 to 1, None where it cannot say), and the version that answered."""

    label: str
    score: float | None
    version: int


def silent(_text: str) -> None:
    """Say nothing."""


@final
class LivingModel:
    """A model that new data comes to for as long as it lives.

    `create` makes the folder, `update` learns and asks the gate, `promote` and `rollback` move the version that answers.
    Several processes may read; one at a time may write. `say` is told, in sentences, what a person should know.
    """

    def __init__(self, folder: Folder, *, observer: Observer | None = None, say: Say = silent, **changes: Any) -> None:
        self.folder, self.say = folder, say
        self.config = LivingConfig.model_validate({**folder.config()["config"], **changes})
        self._shop = Workshop(folder, self.config, observer)

    @staticmethod
    def create(
        path: str | Path,
        model: str | Path | None = None,
        method: str | Mapping[str, Any] | None = None,
        *,
        run: str | Path | None = None,
        changes: Sequence[str] = (),
        say: Say = silent,
        observer: Observer | None = None,
        **keys: Any,
    ) -> "LivingModel":
        """A new folder with version 0, which knows nothing yet, or what a finished `run` knows.

        `keys` are those of the configuration: `kind`, `objective`, `train`, `columns`, `held_out`, `policy`, `gate` and
        `device`; `changes` are more of them, as `key.inner=value`. Raises ConfigError where they do not fit, and
        RunDirectoryError where the folder is taken.
        """
        given = None if model is None else {"path": str(model)}
        own = {"model": given, "method": dict(method) if isinstance(method, Mapping) else method, **keys}
        folder = started(Path(path), own, None if run is None else Path(run), changes)
        return LivingModel(folder, say=say, observer=observer)

    @staticmethod
    def open(path: str | Path, *, say: Say = silent, observer: Observer | None = None, **changes: Any) -> "LivingModel":
        """The living model in a folder. `changes` are keys that may differ here: `device`, `gate` and `model`."""
        wrong = sorted(set(changes) - {"device", "gate", "model"})
        if wrong:
            raise ConfigError(f"{wrong[0]} is what all versions have in common; create another model to change it")
        return LivingModel(Folder.open(Path(path)), say=say, observer=observer, **changes)

    def update(
        self,
        data: Any,
        test: Any = None,
        *,
        name: str | None = None,
        gate: bool = True,
        labels: Mapping[str, str] | None = None,
        again: bool = False,
    ) -> Update:
        """Learn from new examples; where the gate says so, the new version answers from now on.

        `data` and `test` are files, rows in Python as `Stream.of` takes them, or a task. Without `test`, the configured
        share is set aside by a hash of each example. `labels` renames what the data calls its classes. Without `gate` it
        becomes a candidate. Data that the live version has just learned is not learned again but with `again`.
        """
        name = name or name_of(data, len(self.folder.order()))
        task, brought, notes = read_update(data, test, name, self.config, dict(labels or {}))
        with self.folder.locked():
            live = self.folder.version(self._settled())
            arrived = settled(task, brought, self.config.held_out, seen_before(self.folder, live), live["classes"])
            if live["data"] == arrived.data_id and not again:
                return told(
                    self.folder, live, verdict_of(self.folder, self.folder.log.lines(), live["id"]), notes, again=True
                )
            found = (*(f"{note}." for note in notes), *arrived.counted.sentences())
            for sentence in found:
                self.say(sentence)
            known = self.folder.has("versions", id_after(self.folder, live, arrived.data_id))
            version = make_version(self._shop, live, arrived)
            verdict = ask_gate(self._shop, version, self.say, arrived.suite) if gate else None
            if verdict is not None and verdict.outcome == "promote":
                self._move(version, "promoted", digest(["update", arrived.data_id]), reason=verdict.sentence)
            return told(self.folder, version, verdict, found, again=known)

    def gate(self, candidate: str | int | None = None) -> Verdict:
        """Ask the gate about a candidate, or about the version that was made last. It moves nothing."""
        with self.folder.locked():
            self._settled()
            name = self.folder.order()[-1] if candidate is None else self.folder.find(candidate)
            return ask_gate(self._shop, self._usable(name), self.say)

    def promote(self, version: str | int, reason: str) -> int:
        """Let a version answer from now on, whatever the gate has said; gives its number."""
        return self._go(self.folder.find(version), "promoted", ["promote", str(version)], reason)

    def rollback(self, version: str | int | None = None, *, reason: str) -> int:
        """Go back to a version, or to the parent of the one that answers; gives its number."""
        if version is not None:
            return self._go(self.folder.find(version), "rolled back", ["rollback", str(version)], reason)
        return self._go(None, "rolled back", ["rollback"], reason)

    def history(self) -> list[Row]:
        """All versions in the order in which they were made."""
        return history(self.folder, self.config)

    def diff(self, first: str | int, second: str | int) -> Difference:
        """What the second version answers otherwise than the first, by suite, class and example."""
        return difference(self.folder, self.folder.find(first), self.folder.find(second))

    def learner(self, version: str | int | None = None) -> Learner:
        """A learner of its own where a version stands (the live one by default): for whatever else it can do."""
        name = self.folder.live() if version is None else self.folder.find(version)
        return self._shop.fresh(self._usable(name))

    def predict(self, inputs: Inputs, *, version: str | int | None = None, task: int | None = None) -> list[Answer]:
        """Answers to inputs by the live version, or another one; `task` where tasks are named when asked."""
        name = self.folder.live() if version is None else self.folder.find(version)
        found = self._shop.at(self._usable(name)).predict(inputs, task=task)
        number = self.folder.order().index(name)
        return [Answer(str(one), one.score, number) for one in found]

    def verify(self) -> list[str]:
        """What is not as it was written, each a sentence; nothing where every byte is right."""
        return problems(self.folder)

    def gc(self) -> Cleared:
        """Drop what no version needs any more, and raw examples whose days are over."""
        with self.folder.locked():
            self._settled()
            return clear(self.folder, self.config.policy)

    def forget(
        self,
        *,
        classes: Sequence[str] = (),
        ids: Sequence[str] = (),
        update: str | int | None = None,
        examples: Any = None,
    ) -> Certificate:
        """Unlearn classes, examples by their hash, or an update: a new version, and a certificate of what was done.

        `examples` gives again what was not kept.
        """
        command = digest(["forget", sorted(classes), sorted(ids), None if update is None else str(update)])
        with self.folder.locked():
            self._settled(command)
            return forget(self._shop, list(classes), list(ids), update, examples, command, self.say)

    def _usable(self, name: str) -> Record:
        version = self.folder.version(name)
        if name in self.folder.retired():
            raise ConfigError(
                f"version {version['name']!r} holds what was forgotten and cannot be used; contune history "
                f"{self.folder.path} lists those that can"
            )
        return version

    def _settled(self, command: str | None = None) -> str:
        """The live version, with what a killed command left half done put right."""
        self.folder.settle(command)
        return self.folder.live()

    def _go(self, name: str | None, event: str, said: list[str], reason: str) -> int:
        command = digest(said)
        with self.folder.locked():
            done = self.folder.settle(command)
            if done is None:
                to = name or self.folder.version(self.folder.live())["parent"]
                if to is None:
                    raise ConfigError("version 0 answers, and nothing is before it; name a version to go to")
                self._move(self._usable(to), event, command, reason=reason)
                done = to
            return self.folder.order().index(done)

    def _move(self, version: Record, event: str, command: str, **values: Any) -> None:
        if self.folder.live() != version["id"]:
            self.folder.move(version["id"], event, command, **values)


def name_of(data: Any, number: int) -> str:
    """What an update is called where nobody says: its file, its task, or its number."""
    if isinstance(data, str | Path):
        return Path(data).name.split(".")[0]
    name = getattr(data, "name", None)
    return name if isinstance(name, str) and name else f"update {number}"
