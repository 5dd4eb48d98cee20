"""Chat templates: a conversation written with its answer and without, where the difference is what is learned.

So the token that ends an answer, and whatever stands between the prompt and the answer's first word, are the template's
own: `<|im_end|>`, `<end_of_turn>`, `<|eot_id|>`, the empty block of thought of a model that thinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from contune.errors import ConfigError, DataError
from contune.stream.conversation import Message

PROBE = "contune"  # an answer that no template writes by itself
LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}


@final
@dataclass(frozen=True)
class ChatFrame:
    """What a template puts around an answer.

    `opened`: prompts end with its generation prompt, as they do where the text of a whole conversation goes on from there.
    `opening` is what it writes between that and the answer, without special tokens; `ends` are special tokens behind it.
    """

    opened: bool = True
    opening: str = ""
    ends: tuple[int, ...] = ()


def plain_text(messages: Sequence[Message]) -> str:
    """Turns without a template: one text as it is, several with who says them, and a new line before the answer.

    >>> plain_text((Message("user", "hi"),))
    'hi\\n'
    >>> plain_text((Message("system", "Be brief."), Message("user", "hi")))
    'System: Be brief.\\nUser: hi\\nAssistant:\\n'
    """
    if len(messages) == 1 and messages[0].role == "user":
        return f"{messages[0].text}\n"
    said = "".join(f"{LABELS[turn.role]}: {turn.text}\n" for turn in messages)
    return f"{said}{LABELS['assistant']}:\n"


def rendered(tokenizer: Any, messages: Sequence[Message], *, opened: bool) -> str:
    """The messages as the tokenizer's template writes them; `ValueError` with the template's words where it refuses."""
    from jinja2 import TemplateError

    turns = [{"role": message.role, "content": message.text} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=opened, tokenize=False))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(str(error).strip() or type(error).__name__) from error


def with_and_without(tokenizer: Any, messages: Sequence[Message], answer: str, *, opened: bool) -> tuple[str, str]:
    """The prompt, and what a template adds to it for the answer; `ValueError` where it does not write one after the other.

    `opened` is tried first; a template whose generation prompt begins otherwise than its answers do is taken without it.
    """
    whole = rendered(tokenizer, [*messages, Message("assistant", answer)], opened=False)
    for choice in (opened, not opened):
        prompt = rendered(tokenizer, messages, opened=choice)
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
    raise ValueError("it writes the turns before an answer otherwise than the same turns without one")


def chat_frame(tokenizer: Any, name: str) -> ChatFrame:
    """What the tokenizer's template puts around answers, found with a question and an answer.

    Raises `ConfigError` where it refuses even those, or leaves the answer out.
    """
    asked = (Message("user", "Who?"),)
    problem = ""
    for messages in (asked, (Message("system", "Answer."), *asked)):
        try:
            prompt, learned = with_and_without(tokenizer, messages, PROBE, opened=True)
        except ValueError as error:
            problem = problem or str(error)
            continue
        before, found, behind = learned.partition(PROBE)
        if not found:
            problem = "it leaves the answer out"
            continue
        ids = tokens_of(tokenizer, before)
        opening = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        first = next((token for token in tokens_of(tokenizer, behind) if is_special(tokenizer, token)), None)
        opened = prompt == rendered(tokenizer, messages, opened=True)
        return ChatFrame(opened, opening, () if first is None else (first,))
    raise ConfigError(
        f"the chat template of {name} cannot write a question and its answer ({problem}); mend it, or set model.template: "
        "plain"
    )


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with nothing added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def is_special(tokenizer: Any, token: int) -> bool:
    """Whether a token is no text but a mark of the tokenizer's."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and bool(added.special))


def refusal(where: str, problem: ValueError) -> DataError:
    """A row that the template does not write."""
    return DataError(
        f"the chat template cannot write {where} ({problem}); change its turns to what the template allows (such as no "
        "system turn, and user and assistant in turn), or set model.template: plain"
    )
