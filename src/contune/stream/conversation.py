"""Language examples: a prompt and the answers that are right. A document is an answer without a prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np

from contune.stream.task import Examples

Measure = Literal["exact-match", "number", "options", "likelihood", "rouge-l", "tokens"]
Role = Literal["system", "user", "assistant"]


@final
@dataclass(frozen=True)
class Message:
    """What one side of a conversation says."""

    role: Role
    text: str


@final
@dataclass(frozen=True)
class Conversation:
    """What a language model is asked and what it should say.

    `messages` come before the answer; none of them makes the answer a document, learned from its first token on. Training
    takes the first of the `answers`; each of them counts as right. `options` are what an answer is chosen from, where
    there are any. `measure` says how an answer is judged (see `contune.metric.text`). `ends` is false for a piece of a
    document that goes on, after which no end-of-text token is learned.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    measure: Measure = "exact-match"
    ends: bool = True
    encoded: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        messages = [[turn.role, turn.text] for turn in self.messages]
        values = [messages, list(self.answers), list(self.options), self.measure, self.ends]
        object.__setattr__(self, "encoded", json.dumps(values, ensure_ascii=False))

    def __str__(self) -> str:
        return self.encoded

    @property
    def answer(self) -> str:
        """What training learns to say."""
        return self.answers[0]

    @property
    def prompt(self) -> str:
        """All turns as plain text, one a paragraph; a single turn as it is."""
        return "\n".join(turn.text for turn in self.messages)


def decoded(text: str) -> Conversation:
    """The exchange that `str` of it was.

    >>> one = Conversation((Message("user", "2 + 2?"),), ("4", "four"))
    >>> decoded(str(one)) == one
    True
    """
    messages, answers, options, measure, ends = json.loads(text)
    return Conversation(
        tuple(Message(role, said) for role, said in messages), tuple(answers), tuple(options), measure, ends
    )


def language_examples(conversations: Sequence[Conversation], ids: Sequence[int]) -> Examples:
    """Exchanges as examples; all have the one label 0, since answers are text."""
    rows = np.zeros(len(conversations), dtype=np.int64)
    return Examples(list(conversations), rows, np.asarray(ids, dtype=np.int64), "chat")
