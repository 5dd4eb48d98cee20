"""Texts: strings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from contune.errors import DataError
from contune.stream.modality import Arrays, Content, Modality, is_unicode

if TYPE_CHECKING:
    from contune.backbone.assemble import Assembly
    from contune.backbone.config import ModelConfig


@final
class Text(Modality):
    """A text, read by an encoder or a causal model through the model's own tokenizer.

    >>> Text().decode(Text().pack("über"))
    'über'
    """

    name = "text"
    noun = "texts"
    input_name = "input_ids"
    columns = ("text", "sentence", "content", "input")
    model_keys = frozenset({"max_length"})

    def holds(self, value: object) -> bool:
        return isinstance(value, str)

    def refuse(self, value: Any, columns: str) -> str | None:
        if value is None:
            return f"the text ({columns}) is missing"
        if not isinstance(value, str):
            return f"the text ({columns}) is a {type(value).__name__} and not a string"
        if not value.strip():
            return f"the text ({columns}) is empty"
        return None if is_unicode(value) else f"the text ({columns}) holds half of a surrogate pair"

    def pack(self, value: Any) -> bytes:
        return str(value).encode()

    def decode(self, value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode()
        if not isinstance(value, str):
            raise DataError(f"it is a {type(value).__name__} and not a string")
        return value

    def content(self, item: Any) -> Content:
        return Content(str(item).encode())

    def state(self, inputs: Sequence[Any]) -> tuple[Arrays, Mapping[str, Any]]:
        return {}, {"texts": list(inputs)}

    def from_state(self, arrays: Arrays, values: Mapping[str, Any]) -> list[str]:
        return list(values["texts"])

    def example(self) -> str:
        return "a"

    def processor(self, where: str, local: bool) -> Any:
        from contune.backbone.load import load_tokenizer

        return load_tokenizer(where, local)

    def assemble(self, config: "ModelConfig", model: Any, processor: Any, where: str, local: bool) -> "Assembly":
        from contune.backbone.assemble import assemble_text

        return assemble_text(config, model, processor, where, local)
