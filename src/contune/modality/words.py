"""Rows of words: lists of strings, each of which is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from json import dumps, loads
from typing import TYPE_CHECKING, Any, final

from contune.errors import DataError
from contune.stream.modality import Arrays, Content, Modality

if TYPE_CHECKING:
    from contune.backbone.assemble import Assembly
    from contune.backbone.config import ModelConfig


@final
class Words(Modality):
    """A list of words, read by an encoder of texts, which gives a feature to each of them.

    >>> Words().decode(Words().pack(["to", "be"]))
    ['to', 'be']
    """

    name = "words"
    noun = "words"
    built_on = "text"
    columns = ("tokens", "words")
    asked_for = True
    demand = "no rows of words; objective: tag needs an encoder of texts"
    model_keys = frozenset({"max_length"})

    def holds(self, value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)

    def refuse(self, value: Any, columns: str) -> str | None:
        return None if self.holds(value) else f"the words ({columns}) are no list of strings, at least one"

    def pack(self, value: Any) -> bytes:
        return dumps(list(value)).encode()

    def decode(self, value: Any) -> list[str]:
        if isinstance(value, bytes):
            return list(loads(value))
        if not self.holds(value):
            raise DataError(f"it is {str(value)[:60]!r} and no list of words")
        return list(value)

    def content(self, item: Any) -> Content:
        return Content(str(item).encode())

    def state(self, inputs: Sequence[Any]) -> tuple[Arrays, Mapping[str, Any]]:
        return {}, {"texts": [list(words) for words in inputs]}

    def from_state(self, arrays: Arrays, values: Mapping[str, Any]) -> list[list[str]]:
        return [list(words) for words in values["texts"]]

    def example(self) -> list[str]:
        return ["a"]

    def processor(self, where: str, local: bool) -> Any:
        from contune.backbone.load import load_tokenizer

        return load_tokenizer(where, local)

    def assemble(self, config: "ModelConfig", model: Any, processor: Any, where: str, local: bool) -> "Assembly":
        from contune.backbone.assemble import assemble_text
        from contune.backbone.reader.words import word_reader

        text = assemble_text(config, model, processor, where, local)
        return replace(text, modality=self.name, reader=word_reader(text.reader, config.path))
