"""Names of models, and replies in OpenAI's form. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from contune.serve.keeper import Reply, Version
from contune.serve.limits import Refusal


def pinned(model: str, name: str, version: Version) -> int | None:
    """The version that a model's name asks for, None where it takes the one that answers.

    >>> answers = Version(3, "id", "march", 3)
    >>> pinned("support", "support", answers), pinned("support@3", "support", answers)
    (None, 3)
    """
    if model == name:
        return None
    require_version(model, name, version)
    return version.number


def require_version(model: str, name: str, version: Version) -> None:
    """Refuse where a name asks for another version than the one that answers, so that a pinned name never gets another."""
    if model not in (name, f"{name}@{version.number}"):
        raise Refusal(404, f"there is no such model here; GET /v1/models lists {name} and {name}@{version.number}")


def models(name: str, version: Version, created: int) -> Mapping[str, Any]:
    """The list of models: the plain name, and the version that answers."""
    one = {"object": "model", "created": created, "owned_by": "contune"}
    return {"object": "list", "data": [{"id": name, **one}, {"id": f"{name}@{version.number}", **one}]}


def chat_reply(reply: Reply, name: str, request: str, created: int) -> Mapping[str, Any]:
    """One message of the assistant."""
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
        for at, text in enumerate(reply.labels)
    ]
    return {"id": f"chatcmpl-{request}", "object": "chat.completion", **common(reply, name, created, choices)}


def completion_reply(reply: Reply, name: str, request: str, created: int) -> Mapping[str, Any]:
    """One text for every prompt."""
    choices = [
        {"index": at, "text": text, "finish_reason": "stop", "logprobs": None} for at, text in enumerate(reply.labels)
    ]
    return {"id": f"cmpl-{request}", "object": "text_completion", **common(reply, name, created, choices)}


def common(reply: Reply, name: str, created: int, choices: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What both forms have: which version has written, and what."""
    version = reply.version
    return {
        "created": created,
        "model": f"{name}@{version.number}",
        "system_fingerprint": version.id[:12],
        "choices": list(choices),
    }
