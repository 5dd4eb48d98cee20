"""Servers in this process: an application whose life has begun, and a client without a network."""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import httpx
from living_tickets import living, tickets

from contune.living.model import LivingModel
from contune.serve.app import app

T = TypeVar("T")
TEXTS = ("aaaa money back 1", "zz zz parcel late 2", "aaaa money back 33", "zz zz parcel late 44")


def three_versions(folder: Path) -> LivingModel:
    """Version 1 tells refunds from deliveries and answers, version 2 has learned them the wrong way round, 3 is a third."""
    model = living(folder, held_out=0.2)
    model.update(tickets(0, ("refund", "delivery")), name="january")
    turned = {"refund": "delivery", "delivery": "refund"}
    wrong = [{**row, "label": turned[row["label"]]} for row in tickets(1, ("refund", "delivery"), each=160)]
    model.update(wrong, name="february", gate=False)
    model.update(tickets(2, ("login", "refund")), name="march", gate=False)
    return model


@final
class Server:
    """An application that runs on an event loop of its own; `ask` waits for one response."""

    def __init__(self, made: Any, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self.made, self._runner, self.client = made, runner, client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self.client.request(method, path, **options))

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.ask("POST", path, json=body)

    def get(self, path: str) -> httpx.Response:
        return self.ask("GET", path)

    def predict(self, *inputs: str) -> dict[str, Any]:
        found: dict[str, Any] = self.post("/v1/predict", {"inputs": inputs}).json()
        return found


@contextmanager
def served(folder: Path, base_url: str = "http://127.0.0.1:8000", **options: Any) -> Iterator[Server]:
    """A folder, served until the block ends."""
    made = app(folder, **{"every": 0.02, **options})
    with asyncio.Runner() as runner:
        life = made.router.lifespan_context(made)
        runner.run(life.__aenter__())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url=base_url)
        try:
            yield Server(made, runner, client)
        finally:
            runner.run(client.aclose())
            runner.run(life.__aexit__(None, None, None))


def mixed(bodies: Sequence[Mapping[str, Any]], right: Mapping[int, Sequence[str]]) -> list[Mapping[str, Any]]:
    """Answers to TEXTS that are not, all of them, what the version says that they name."""
    return [body for body in bodies if [one["label"] for one in body["answers"]] != list(right[body["version"]])]


def by_version(model: LivingModel) -> dict[int, list[str]]:
    """What each version that knows something answers to TEXTS."""
    numbers = range(1, len(model.folder.order()))
    return {number: [one.label for one in model.predict(TEXTS, version=number)] for number in numbers}
