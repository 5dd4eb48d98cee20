"""The queue before the model's thread: what is batched, what is refused, and what one request cannot do to another."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi")

from contune.serve.batching import Batcher
from contune.serve.keeper import Asked, Held, Keeper, Loaded, Reply, Version
from contune.serve.limits import Limits, Refusal


class Echo:
    """A predictor whose labels are its inputs; it stumbles over one word."""

    def predict(self, inputs: Sequence[str], *, task: int | None = None) -> list[Any]:
        if "poison" in inputs:
            raise RuntimeError("CUDA error: a long story")
        return [Label(text) for text in inputs]


class Label(str):
    score = 1.0


LOADED = Loaded(Version(1, "id", "name", 1), Echo())  # type: ignore[arg-type]


def keeper() -> Keeper:
    """A keeper that has loaded nothing."""
    made = Keeper.__new__(Keeper)
    made.held = Held(LOADED, "id")
    return made


class Seen:
    """Batches as they came, each with the thread that it came on."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self._seconds = seconds

    def __call__(self, batch: Sequence[Asked]) -> list[Reply | Exception]:
        self.batches.append([text for asked in batch for text in asked.inputs])
        self.threads.add(threading.get_ident())
        time.sleep(self._seconds)
        return keeper().answer(batch)


def run(answer: Callable[..., Any], limits: Limits, work: Callable[[Batcher], Coroutine[Any, Any, Any]]) -> Any:
    """What `work` does with a batcher that lives as long."""

    async def life() -> Any:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(answer, thread, limits, lambda size: None)
            batcher.start()
            try:
                return await work(batcher)
            finally:
                await batcher.drain()

    return asyncio.run(life())


def test_what_comes_together_is_answered_together_on_one_thread() -> None:
    seen = Seen()

    async def work(batcher: Batcher) -> list[Reply]:
        first = await asyncio.gather(*(batcher.ask(Asked([str(at)])) for at in range(10)))
        await batcher.ask(Asked(["later"]))
        return list(first)

    replies = run(seen, Limits(window=0.05), work)
    assert [reply.labels for reply in replies] == [(str(at),) for at in range(10)]
    assert seen.batches == [[str(at) for at in range(10)], ["later"]]
    assert len(seen.threads) == 1
    assert threading.get_ident() not in seen.threads


def test_a_full_batch_waits_for_no_more() -> None:
    seen = Seen()

    async def work(batcher: Batcher) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(batcher.ask(Asked(["a", "b"])) for _ in range(4)))
        return time.perf_counter() - began

    assert run(seen, Limits(window=5.0, batch=4), work) < 4.0
    assert [len(batch) for batch in seen.batches] == [4, 4]


def test_requests_that_wait_while_the_model_works_become_one_batch() -> None:
    seen = Seen(seconds=0.1)

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.ask(Asked(["first"])))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(batcher.ask(Asked([str(at)])) for at in range(20)))

    run(seen, Limits(window=0.001), work)
    assert [len(batch) for batch in seen.batches] == [1, 20]


def test_one_request_that_fails_fails_alone() -> None:
    async def work(batcher: Batcher) -> list[Any]:
        asked = [Asked(["a"]), Asked(["poison"]), Asked(["b"])]
        return await asyncio.gather(*map(batcher.ask, asked), return_exceptions=True)

    first, second, third = run(keeper().answer, Limits(window=0.05), work)
    assert (first.labels, third.labels) == (("a",), ("b",))
    assert isinstance(second, RuntimeError)


def test_the_queue_is_limited_and_empties() -> None:
    async def work(batcher: Batcher) -> tuple[list[Any], int]:
        many = [batcher.ask(Asked(["a", "b"])) for _ in range(5)]
        return await asyncio.gather(*many, return_exceptions=True), batcher.waiting

    found, left = run(Seen(), Limits(window=0.05, queue=6), work)
    assert [one.status for one in found if isinstance(one, Refusal)] == [429, 429]
    assert left == 0


def test_draining_answers_all_that_waits_and_takes_nothing_on() -> None:
    async def work(batcher: Batcher) -> list[Any]:
        asked = [asyncio.create_task(batcher.ask(Asked([str(at)]))) for at in range(5)]
        await asyncio.sleep(0)
        end = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="going down"):
            await batcher.ask(Asked(["too late"]))
        await end
        return [task.done() and task.result().labels for task in asked]

    assert run(Seen(), Limits(window=0.1), work) == [(str(at),) for at in range(5)]


def test_clients_that_have_gone_are_not_waited_for() -> None:
    seen = Seen()

    async def work(batcher: Batcher) -> None:
        gone = asyncio.create_task(batcher.ask(Asked(["gone"])))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await batcher.ask(Asked(["here"]))).labels == ("here",)

    run(seen, Limits(window=0.02), work)
    assert seen.batches == [["here"]]


def test_a_thread_that_fails_whole_answers_with_its_error_and_goes_on() -> None:
    calls: list[int] = []

    def answer(batch: Sequence[Asked]) -> list[Reply | Exception]:
        calls.append(len(batch))
        if len(calls) == 1:
            raise MemoryError
        return keeper().answer(batch)

    async def work(batcher: Batcher) -> Reply:
        with pytest.raises(MemoryError):
            await batcher.ask(Asked(["a"]))
        return await batcher.ask(Asked(["b"]))

    assert run(answer, Limits(window=0.0), work).labels == ("b",)
