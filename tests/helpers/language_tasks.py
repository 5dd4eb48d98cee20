"""Small tasks whose answers are written, and a tiny model that writes."""

import json
from pathlib import Path
from typing import Any

from word_tasks import tiny_folder

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.stream.conversation import Conversation, Message, language_examples
from contune.stream.task import Task

WRITER = str(tiny_folder("llama-writer"))
TRAIN = {"epochs": 2, "batch_size": 4, "lr": 5e-3}
WORDS = ("sun", "dog", "cat", "sea", "ant", "hill", "bee", "moon")


def conversation(prompt: str, answer: str, **more: Any) -> Conversation:
    return Conversation((Message("user", prompt),), (answer,), **more)


def experience(name: str, odd: str = "yes", even: str = "no") -> Task:
    asked = [conversation(f"Is {word} {name}", odd if at % 2 else even) for at, word in enumerate(WORDS)]
    chosen = [Conversation(one.messages, one.answers, (odd, even), "likelihood") for one in asked]
    return Task(name, ("answer",), language_examples(asked, range(8)), language_examples(chosen, range(8)))


def writer(name: str = "llama-writer") -> Backbone:
    return Backbone.load(ModelConfig(path=str(tiny_folder(name))), reads="chat")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def config_of(tmp_path: Path, method: object) -> str:
    files = {}
    for name, words in (("big", ("yes", "no")), ("red", ("red", "blue"))):
        rows = [{"prompt": f"Is {w} {name}", "completion": words[at % 2]} for at, w in enumerate(WORDS)]
        files[name] = write_rows(tmp_path / f"{name}.jsonl", rows)
    return json.dumps(
        {
            "model": {"path": WRITER},
            "stream": {"objective": "write", "data": {"train": files, "test": files}, "order_seed": None},
            "method": method,
            "train": TRAIN,
        }
    )
