"""What OpenAI's clients send. What would change how a text is written is refused, and not taken and left undone."""

from typing import Literal, final

from pydantic import Field

from contune.serve.bodies import Body
from contune.serve.limits import Limits, Refusal, check_inputs
from contune.stream.conversation import Conversation, Message, Role


@final
class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


@final
class ChatMessage(Body):
    """What one side says."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, max_length=64)

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Written(Body):
    """What both routes share. A text is always the likeliest one, as long as the answers that were learned."""

    model: str = Field(description="the plain name, or name@version while that version answers; see /v1/models")
    temperature: float | None = Field(None, ge=0, le=0, description="0, or left out")
    top_p: float | None = Field(None, ge=1, le=1)
    n: int | None = Field(None, ge=1, le=1)
    stream: Literal[False] | None = None
    user: str | None = Field(None, max_length=200, description="not looked at")


@final
class ChatBody(Written):
    """A conversation to be answered."""

    messages: list[ChatMessage]


@final
class CompletionBody(Written):
    """Prompts to be answered."""

    prompt: str | list[str]


def conversation_of(body: ChatBody, limits: Limits) -> Conversation:
    """The conversation that is asked; its last message is one that can be answered.

    >>> turns = [ChatMessage(role="developer", content="be brief"), ChatMessage(role="user", content="a")]
    >>> body = ChatBody(model="m", messages=turns)
    >>> [turn.role for turn in conversation_of(body, Limits()).messages]
    ['system', 'user']
    """
    check_inputs([message.text for message in body.messages], limits)
    if body.messages[-1].role == "assistant":
        raise Refusal(422, "the last message is the assistant's own; end with one of the user")
    roles: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
    return Conversation(tuple(Message(roles[one.role], one.text) for one in body.messages), ("",))
