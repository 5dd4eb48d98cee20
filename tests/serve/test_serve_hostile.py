"""Whatever a client sends: never a server error, never a traceback, and the next request is answered."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import Server, served

from contune.serve.access import check_access
from contune.serve.bodies import FeedbackBody, PredictBody, PromoteBody, RollbackBody, read_body
from contune.serve.limits import Limits, Refusal

POSTS = (
    "/v1/predict",
    "/v1/feedback",
    "/admin/promote",
    "/admin/rollback",
    "/admin/reload",
    "/v1/completions",
    "/v1/chat/completions",
)
TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates and control characters too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["inputs", "task", "request_id", "label", "input", "version", "reason", "__class__", "constructor"]
)
BODIES = st.dictionaries(KEYS | TEXT, VALUES | st.lists(TEXT, max_size=6), max_size=5) | VALUES


@pytest.fixture(scope="module")
def server(three: Path) -> Iterator[Server]:
    with served(three, limits=Limits(window=0.0, body_bytes=20_000), every=60.0) as running:
        yield running


def sent(server: Server, path: str, content: bytes, method: str = "POST", **headers: str) -> int:
    """The status of an answer that is well formed."""
    given = {"Content-Type": "application/json", **headers}
    response = server.ask(method, path, content=content, headers=given)
    assert response.status_code < 500, response.text
    assert "Traceback" not in response.text
    if response.status_code >= 400:
        assert set(response.json()) == {"error"}
        assert "\n" not in response.json()["error"]
    return response.status_code


def refusal_of(step: Callable[[], object]) -> Refusal | None:
    """What a step is refused with; any other error is a failure."""
    try:
        step()
    except Refusal as refusal:
        return refusal
    return None


@settings(max_examples=150)
@given(path=st.sampled_from(POSTS), body=BODIES)
def test_any_json_is_no_server_error(server: Server, path: str, body: Any) -> None:
    sent(server, path, json.dumps(body).encode())  # NaN and infinities as Python writes them


@settings(max_examples=100)
@given(inputs=st.lists(TEXT, min_size=1, max_size=4), task=st.none() | st.integers())
@example(inputs=["\ud800"], task=None)
@example(inputs=["\x00\x1b[2J\u202e"], task=None)
@example(inputs=["a" * 15_000], task=None)
@example(inputs=["\U0010ffff\u0301\u200d"], task=None)
def test_any_text_is_answered_or_refused(server: Server, inputs: list[str], task: int | None) -> None:
    sent(server, "/v1/predict", json.dumps({"inputs": inputs, "task": task}).encode())


@settings(max_examples=100)
@given(
    path=st.sampled_from(POSTS),
    content=st.binary(max_size=300),
    kind=st.sampled_from(["application/json", "text/xml", ""]),
)
@example(path="/v1/predict", content=b"[" * 19_000, kind="application/json")
@example(path="/v1/predict", content=b'{"inputs":' * 1_500, kind="application/json")
@example(path="/v1/predict", content=b'{"inputs": ["\xff\xfe"]}', kind="application/json")
@example(path="/v1/predict", content=b'{"inputs": [' + b"9" * 15_000 + b"]}", kind="application/json")
@example(path="/v1/predict", content=b'{"inputs": ["a"], "task": 1e999}', kind="application/json")
@example(path="/v1/predict", content=b'{"inputs": ["a"], "inputs": NaN}', kind="application/json")
@example(path="/admin/promote", content=b'{"version": "../../etc/passwd", "reason": "x"}', kind="application/json")
def test_any_bytes_are_no_server_error(server: Server, path: str, content: bytes, kind: str) -> None:
    sent(server, path, content, **{"Content-Type": kind})


@settings(max_examples=60)
@given(
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=30),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"]),
    name=st.sampled_from(["Authorization", "Content-Length", "Content-Type", "Accept", "Host"]),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
)
@example(path="..%2f..%2fetc/passwd", method="GET", name="Accept", value="*/*")
@example(path="v1/predict", method="POST", name="Content-Length", value="-1")
@example(path="v1/predict", method="POST", name="Content-Length", value="9" * 5_000)
def test_any_route_and_header_is_no_server_error(server: Server, path: str, method: str, name: str, value: str) -> None:
    response = server.ask(method, f"/{path.lstrip('/')}", headers={name: value}, content=b"{}")
    assert response.status_code < 500


@given(st.text(), st.text(), st.none() | st.text(min_size=1))
def test_access_is_a_refusal_or_none(authorization: str, host: str, token: str | None) -> None:
    found = refusal_of(lambda: check_access("/", authorization, host, token))
    assert found is None or found.status in (401, 403)


@given(st.sampled_from([PredictBody, FeedbackBody, PromoteBody, RollbackBody]), BODIES)
def test_a_body_is_read_or_refused_in_one_visible_sentence(form: Any, body: Any) -> None:
    found = refusal_of(lambda: read_body(form, json.dumps(body).encode()))
    assert found is None or (found.status == 422 and found.sentence.isprintable())


def test_hostile_traffic_moved_nothing_and_left_the_server_well(server: Server) -> None:
    assert server.get("/ready").json()["version"] == 1
    assert len(server.predict("aaaa money back")["answers"]) == 1


def test_an_unexpected_error_is_logged_and_not_told(
    three: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("/secret/path of the weights")

    with served(three) as running:
        monkeypatch.setattr("contune.engine.predictor.Predictor.predict", fails)
        with caplog.at_level(logging.ERROR, "contune.serve"):
            response = running.post("/v1/predict", {"inputs": ["a"]})
        assert response.status_code == 500
        assert response.json() == {"error": "something went wrong here; the server's log says what"}
        assert "/secret/path" in caplog.text
        monkeypatch.undo()
        assert len(running.predict("a")["answers"]) == 1
