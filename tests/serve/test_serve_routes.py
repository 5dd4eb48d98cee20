"""The routes: answers, feedback for the next update, versions, metrics, the page, limits and the token."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import httpx
from prometheus_client.parser import text_string_to_metric_families
from serving import TEXTS, Server, by_version, served

from contune.errors import ConfigError
from contune.living.model import LivingModel
from contune.serve.access import check_access, read_token, require_private
from contune.serve.limits import Limits, Refusal

SMALL = Limits(body_bytes=2_000, inputs=4, text_length=50, queue=6)


@pytest.fixture(scope="module")
def server(three: Path) -> Iterator[Server]:
    with served(three, limits=SMALL) as running:
        yield running


def sentence(response: httpx.Response) -> str:
    """The one sentence that a refusal is."""
    found = response.json()
    assert set(found) == {"error"}
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]
    text: str = found["error"]
    return text


def test_answers_are_those_of_the_model(server: Server, three: Path) -> None:
    found = server.predict(*TEXTS)
    expected = LivingModel.open(three).predict(TEXTS)
    assert [(one["label"], found["version"]) for one in found["answers"]] == [(one.label, 1) for one in expected]
    assert [one["score"] for one in found["answers"]] == pytest.approx([one.score for one in expected], abs=1e-6)
    assert found["version_id"] == LivingModel.open(three).folder.live()


def test_versions_and_health(server: Server) -> None:
    found = server.get("/v1/versions").json()
    assert (found["answers"], [row["name"] for row in found["versions"]][1:]) == (1, ["january", "february", "march"])
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json()["problem"] is None


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"inputs": []}, 422, "inputs is empty"),
        ({"inputs": ["a"] * 5}, 422, "at most 4"),
        ({"inputs": ["a" * 51]}, 422, "51 characters"),
        ({"inputs": ["a", "\n"]}, 422, "input 1 is empty"),
        ({"inputs": ["a"], "task": 0}, 422, "leave it out"),
        ({"inputs": ["a"], "model": "x"}, 422, "model"),
        ({"inputs": "a"}, 422, "array"),
        ({}, 422, "inputs"),
        ({"inputs": ["a" * 3_000]}, 413, "2000 bytes"),
    ],
)
def test_too_much_or_wrong_is_one_sentence(server: Server, body: object, status: int, said: str) -> None:
    response = server.post("/v1/predict", body)
    assert response.status_code == status
    assert said in sentence(response)


def test_a_body_without_a_length_is_limited_too(server: Server) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(100):
            yield b'{"inputs": ["' + b"a" * 100

    response = server.ask("POST", "/v1/predict", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def test_a_form_of_another_site_is_refused(server: Server) -> None:
    for path in ("/v1/predict", "/admin/reload", "/admin/rollback"):
        response = server.ask("POST", path, content=b'{"reason": "x"}', headers={"Content-Type": "text/plain"})
        assert response.status_code == 415


def test_other_routes_and_methods(server: Server) -> None:
    assert (server.get("/v1/nothing").status_code, server.get("/v1/predict").status_code) == (404, 405)
    assert "/openapi.json" in sentence(server.get("/%00"))
    assert set(server.get("/openapi.json").json()["paths"]) >= {"/v1/predict", "/v1/feedback", "/admin/promote"}


def test_feedback_is_there_for_the_next_update(support: Path) -> None:
    with served(support) as server:
        name = server.predict("QRS thank you 1", "aaaa money back 2")["request_id"]
        assert server.post("/v1/feedback", {"request_id": name, "label": " praise "}).json()["kept"] == "text"
        again = server.post("/v1/feedback", {"request_id": name, "label": "praise"})
        assert again.status_code == 200
        assert server.post("/v1/feedback", {"request_id": name, "label": "refund"}).status_code == 409
        assert server.post("/v1/feedback", {"request_id": name, "label": "refund", "input": 1}).status_code == 200
        for body, status in (
            ({"request_id": name, "label": "x", "input": 2}, 422),
            ({"request_id": name, "label": "a\u0000b"}, 422),
            ({"request_id": "nobody", "label": "x"}, 404),
        ):
            assert server.post("/v1/feedback", body).status_code == status
    (file,) = (support / "feedback").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["text"], line["label"]) for line in lines] == [
        ("QRS thank you 1", "praise"),
        ("aaaa money back 2", "refund"),
    ]
    model = LivingModel.open(support)
    made = model.update(str(file), name="feedback", gate=False)
    assert "praise" in model.folder.version(made.id)["classes"]
    assert model.verify() == []


def test_feedback_keeps_to_the_policy_and_is_forgotten(tmp_path: Path) -> None:
    from living_tickets import living, tickets

    for policy, kept in (({"buffer": "none"}, "hash"), ({}, "text")):
        folder = tmp_path / kept
        living(folder, policy=policy).update(tickets(0, ("refund", "delivery")), name="january")
        with served(folder) as server:
            name = server.predict("aaaa money back SECRET", "zz zz parcel PLAIN")["request_id"]
            for at, label in enumerate(("refund", "delivery")):
                said = server.post("/v1/feedback", {"request_id": name, "label": label, "input": at})
                assert said.json()["kept"] == kept
        (file,) = (folder / "feedback").glob("*.jsonl")
        assert ("SECRET" in file.read_text()) == (kept == "text")
    LivingModel.open(folder).forget(classes=["refund"])
    assert "SECRET" not in file.read_text()
    assert "PLAIN" in file.read_text()


def test_metrics_are_read_by_a_prometheus_parser(three: Path) -> None:
    with served(three) as server:
        server.predict(*TEXTS)
        server.get("/v1/nothing-of-a-client")
        text = server.get("/metrics").text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["contune_requests_total", "/v1/predict", "200"] == 1
    assert found["contune_requests_total", "404", "other"] == 1
    assert found["contune_inputs_total", "1"] == 4
    assert (found[("contune_version",)], found[("contune_stale",)]) == (1, 0)
    assert found["contune_request_seconds_count", "/v1/predict"] == 1
    assert "nothing-of-a-client" not in text


def test_a_full_queue_says_when_to_come_again(three: Path) -> None:
    async def many(server: Server) -> list[httpx.Response]:
        import asyncio

        ask = [server.client.post("/v1/predict", json={"inputs": ["a", "b"]}) for _ in range(6)]
        return list(await asyncio.gather(*ask))

    with served(three, limits=Limits(queue=6, window=0.2)) as server:
        found = server.run(many(server))
        assert sorted(one.status_code for one in found) == [200] * 3 + [429] * 3
        assert {one.headers["Retry-After"] for one in found if one.status_code == 429} == {"1"}
        assert server.predict("a")["version"] == 1  # and the queue is empty again


def test_the_token_is_asked_for_on_every_route_but_health(three: Path) -> None:
    token = "a-secret-of-many-signs"
    with served(three, token=token, base_url="http://support.example") as server:
        routes = [(method, path) for path, found in paths(server, token).items() for method in found]
        assert len(routes) >= 11
        for method, path in routes:
            refused = server.ask(method.upper(), path)
            if path == "/health":
                assert refused.status_code == 200
                continue
            assert refused.status_code == 401
            assert "Bearer" in refused.headers["WWW-Authenticate"]
            wrong = {"Authorization": f"Bearer {token}x"}
            assert server.ask(method.upper(), path, headers=wrong).status_code == 401
        right = {"Authorization": f"Bearer {token}"}
        assert server.ask("GET", "/v1/versions", headers=right).status_code == 200
        assert server.ask("GET", "/", auth=("anyone", token)).status_code == 200  # as a browser asks
        assert server.ask("GET", "/", headers=[("Authorization", "Basic %%%")]).status_code == 401


def paths(server: Server, token: str) -> dict[str, dict[str, object]]:
    """All routes of the server, as OpenAPI lists them."""
    found = server.ask("GET", "/openapi.json", headers={"Authorization": f"Bearer {token}"}).json()["paths"]
    return {"/openapi.json": {"get": {}}, "/nothing": {"get": {}}, **found}


def test_without_a_token_only_this_machine_is_answered(three: Path) -> None:
    with served(three, base_url="http://rebound.example") as server:
        assert server.get("/v1/versions").status_code == 403
        assert server.get("/health").status_code == 200
    with pytest.raises(ConfigError, match="--token-file"):
        require_private("0.0.0.0", None)
    require_private("0.0.0.0", "a-secret-of-many-signs")
    with pytest.raises(Refusal):
        check_access("/", None, None, None)


@pytest.mark.parametrize("text", ["short", "", "two words that are long enough", "ümlaut-is-no-ascii-sign"])
def test_weak_tokens_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(tmp_path / "token")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


class Addresses(HTMLParser):
    """What a page loads or links to, and whatever its policy would not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        self.forbidden += [tag for name, _ in attrs if name == "style" or name.startswith("on")]
        self.forbidden += [tag] if tag in ("script", "style") else []


def test_the_start_page_needs_nothing_from_elsewhere(server: Server) -> None:
    server.predict(*TEXTS)
    response = server.get("/")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
    page = Addresses()
    page.feed(response.text)
    assert (page.found, page.forbidden) == (["/style.css"], [])
    assert server.get("/style.css").headers["Content-Type"].startswith("text/css")
    for said in ("january", "answers", "promote", "no gate", "median latency"):
        assert said in response.text


def test_names_on_the_start_page_are_escaped(tmp_path: Path) -> None:
    from living_tickets import living, tickets

    living(tmp_path / "support").update(tickets(0, ("refund", "delivery")), name="<script>alert(1)</script>")
    with served(tmp_path / "support") as server:
        assert "<script>" not in server.get("/").text


def test_three_versions_differ(three: Path) -> None:
    """What the tests of swaps rest on."""
    answers = by_version(LivingModel.open(three))
    assert len({tuple(found) for found in answers.values()}) >= 2
    assert answers[1] != answers[2]


def test_the_description_has_no_reference_that_leads_nowhere(server: Server) -> None:
    described = server.get("/openapi.json").json()
    text = json.dumps(described)
    assert "$defs" not in text
    body = described["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["inputs"]
