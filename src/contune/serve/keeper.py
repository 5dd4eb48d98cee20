"""The version that answers. All of it runs on one thread, which owns the model; nobody else calls it."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from contune.engine.predictor import Predictor
from contune.errors import ConfigError, ContuneError
from contune.living.model import LivingModel
from contune.living.store.folder import Folder
from contune.serve.limits import Refusal
from contune.stream.modality import find_modality
from contune.stream.task import names_tasks

PROBE = "a"


class Asked(NamedTuple):
    """The inputs of one request, and the task where tasks are named."""

    inputs: Sequence[Any]
    task: int | None = None


class Version(NamedTuple):
    """Which version: its number, id and name, how many updates it has learned, none in version 0, and whether it writes."""

    number: int
    id: str
    name: str
    learned: int
    writes: bool = False


class Loaded(NamedTuple):
    """A version in memory."""

    version: Version
    predictor: Predictor


class Held(NamedTuple):
    """What a keeper stands at, replaced as a whole so that other threads may read it at any time.

    `tried` is the version that the pointer named when it was last followed; `problem` why that one does not answer.
    """

    loaded: Loaded
    tried: str
    problem: str | None = None


class Reply(NamedTuple):
    """Labels with their scores (None where there is none), all of one version; it does not hold the model."""

    labels: tuple[str, ...]
    scores: tuple[float | None, ...]
    version: Version


@final
class Keeper:
    """Holds one loaded version, answers with it, and follows the folder's pointer.

    A version takes the place of another one only when it is loaded whole and has answered a probe. Where that fails the one
    before goes on, `problem` says why, and the same version is not tried again until `reload`.
    """

    def __init__(self, path: Path, **changes: Any) -> None:
        self.path = path
        self._changes = changes
        live = Folder.open(path).live()
        self.held = Held(self.load(live), live)

    @property
    def standing(self) -> Version:
        """The version that answers."""
        return self.held.loaded.version

    @property
    def problem(self) -> str | None:
        """Why the live version of the folder does not answer, where it is another one."""
        return self.held.problem

    def model(self) -> LivingModel:
        """The folder as it is now."""
        return LivingModel.open(self.path, **self._changes)

    def load(self, name: str) -> Loaded:
        """A version, loaded and probed beside the one that answers."""
        model = self.model()
        learner = model.learner(name)
        modality = find_modality(learner.backbone.modality)
        if not modality.holds(PROBE) and "text" not in modality.asked_with:
            raise ConfigError(f"contune serve answers texts, and {model.config.model.path} reads {modality.noun}")
        record = model.folder.version(name)
        number = model.folder.order().index(name)
        found = Version(number, name, record["name"], learner.learned, modality.conversations)
        predictor = learner.predictor()
        if found.learned and len(predictor.predict([PROBE], task=0 if names_tasks(learner.kind) else None)) != 1:
            raise ConfigError(f"version {found.number} does not answer a probe")
        return Loaded(found, predictor)

    def follow(self) -> bool:
        """Load the version that the pointer names where it is another one; whether one was swapped in."""
        try:
            live = Folder.open(self.path).live()
        except ContuneError as error:
            self.held = self.held._replace(problem=str(error))
            return False
        if live == self.standing.id:
            self.held = Held(self.held.loaded, live)
            return False
        return live != self.held.tried and self._swap(live)

    def reload(self) -> bool:
        """As `follow`, also where loading has failed before."""
        self.held = self.held._replace(tried=self.standing.id)
        return self.follow()

    def move(self, version: str | None, step: Callable[[LivingModel, str], int]) -> int:
        """Let another version answer, here and in the folder: loaded and probed first, then `step` moves the pointer.

        None is the parent of the one that answers. Gives its number; where anything fails nothing has moved.
        """
        model = self.model()
        if version is None:
            version = model.folder.version(model.folder.live())["parent"]
            if version is None:
                raise ConfigError("version 0 answers, and nothing is before it; name a version to go to")
        name = model.folder.find(version)
        loaded = self.held.loaded if name == self.standing.id else self.load(name)
        number = step(model, name)
        self._stand(loaded)
        return number

    def answer(self, batch: Sequence[Asked]) -> list[Reply | Exception]:
        """The replies to requests (b), all by one version. One that cannot be answered does not take the others with it."""
        loaded = self.held.loaded
        replies: list[Reply | Exception] = [Refusal(500, "this was not answered; try again")] * len(batch)
        for places in by_task(batch):
            try:
                found = reply(loaded, [batch[at] for at in places])
            except Exception:  # some request of the group; each is asked alone to find out which
                found = [reply_alone(loaded, batch[at]) for at in places]
            for at, one in zip(places, found, strict=True):
                replies[at] = one
        return replies

    def _swap(self, name: str) -> bool:
        try:
            loaded = self.load(name)
        except ContuneError as error:
            problem = str(error)
        except Exception as error:  # whatever a damaged state or a full memory raises: the one before goes on
            problem = f"version {name[:12]} could not be loaded ({type(error).__name__})"
        else:
            self._stand(loaded)
            return True
        self.held = Held(self.held.loaded, name, problem)
        gc.collect()
        return False

    def _stand(self, loaded: Loaded) -> None:
        self.held = Held(loaded, loaded.version.id)
        gc.collect()  # a model holds itself in circles; two of them shall not stay in memory


def by_task(batch: Sequence[Asked]) -> list[list[int]]:
    """The places of requests that can go through the model together.

    >>> by_task([Asked(["a"]), Asked(["b"], 1), Asked(["c"])])
    [[0, 2], [1]]
    """
    places: dict[int | None, list[int]] = {}
    for at, asked in enumerate(batch):
        places.setdefault(asked.task, []).append(at)
    return list(places.values())


def reply(loaded: Loaded, batch: Sequence[Asked]) -> list[Reply | Exception]:
    """The replies to requests about one task, asked at once."""
    if not loaded.version.learned:
        sentence = "version 0 knows nothing yet and cannot answer; teach it first with contune update"
        return [Refusal(409, sentence)] * len(batch)
    found = loaded.predictor.predict([text for asked in batch for text in asked.inputs], task=batch[0].task)
    replies: list[Reply | Exception] = []
    start = 0
    for asked in batch:
        own = found[start : start + len(asked.inputs)]
        start += len(asked.inputs)
        replies.append(Reply(tuple(str(one) for one in own), tuple(one.score for one in own), loaded.version))
    return replies


def reply_alone(loaded: Loaded, asked: Asked) -> Reply | Exception:
    """The reply to one request, or what went wrong."""
    try:
        return reply(loaded, [asked])[0]
    except Exception as error:
        return error
