"""How much a client may ask for at once, and how it is told that it was too much. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final


@final
class Refusal(Exception):
    """A request that is not answered: an HTTP status, one sentence for the client, and headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


@final
@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    `body_bytes` of one request (413 beyond), `inputs` of one request and `text_length` of one input in characters (422),
    `queue` inputs that wait for the model at once (429), `batch` inputs after which a batch waits for no more,
    `window` seconds that a batch waits for others, `body_seconds` for a body to arrive (408).
    """

    body_bytes: int = 2**20
    inputs: int = 256
    text_length: int = 20_000
    queue: int = 2_048
    batch: int = 256
    window: float = 0.005
    body_seconds: float = 20.0
    retry_after: int = field(default=1)


def check_length(given: int, limits: Limits) -> None:
    """Refuse a body of so many bytes or more.

    >>> check_length(5, Limits(body_bytes=4))
    Traceback (most recent call last):
    contune.serve.limits.Refusal: the body is longer than 4 bytes; send fewer inputs at once
    """
    if given > limits.body_bytes:
        raise Refusal(413, f"the body is longer than {limits.body_bytes} bytes; send fewer inputs at once")


def check_inputs(inputs: Sequence[str], limits: Limits) -> None:
    """Refuse too many inputs, and inputs that are empty or too long.

    >>> check_inputs(["a", " "], Limits())
    Traceback (most recent call last):
    contune.serve.limits.Refusal: input 1 is empty; send a text
    """
    if not inputs:
        raise Refusal(422, 'inputs is empty; send {"inputs": ["a text"]}')
    if len(inputs) > limits.inputs:
        raise Refusal(422, f"there are {len(inputs)} inputs; send at most {limits.inputs} at once")
    for at, text in enumerate(inputs):
        if len(text) > limits.text_length:
            raise Refusal(422, f"input {at} has {len(text)} characters; send at most {limits.text_length}")
        if not text.strip():
            raise Refusal(422, f"input {at} is empty; send a text")


def check_queue(waiting: int, more: int, limits: Limits) -> None:
    """Refuse `more` inputs where the queue has no room for them; a client may come again after `Retry-After` seconds."""
    if waiting + more > limits.queue:
        again = {"Retry-After": str(limits.retry_after)}
        raise Refusal(429, f"{waiting} inputs are waiting already; try again in {limits.retry_after} s", again)
