"""Conversations: what a language model is asked, and the answers that are right."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from contune.errors import DataError
from contune.stream.conversation import Conversation, Message, decoded
from contune.stream.modality import Arrays, Content, Modality

if TYPE_CHECKING:
    from contune.backbone.assemble import Assembly
    from contune.backbone.config import ModelConfig


@final
class Chat(Modality):
    """A conversation, or a piece of a document; a model answers it in writing with its own language head.

    A plain text is a prompt whose answer is not known. Tables are read by `contune.stream.chat.language`, whose layouts have
    several columns.
    """

    name = "chat"
    noun = "conversations"
    built_on = "text"
    demand = "writes no text; objective: write needs a causal language model"
    model_keys = frozenset({"max_length", "template", "cut_prompts"})
    asked_with = frozenset({"text"})
    conversations = True

    @property
    def hash_name(self) -> str:
        return "language"

    def holds(self, value: object) -> bool:
        return isinstance(value, Conversation)

    def refuse(self, value: Any, columns: str) -> str | None:
        return None if self.holds(value) else f"the conversation ({columns}) is a {type(value).__name__}"

    def pack(self, value: Any) -> bytes:
        return str(value).encode()

    def decode(self, value: Any) -> Conversation:
        if isinstance(value, bytes):
            return decoded(value.decode())
        if not isinstance(value, Conversation):
            raise DataError(f"it is a {type(value).__name__} and not a conversation")
        return value

    def content(self, item: Any) -> Content:
        return Content(str(item).encode())

    def state(self, inputs: Sequence[Any]) -> tuple[Arrays, Mapping[str, Any]]:
        return {}, {"texts": [str(conversation) for conversation in inputs]}

    def from_state(self, arrays: Arrays, values: Mapping[str, Any]) -> list[Conversation]:
        return [decoded(text) for text in values["texts"]]

    def example(self) -> Conversation:
        return Conversation((Message("user", "a"),), ("a",))

    def processor(self, where: str, local: bool) -> Any:
        from contune.backbone.load import load_tokenizer

        return load_tokenizer(where, local)

    def assemble(self, config: "ModelConfig", model: Any, processor: Any, where: str, local: bool) -> "Assembly":
        from contune.backbone.assemble import assemble_language

        return assemble_language(config, model, processor)
