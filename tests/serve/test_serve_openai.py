"""Models that write, asked as OpenAI's clients ask."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from living_tickets import EASY
from serving import Server, served
from word_tasks import tiny_folder

from contune.living.model import LivingModel
from contune.stream.conversation import Conversation, Message

ASKED = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "say no 3"}]},
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A living model that writes; it has learned once, and version 2 is a candidate."""
    home = tmp_path_factory.mktemp("written")
    keys: dict[str, Any] = {"objective": "write", "device": "cpu", "gate": EASY, "train": {"epochs": 1}}
    model = LivingModel.create(home / "writer", str(tiny_folder("llama-writer")), "lora", **keys)
    for name in ("yes", "no"):
        rows = [{"prompt": f"say {name} {at}", "completion": name} for at in range(20)]
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        model.update(str(home / f"{name}.jsonl"), name=name, gate=False)
        if name == "yes":
            model.promote(1, reason="the first")
    return home / "writer"


@pytest.fixture(scope="module")
def server(writer: Path) -> Iterator[Server]:
    with served(writer, every=60.0) as running:
        yield running


def test_chat_and_completions_write_what_the_model_writes(server: Server, writer: Path) -> None:
    learner = LivingModel.open(writer).learner()
    talk = Conversation((Message("system", "be brief"), Message("user", "say no 3")), ("",))
    chat = server.post("/v1/chat/completions", {"model": "writer", "messages": ASKED, "temperature": 0}).json()
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": str(learner.predict([talk])[0])}
    prompts = ["say yes 1", "say no 2"]
    done = server.post("/v1/completions", {"model": "writer@1", "prompt": prompts}).json()
    assert [one["text"] for one in done["choices"]] == [str(one) for one in learner.predict(prompts)]
    assert (chat["object"], done["object"]) == ("chat.completion", "text_completion")
    assert (chat["model"], done["model"]) == ("writer@1", "writer@1")


def test_names_choose_the_version_or_are_refused(server: Server) -> None:
    assert [one["id"] for one in server.get("/v1/models").json()["data"]] == ["writer", "writer@1"]
    for name in ("writer@2", "gpt", ""):
        response = server.post("/v1/completions", {"model": name, "prompt": "a"})
        assert (response.status_code, "/v1/models" in response.json()["error"]) == (404, True)


def test_a_pinned_name_never_gets_another_version(writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that swaps in while the request waits is a refusal and no answer."""
    from contune.serve.service import Service

    with served(writer, every=60.0) as server:
        reply = Service.reply

        async def late(self: Service, inputs: Any, task: int | None) -> Any:
            found = await reply(self, inputs, task)
            return found._replace(version=found.version._replace(number=2))

        monkeypatch.setattr(Service, "reply", late)
        assert server.post("/v1/completions", {"model": "writer@1", "prompt": "a"}).status_code == 404
        assert server.post("/v1/completions", {"model": "writer", "prompt": "a"}).json()["model"] == "writer@2"


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.7},
        {"n": 2},
        {"stream": True},
        {"max_tokens": 5},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "tool", "content": "a"}]},
    ],
)
def test_what_it_does_not_do_is_refused_in_one_sentence(server: Server, more: dict[str, Any]) -> None:
    response = server.post("/v1/chat/completions", {"model": "writer", "messages": ASKED, **more})
    assert response.status_code == 422
    assert "\n" not in response.json()["error"]


def test_models_with_labels_say_where_to_ask(three: Path) -> None:
    with served(three) as running:
        response = running.post("/v1/completions", {"model": "support", "prompt": "a"})
        assert (response.status_code, "/v1/predict" in response.json()["error"]) == (409, True)
        assert running.get("/v1/models").json()["data"] == []


def test_texts_are_predicted_too_and_feedback_is_refused(server: Server) -> None:
    name = server.predict("say yes 5")["request_id"]
    assert server.post("/v1/feedback", {"request_id": name, "label": "yes"}).status_code == 409


def test_a_stock_client_works(server: Server) -> None:
    openai = pytest.importorskip("openai")
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", http_client=server.client)

    async def listed() -> list[str]:
        return [one.id async for one in client.models.list()]

    chat = server.run(client.chat.completions.create(model="writer", messages=ASKED))
    assert isinstance(chat.choices[0].message.content, str)
    done = server.run(client.completions.create(model="writer", prompt="say yes 1"))
    assert done.model == "writer@1"
    assert server.run(listed()) == ["writer", "writer@1"]
    with pytest.raises(openai.NotFoundError):
        server.run(client.completions.create(model="other", prompt="a"))
