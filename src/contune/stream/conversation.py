"""Language examples: a prompt and the answers that are right. A document is an answer without a prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import numpy as np

from contune.metric.forms.words import Form
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
    there are any. `measure` says how an answer is judged, and `form` by which normal form (see
    `contune.metric.answers.text`). `ends` is false for a piece of a document that goes on, after which no end-of-text
    token is learned.

    `verbatim`: without a chat template the answer follows the prompt as it stands, with no line between them. `before` is
    text of the same document that a piece is read with and that is neither learned nor scored. `place` names file and row
    in errors and is no part of the example.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    measure: Measure = "exact-match"
    ends: bool = True
    form: Form = "plain"
    verbatim: bool = False
    before: str = ""
    place: str = field(default="", compare=False, repr=False)
    encoded: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        messages = [[turn.role, turn.text] for turn in self.messages]
        values = [messages, list(self.answers), list(self.options), self.measure, self.ends]
        more = {"form": self.form, "verbatim": self.verbatim, "before": self.before}
        unusual = {name: value for name, value in more.items() if value != _USUAL[name]}
        object.__setattr__(self, "encoded", json.dumps([*values, *([unusual] if unusual else [])], ensure_ascii=False))

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


_USUAL = {"form": "plain", "verbatim": False, "before": ""}


def decoded(text: str) -> Conversation:
    """The conversation that `str` of it was.

    >>> one = Conversation((Message("user", "2 + 2?"),), ("4", "four"), form="squad")
    >>> decoded(str(one)) == one
    True
    """
    messages, answers, options, measure, ends, *more = json.loads(text)
    asked = tuple(Message(role, said) for role, said in messages)
    return Conversation(asked, tuple(answers), tuple(options), measure, ends, **(more[0] if more else {}))


def every_answer(conversation: Conversation) -> list[Conversation]:
    """A conversation for every turn of the assistant, each asked with all that was said before it; the last one last.

    >>> turns = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "bye"))
    >>> [one.answer for one in every_answer(Conversation(turns, ("see you",)))]
    ['hello', 'see you']
    """
    said = [
        at for at, turn in enumerate(conversation.messages) if at and turn.role == "assistant" and turn.text.strip()
    ]
    turns = conversation.messages
    return [*(replace(conversation, messages=turns[:at], answers=(turns[at].text,)) for at in said), conversation]


def language_examples(conversations: Sequence[Conversation], ids: Sequence[int]) -> Examples:
    """Conversations as examples; all have the one label 0, since answers are text."""
    rows = np.zeros(len(conversations), dtype=np.int64)
    return Examples(list(conversations), rows, np.asarray(ids, dtype=np.int64), "chat")
