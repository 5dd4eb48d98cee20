"""Versions that swap under traffic: every answer is whole, failed loads change nothing, and memory stays flat."""

import asyncio
import gc
import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from prometheus_client.parser import text_string_to_metric_families
from serving import TEXTS, Server, by_version, mixed, served

from contune.living.model import LivingModel
from contune.serve.keeper import Held, Keeper


def metric(server: Server, name: str) -> float:
    """The value of a metric without labels."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def damage(folder: Path, version: int) -> tuple[Path, bytes]:
    """Flip a byte of a block that this version alone needs; gives the file and what was in it."""
    store = LivingModel.open(folder).folder
    order = store.order()
    parts = {number: store.states.parts(store.version(name)["state"]) for number, name in enumerate(order) if number}
    own = sorted(parts[version] - set.union(*(found for number, found in parts.items() if number != version)))
    path = store.objects.path(own[0])
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return path, data


async def traffic(server: Server, requests: int, clients: int, done: asyncio.Event) -> list[dict[str, Any]]:
    """The bodies of all answers to so many requests of so many clients."""
    left = iter(range(requests))
    bodies = []

    async def client() -> None:
        for _ in left:
            response = await server.client.post("/v1/predict", json={"inputs": TEXTS})
            assert response.status_code == 200, response.text
            bodies.append(response.json())

    await asyncio.gather(*(client() for _ in range(clients)))
    done.set()
    return bodies


async def swaps(server: Server, folder: Path, most: int, done: asyncio.Event) -> int:
    """Moves of all kinds, some of which fail, until the traffic ends; how many there were."""
    draw, model, count = random.Random(0), LivingModel.open(folder), 0
    while not done.is_set() and count < most:
        live = model.folder.order().index(model.folder.live())
        to = draw.choice([number for number in (1, 2, 3) if number != live])
        if count % 3 == 0:
            model.promote(to, reason="another process")  # which the server has to see by itself
            await asyncio.sleep(0.06)
        elif count % 3 == 1:
            body = {"version": to, "reason": "asked for"}
            assert (await server.client.post("/admin/promote", json=body)).json() == {"version": to}
        else:
            path, data = damage(folder, to)
            body = {"version": to, "reason": "it is damaged"}
            assert (await server.client.post("/admin/rollback", json=body)).status_code == 409
            path.write_bytes(data)
        count += 1
        await asyncio.sleep(0.01)
    return count


def under_swaps(folder: Path, requests: int, clients: int, most: int) -> None:
    right = by_version(LivingModel.open(folder))
    with served(folder) as server:

        async def both() -> tuple[list[dict[str, Any]], int]:
            done = asyncio.Event()
            return await asyncio.gather(traffic(server, requests, clients, done), swaps(server, folder, most, done))

        bodies, count = server.run(both())
        versions = {body["version"] for body in bodies}
        assert len(bodies) == requests
        assert mixed(bodies, right) == []
        assert len({body["request_id"] for body in bodies}) == requests
        assert len(versions) >= 2
        assert count >= 5


def test_every_answer_is_of_one_version_under_swaps(support: Path) -> None:
    under_swaps(support, requests=200, clients=6, most=1_000)


@pytest.mark.slow
def test_every_answer_is_of_one_version_under_swaps_at_length(support: Path) -> None:
    under_swaps(support, requests=10_000, clients=16, most=10_000)


def test_a_planted_mixture_is_found(support: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that swaps within a batch is what the tests above must catch."""
    model = LivingModel.open(support)
    right = by_version(model)
    with served(support, every=60.0) as server:
        keeper, other = Keeper(support), Keeper(support)
        other.held = Held(other.load(model.folder.order()[2]), "")

        def half(batch: Any) -> Any:
            first, second = keeper.answer(batch), other.answer(batch)
            return [
                one._replace(labels=one.labels[:2] + two.labels[2:]) for one, two in zip(first, second, strict=True)
            ]  # type: ignore[union-attr]

        assert mixed([server.predict(*TEXTS)], right) == []
        batcher = server.made.user_middleware[0].kwargs["service"].batcher
        monkeypatch.setattr(batcher, "_answer", half)
        assert len(mixed([server.predict(*TEXTS)], right)) == 1


def test_a_failed_load_keeps_the_live_one_and_says_so(support: Path) -> None:
    model = LivingModel.open(support)
    with served(support) as server:
        path, data = damage(support, 2)
        model.promote(2, reason="somebody else")
        for _ in range(100):
            if server.get("/ready").json()["problem"]:
                break
            server.run(asyncio.sleep(0.02))
        found = server.get("/ready")
        assert (found.status_code, found.json()["version"]) == (200, 1)
        assert "damaged" in found.json()["problem"]
        assert (metric(server, "contune_stale"), metric(server, "contune_failed_loads_total")) == (1, 1)
        assert server.predict(*TEXTS)["version"] == 1
        assert "A problem" in server.get("/").text
        server.run(asyncio.sleep(0.1))
        assert metric(server, "contune_failed_loads_total") == 1  # it is not tried again and again
        path.write_bytes(data)
        assert server.post("/admin/reload", {}).json()["swapped"] is True
        assert server.predict(*TEXTS)["version"] == 2
        assert (metric(server, "contune_stale"), metric(server, "contune_swaps_total")) == (0, 1)


def test_a_pointer_that_goes_back_ends_the_problem(support: Path) -> None:
    model = LivingModel.open(support)
    with served(support) as server:
        pointer = support / "refs" / "live"
        kept = pointer.read_bytes()
        for broken, said in ((b"nonsense\n", "damaged"), (None, "")):
            pointer.write_bytes(broken or kept)
            server.run(asyncio.sleep(0.2))
            assert said in (server.get("/ready").json()["problem"] or "")
            assert server.predict("a")["version"] == 1
        assert server.get("/ready").json()["problem"] is None
    assert model.verify() == []


def test_a_version_that_fails_its_probe_moves_nothing(support: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(support) as server:
        monkeypatch.setattr("contune.engine.predictor.Predictor.predict", lambda self, inputs, task=None: [])
        response = server.post("/admin/promote", {"version": 3, "reason": "x"})
        assert (response.status_code, "probe" in response.json()["error"]) == (422, True)
        monkeypatch.undo()
        assert server.predict(*TEXTS)["version"] == 1
        assert LivingModel.open(support).folder.live() == server.get("/ready").json()["version_id"]


def test_rollback_goes_to_the_parent_and_stands_in_the_history(support: Path) -> None:
    with served(support) as server:
        assert server.post("/admin/promote", {"version": "march", "reason": "by hand"}).json() == {"version": 3}
        assert server.predict(*TEXTS)["version"] == 3
        assert server.post("/admin/rollback", {"reason": "complaints"}).json() == {"version": 1}
        assert server.predict(*TEXTS)["version"] == 1
        for body, status in (
            ({"version": "nobody", "reason": "x"}, 422),
            ({"version": 3}, 422),
            ({"version": 3, "reason": ""}, 422),
            ({"version": [3], "reason": "x"}, 422),
            ({"version": 10**30, "reason": "x"}, 422),
        ):
            assert server.post("/admin/promote", body).status_code == status, body
        with LivingModel.open(support).folder.locked():
            busy = server.post("/admin/promote", {"version": 3, "reason": "x"})
            assert (busy.status_code, "another contune process" in busy.json()["error"]) == (409, True)
    lines = [json.loads(line) for line in (support / "log.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines if line["event"] in ("promoted", "rolled back")][-2:] == [
        "by hand",
        "complaints",
    ]


def test_version_0_says_that_it_knows_nothing(tmp_path: Path) -> None:
    from living_tickets import living

    living(tmp_path / "support")
    with served(tmp_path / "support") as server:
        assert server.get("/ready").status_code == 503
        response = server.post("/v1/predict", {"inputs": ["a"]})
        assert (response.status_code, "contune update" in response.json()["error"]) == (409, True)


def grown(folder: Path, count: int) -> int:
    """By how many live tensors and modules a server grows over so many swaps, after some to get warm."""
    import torch

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor | torch.nn.Module) for one in gc.get_objects())

    with served(folder, every=60.0) as server:

        def swap(times: int) -> None:
            for at in range(times):
                server.post("/admin/promote", {"version": (2, 1)[at % 2], "reason": "x"})
                server.predict(*TEXTS)

        swap(2)
        before = alive()
        swap(count)
        return alive() - before


def test_memory_is_flat_over_swaps(support: Path) -> None:
    assert grown(support, 6) == 0


def test_a_planted_leak_is_found(support: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    load = Keeper.load

    def leaking(self: Keeper, name: str) -> Any:
        kept.append(load(self, name))
        return kept[-1]

    monkeypatch.setattr(Keeper, "load", leaking)
    assert grown(support, 2) > 20
