"""Requests that come within milliseconds of each other go through the model together, on the one thread that owns it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, final

from contune.serve.keeper import Asked, Reply
from contune.serve.limits import Limits, Refusal, check_queue

T = TypeVar("T")
Answer = Callable[[Sequence[Asked]], list[Reply | Exception]]


@final
@dataclass(frozen=True)
class Job:
    """A request that waits for its reply."""

    asked: Asked
    reply: "asyncio.Future[Reply]"


@final
class Batcher:
    """A queue before one thread. `answer` is called on that thread with whole batches; `between` lets other work run there.

    `start` and `drain` are the beginning and the end of its life, on one event loop.
    """

    def __init__(
        self, answer: Answer, thread: ThreadPoolExecutor, limits: Limits, watch: Callable[[int], None]
    ) -> None:
        self._answer, self._thread, self._limits, self._watch = answer, thread, limits, watch
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._loop: asyncio.Task[None] | None = None
        self.waiting = 0
        self.draining = False

    async def ask(self, asked: Asked) -> Reply:
        """The reply to a request; a Refusal where the queue is full or the server is going down."""
        if self.draining or self._loop is None:
            raise Refusal(503, "the server is going down; ask again when it is back", {"Retry-After": "5"})
        check_queue(self.waiting, len(asked.inputs), self._limits)
        job = Job(asked, asyncio.get_running_loop().create_future())
        self.waiting += len(asked.inputs)
        self._queue.put_nowait(job)
        return await job.reply

    async def between(self, work: Callable[[], T]) -> T:
        """Do something on the model's thread between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    async def drain(self) -> None:
        """Take nothing on any more, answer all that waits, and end."""
        self.draining = True
        await self._queue.join()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            jobs = await self._gathered()
            try:
                await self._reply([job for job in jobs if not job.reply.done()])
            finally:
                for job in jobs:
                    self.waiting -= len(job.asked.inputs)
                    self._queue.task_done()

    async def _gathered(self) -> list[Job]:
        """The first that comes, and what comes within the window or until the batch is full."""
        jobs = [await self._queue.get()]
        count = len(jobs[0].asked.inputs)
        deadline = asyncio.get_running_loop().time() + self._limits.window
        try:
            async with asyncio.timeout_at(deadline):
                while count < self._limits.batch:
                    job = await self._queue.get()
                    jobs.append(job)
                    count += len(job.asked.inputs)
        except TimeoutError:
            pass
        return jobs

    async def _reply(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return  # all clients have gone
        self._watch(sum(len(job.asked.inputs) for job in jobs))
        try:
            replies = await self.between(lambda: self._answer([job.asked for job in jobs]))
        except Exception as error:
            replies = [error] * len(jobs)
        for job, reply in zip(jobs, replies, strict=True):
            if job.reply.done():
                continue
            if isinstance(reply, Exception):
                job.reply.set_exception(reply)
            else:
                job.reply.set_result(reply)
