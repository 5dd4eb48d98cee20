"""What was asked lately, so that users can say what would have been right. In memory alone, and bounded."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import final

from contune.serve.keeper import Reply
from contune.serve.limits import Refusal

MOST_REQUESTS, MOST_CHARACTERS = 10_000, 2**24


@final
@dataclass(frozen=True)
class Request:
    """A request that was answered; `said` are the right labels that came since, by input."""

    inputs: tuple[str, ...]
    reply: Reply
    said: dict[int, str] = field(default_factory=dict)


@final
class Remembered:
    """The last requests by their id, as many as fit."""

    def __init__(self, requests: int = MOST_REQUESTS, characters: int = MOST_CHARACTERS) -> None:
        self._limits = requests, characters
        self._kept: OrderedDict[str, Request] = OrderedDict()
        self._characters = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, name: str, request: Request) -> None:
        """Keep a request; the oldest are let go where there are too many."""
        self._kept[name] = request
        self._characters += sum(map(len, request.inputs))
        while len(self._kept) > self._limits[0] or self._characters > self._limits[1]:
            _, old = self._kept.popitem(last=False)
            self._characters -= sum(map(len, old.inputs))

    def find(self, name: str, at: int) -> Request:
        """The request of that id, which has an input `at`."""
        if name not in self._kept:
            raise Refusal(404, f"no such request is remembered; the last {self._limits[0]} since the start are")
        found = self._kept[name]
        if at >= len(found.inputs):
            raise Refusal(422, f"input is {at}, and the request had {len(found.inputs)}; count from 0")
        return found
