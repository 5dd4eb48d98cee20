"""What the routes do, without HTTP: asking, feedback, moves, and how the server stands."""

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

from contune.living.config import LivingConfig
from contune.living.data.sides import input_hash
from contune.living.history import Row, history
from contune.living.model import LivingModel
from contune.living.store.feedback import add_feedback
from contune.living.store.folder import Folder, now
from contune.serve.batching import Batcher
from contune.serve.bodies import FeedbackBody, PredictBody, check_label
from contune.serve.keeper import Asked, Keeper, Reply
from contune.serve.limits import Limits, Refusal, check_inputs
from contune.serve.measures import Measures
from contune.serve.remembered import Remembered, Request

Step = Callable[[LivingModel, str], int]


@final
class Service:
    """One living model that is served. Raises where the folder cannot be loaded, before anything listens."""

    def __init__(self, path: Path, limits: Limits, every: float, **changes: Any) -> None:
        self.path, self.limits, self.every = path, limits, every
        self.name = path.resolve().name
        self.config: LivingConfig = LivingModel.open(path, **changes).config
        self.measures, self.remembered = Measures(), Remembered()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.keeper = self._thread.submit(Keeper, path, **changes).result()
        self.batcher = Batcher(self.keeper.answer, self._thread, limits, self.measures.batch)
        self.measures.followed(self.keeper.held)
        self._watcher: asyncio.Task[None] | None = None
        self._rows: tuple[Any, list[Row]] = (None, [])
        self._writing = asyncio.Lock()

    async def start(self) -> None:
        """Begin to answer and to watch the folder's pointer."""
        self.batcher.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.batcher.drain()
        self._thread.shutdown()

    async def predict(self, body: PredictBody) -> Mapping[str, Any]:
        """Labels and scores by one version, with the id by which feedback can name them."""
        check_inputs(body.inputs, self.limits)
        reply = await self.reply(body.inputs, body.task)
        name = uuid.uuid4().hex
        self.remembered.add(name, Request(tuple(body.inputs), reply))
        answers = [
            {"label": label, "score": finite(score)} for label, score in zip(reply.labels, reply.scores, strict=True)
        ]
        return {"request_id": name, "version": reply.version.number, "version_id": reply.version.id, "answers": answers}

    async def reply(self, inputs: Sequence[Any], task: int | None) -> Reply:
        """What the live version answers to checked inputs, timed."""
        began = time.perf_counter()
        reply = await self.batcher.ask(Asked(tuple(inputs), task))
        self.measures.answered(reply, time.perf_counter() - began)
        return reply

    async def feedback(self, body: FeedbackBody) -> Mapping[str, Any]:
        """Keep a right label for the next update, as far as the policy lets the text be kept."""
        if self.keeper.standing.writes:
            raise Refusal(
                409, "feedback is kept for models that answer with labels; teach this one with contune update"
            )
        label = check_label(body.label)
        async with self._writing:
            request = self.remembered.find(body.request_id, body.input)
            before = request.said.get(body.input)
            if before not in (None, label):
                raise Refusal(409, f"input {body.input} of this request was given another label before")
            if before is None:
                line = self._line(body, request, label)
                await asyncio.to_thread(add_feedback, self.path, line)
                request.said[body.input] = label
                self.measures.feedback()
        return {"request_id": body.request_id, "kept": "text" if self.config.policy.allows_raw else "hash"}

    async def move(self, version: str | int | None, step: Step) -> Mapping[str, Any]:
        """Let another version answer, once it is loaded and has answered a probe."""
        name = None if version is None else str(version)
        number = await self.batcher.between(lambda: self.keeper.move(name, step))
        self.measures.followed(self.keeper.held)
        return {"version": number}

    async def reload(self) -> Mapping[str, Any]:
        """Follow the folder's pointer at once, also where that has failed before."""
        swapped = await self.batcher.between(self.keeper.reload)
        self.measures.followed(self.keeper.held)
        return {"swapped": swapped, **self.standing()}

    def standing(self) -> Mapping[str, Any]:
        """What answers, and what is wrong."""
        version = self.keeper.standing
        return {
            "ready": bool(version.learned) and not self.batcher.draining,
            "version": version.number,
            "version_id": version.id,
            "name": version.name,
            "problem": self.keeper.problem if version.learned else "version 0 knows nothing yet",
        }

    async def rows(self) -> list[Row]:
        """All versions, read again only where something has happened."""
        mark = tuple(mark_of(self.path / name) for name in ("log.jsonl", "refs/live"))
        if self._rows[0] != mark:
            self._rows = mark, await asyncio.to_thread(history, Folder.open(self.path), self.config)
        return self._rows[1]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            with contextlib.suppress(Exception):  # a folder that cannot be read now may be readable in a moment
                if await asyncio.to_thread(self._moved):
                    await self.batcher.between(self.keeper.follow)
                    self.measures.followed(self.keeper.held)

    def _moved(self) -> bool:
        named = (self.path / "refs" / "live").read_text(encoding="utf-8").strip()
        held = self.keeper.held
        return named != held.tried or (held.problem is not None and named == held.loaded.version.id)

    def _line(self, body: FeedbackBody, request: Request, label: str) -> dict[str, Any]:
        """A line for the next update: the columns that the model reads, and where it comes from."""
        text, reply, columns = request.inputs[body.input], request.reply, self.config.columns
        kept = {columns.text or "text": text} if self.config.policy.allows_raw else {}
        source = {"answered": reply.labels[body.input], "version": reply.version.id, "at": now()}
        source |= {"hash": input_hash(text, "text"), "label": label}
        return {**kept, columns.label or "label": label, "feedback": source}


def finite(score: float | None) -> float | None:
    """A score that JSON can hold.

    >>> finite(0.5), finite(float("nan"))
    (0.5, None)
    """
    return score if score is not None and math.isfinite(score) else None


def mark_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file does."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
