"""Language as tokens: prompts and answers laid out for a causal model, its own language head, and generation.

Training rows are `prompt answer end`, padded on the right; what is predicted are the tokens of the answer and its end.
Prompts to be answered are padded on the left, so that every row goes on at the same place.

Shapes: B rows, L positions, T tokens to predict in the whole batch, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from contune.backbone.config import ModelConfig
from contune.backbone.reader.chat import (
    ChatFrame,
    chat_frame,
    plain_text,
    refusal,
    rendered,
    tokens_of,
    with_and_without,
)
from contune.backbone.reader.inputs import ModelInputs, Prepared, PreparedText, Reader, Rows, TokenRun, gather
from contune.backbone.reader.text import pad, require_known, tokenizer_hash
from contune.errors import ConfigError, DataError
from contune.stream.conversation import Conversation, Message

Template = Literal["plain", "chat"]


@final
@dataclass(frozen=True, eq=False)
class PreparedConversations(Prepared):
    """Token ids of prompts and answers. `texts` holds both in one row; the prompt is its first `starts` (n,) tokens.

    At least one token comes before what is predicted: a start token, or else the first one of a document, whose bytes are
    `unscored` (n,).
    """

    texts: PreparedText
    starts: Rows
    unscored: Rows

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Rows:
        return self.texts.lengths

    @property
    def truncated(self) -> int:
        return self.texts.truncated

    def take(self, rows: Rows | Sequence[int]) -> "PreparedConversations":
        chosen = np.asarray(rows, dtype=np.int64)
        return PreparedConversations(self.texts.take(chosen), self.starts[chosen], self.unscored[chosen])

    def units(self, rows: Rows) -> int:
        return int((self.lengths[rows] - self.starts[rows]).sum())

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer, its end counted; 0 without rows."""
        return int((self.lengths - self.starts).max(initial=0))


@final
@dataclass(frozen=True, eq=False)
class LanguageReader(Reader):
    """Reads conversations with a model's own fast tokenizer.

    `template` `plain` writes turns one below the other, with who says them where there are several, and a new line before
    the answer; prompts with a completion are joined as they stand. `chat` is the tokenizer's own chat template, and what
    is learned is all that it writes more with the answer than without (`frame`).

    A prompt that does not fit before its answer is an error, or with `cut_prompts` loses its oldest turns and then the
    beginning of the oldest text that is left, and is counted; start tokens, system turns, the template and answers are
    never cut. `end` are tokens that close an answer. `rows` is how many tokens the model has embeddings for, `positions`
    how many places, None where there is no such limit. `decoder`: an encoder reads the prompt and a decoder writes the
    answer; the prompt has `max_length` tokens for itself, the answer one less.
    """

    tokenizer: Any
    max_length: int
    pad_id: int
    end: tuple[int, ...]
    template: Template
    cut_prompts: bool
    device: torch.device
    decoder: bool = False
    frame: ChatFrame = field(default_factory=ChatFrame)
    rows: int | None = None
    positions: int | None = None

    def description(self) -> str:
        own = [tokenizer_hash(self.tokenizer), self.max_length, self.pad_id, self.end, self.template, self.cut_prompts]
        return f"language {own} {self.tokenizer.chat_template if self.template == 'chat' else ''}"

    def prepare(self, inputs: Sequence[Any]) -> PreparedConversations:
        run, starts, unscored = TokenRun(), array("q"), array("q")
        for row, item in enumerate(inputs):
            conversation = as_conversation(item, row)
            prompt, answer, cut = self._tokens(conversation, row)
            require_known([*prompt, *answer], self.rows, self.tokenizer, where(conversation, row))
            run.append([*prompt, *answer], cut=cut)
            starts.append(len(prompt))
            unscored.append(self._unscored(conversation))
        return PreparedConversations(run.prepared(), np.array(starts, np.int64), np.array(unscored, np.int64))

    def _tokens(self, conversation: Conversation, row: int) -> tuple[list[int], list[int], bool]:
        """Tokens before and of the answer, and whether the prompt lost its beginning."""
        name = where(conversation, row)
        prompt, answer = (
            self._document(conversation, name) if not conversation.messages else self._laid(conversation, name)
        )
        own = self.decoder and len(answer) < self.max_length  # one position less: see `collate`
        space = self.max_length - (0 if own else len(answer))
        if space < 1:
            raise DataError(
                f"the answer of {name} ({conversation.answer[:60]!r}) has {len(answer)} tokens, and with a prompt it "
                f"does not fit in {self.max_length}; raise model.max_length, shorten it, or for documents lower "
                "stream.language.piece"
            )
        if not conversation.messages:
            start = 1 if self.tokenizer.bos_token_id is not None else 0
            return prompt[:start] + prompt[start:][max(len(prompt) - space, 0) :], answer, False
        if len(prompt) <= space:
            return prompt, answer, False
        if not self.cut_prompts:
            raise DataError(
                f"the prompt of {name} ({conversation.prompt[:60]!r}) has {len(prompt)} tokens and its answer "
                f"{len(answer)}, more than the {self.max_length} that fit; raise model.max_length, or set "
                "model.cut_prompts: true to drop the beginning of such prompts"
            )
        if not conversation.answer and not self.decoder:  # to be written, which takes places too
            space = min(space, self.max_length - self.max_length // 4)
        return (*self._cut(conversation, name, space), True)

    def _document(self, conversation: Conversation, name: str) -> tuple[list[int], list[int]]:
        """A document after its start token and the text before it; without either, its first token is what is given."""
        if self.decoder:
            raise DataError(
                f"{name} is a document ({conversation.answer[:60]!r}), which a model with an encoder cannot learn as one "
                "text; take a causal model"
            )
        start = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        before = tokens_of(self.tokenizer, conversation.before) if conversation.before else []
        answer = tokens_of(self.tokenizer, conversation.answer) + (list(self.end[:1]) if conversation.ends else [])
        return ([*start, *before], answer) if start or before else (answer[:1], answer[1:])

    def _unscored(self, conversation: Conversation) -> int:
        """Bytes of a document that nothing comes before to predict them from."""
        if conversation.messages or conversation.before or self.tokenizer.bos_token_id is not None:
            return 0
        return first_bytes(self.tokenizer, conversation.answer)

    def _laid(self, conversation: Conversation, name: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt and of its answer, whole."""
        end = list(self.end[:1]) if conversation.ends else []
        try:
            if self.template == "chat" and conversation.answer:
                return self._chat(conversation)
            prompt = self._prompt(conversation)
        except ValueError as error:
            raise refusal(name, error) from error
        answer = tokens_of(self.tokenizer, conversation.answer)
        if conversation.verbatim and self.template == "plain" and not self.decoder:
            joined = self._opened(conversation.prompt + conversation.answer)
            answer = joined[len(prompt) :] if joined[: len(prompt)] == prompt else answer
        return prompt, answer + end

    def _prompt(self, conversation: Conversation) -> list[int]:
        """The tokens of a prompt as it is asked; `ValueError` where a template refuses it."""
        if self.template == "chat":
            return tokens_of(self.tokenizer, rendered(self.tokenizer, conversation.messages, opened=self.frame.opened))
        return self._opened(conversation.prompt if conversation.verbatim else plain_text(conversation.messages))

    def _opened(self, text: str) -> list[int]:
        """A text with the tokenizer's own start, and without the end that some put behind every text."""
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        closed = bool(ids) and ids[-1] in self.end
        return ids[:-1] if closed and not self.decoder else ids

    def _chat(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Prompt and answer as the template writes them; an answer that it does not close gets the tokenizer's end."""
        asked = conversation.messages, conversation.answer
        prompt, learned = with_and_without(self.tokenizer, *asked, opened=self.frame.opened)
        before, whole = tokens_of(self.tokenizer, prompt), tokens_of(self.tokenizer, prompt + learned)
        same = whole[: len(before)] == before and not self.decoder
        answer = whole[len(before) :] if same else tokens_of(self.tokenizer, learned)
        closed = any(token in self.end for token in answer) or not conversation.ends
        return before, answer + ([] if closed else list(self.end[:1]))

    def _cut(self, conversation: Conversation, name: str, space: int) -> tuple[list[int], list[int]]:
        """The same with as much of the newest content as leaves the prompt `space` tokens."""
        kept = list(conversation.messages)
        while (turns := shorter(kept)) is not None:
            kept = turns
            found = self._laid(replace(conversation, messages=tuple(kept)), name)
            if len(found[0]) <= space:
                return found
        at = next((place for place, turn in enumerate(kept) if turn.role != "system"), 0)
        text = kept[at].text

        def without(count: int) -> tuple[list[int], list[int]]:
            turns = [*kept[:at], replace(kept[at], text=text[count:]), *kept[at + 1 :]]
            return self._laid(replace(conversation, messages=tuple(turns)), name)

        fits, most = len(text), 0  # dropping all of it must do, dropping `most` characters does not
        if len(without(fits)[0]) > space:
            raise DataError(
                f"the prompt of {name} has more than {space} tokens even without its text: what stands around it, never "
                "cut (a system turn, the template) is too long; raise model.max_length, or shorten the system turn"
            )
        while fits - most > 1:
            middle = (fits + most) // 2
            fits, most = (middle, most) if len(without(middle)[0]) <= space else (fits, middle)
        return without(fits)

    def collate(
        self, parts: Sequence[tuple[Prepared, Rows]], *, augment: torch.Generator | None, pixels: bool
    ) -> ModelInputs:
        pairs = gather(parts, PreparedConversations)
        if self.decoder:
            asked = self.prompts_only(parts)
            said = [prepared.texts.tokens(row)[prepared.starts[row] :] for prepared, row in pairs]
            answers, targets = pad(said, self.pad_id)
            assert asked.ids is not None
            if answers.shape[1] == asked.ids.shape[1]:  # so that positions of encoder and decoder are told apart
                answers, targets = functional.pad(answers, (0, 1), value=self.pad_id), functional.pad(targets, (0, 1))
            answers, targets = answers.to(self.device), targets.to(self.device)
            return ModelInputs(len(pairs), asked.ids, asked.mask, targets=targets, answers=answers)
        ids, mask = pad([prepared.texts.tokens(row) for prepared, row in pairs], self.pad_id)
        starts = torch.tensor([int(prepared.starts[row]) for prepared, row in pairs])
        targets = mask & (torch.arange(ids.shape[1]) >= starts.unsqueeze(1))
        ids, mask, targets = (t.to(self.device) for t in (ids, mask, targets))
        return ModelInputs(len(pairs), ids, mask, targets=targets)

    def prompts_only(self, parts: Sequence[tuple[Prepared, Rows]], max_new_tokens: int = 0) -> ModelInputs:
        """The prompts alone. With `max_new_tokens` they are padded on the left, so that all rows go on at one place.

        Without it, and where a decoder writes, they are padded on the right.
        """
        pairs = gather(parts, PreparedConversations)
        prompts = [prepared.texts.tokens(row)[: prepared.starts[row]] for prepared, row in pairs]
        if not max_new_tokens or self.decoder:
            ids, mask = pad(prompts, self.pad_id)
            return ModelInputs(len(pairs), ids.to(self.device), mask.to(self.device), max_new_tokens=max_new_tokens)
        ids, mask = (t.flip(1) for t in pad([prompt[::-1] for prompt in prompts], self.pad_id))
        return ModelInputs(len(pairs), ids.to(self.device), mask.to(self.device), max_new_tokens=max_new_tokens)

    @property
    def longest(self) -> int:
        return self.max_length

    @property
    def fill(self) -> int:
        """What stands behind the end of an answer: the end again, or padding where a model has none."""
        return self.end[0] if self.end else self.pad_id

    def rooms(self, inputs: ModelInputs, mask: Tensor) -> list[int]:
        """Tokens that may be written after each row: what was asked for, or what its own prompt leaves of the model.

        `mask` (B, L) is true on the tokens of the prompts and on whatever is put before them.
        """
        assert inputs.mask is not None
        own = [0] * len(inputs) if self.decoder else inputs.mask.sum(dim=1).tolist()
        places = [0] * len(inputs) if self.decoder else mask.sum(dim=1).tolist()
        most = self.max_length if self.positions is None else self.positions
        left = [min(self.max_length - had, most - all_) for had, all_ in zip(own, places, strict=True)]
        return [max(min(inputs.max_new_tokens, room), 1) for room in left]

    def text(self, tokens: NDArray[np.int64]) -> str:
        """What generated tokens say, up to the first that ends an answer, without what a chat template writes itself."""
        ends = np.flatnonzero(np.isin(tokens, self.end))
        said = str(self.tokenizer.decode(tokens[: ends[0]] if len(ends) else tokens, skip_special_tokens=True))
        if self.template == "plain":
            return said
        return said.strip().removeprefix(self.frame.opening).strip()


def as_conversation(item: object, row: int) -> Conversation:
    """A conversation, or a plain text as a prompt whose answer is not known."""
    if isinstance(item, str):
        return Conversation((Message("user", item),), ("",))
    if not isinstance(item, Conversation):
        raise DataError(
            f"input {row} is a {type(item).__name__}; a language model is asked with texts or conversations"
        )
    return item


def where(item: object, row: int) -> str:
    """How an error names an example: by its file and row, or by its number where it is from no file."""
    return (item.place if isinstance(item, Conversation) else "") or f"row {row}"


def shorter(messages: Sequence[Message]) -> list[Message] | None:
    """The messages without the oldest question and what followed up to the next one; None where one is all there is.

    >>> turns = [Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    >>> [turn.text for turn in shorter(turns)], shorter(turns[:2]) is None
    (['s', 'c'], True)
    """
    said = [at for at, turn in enumerate(messages) if turn.role != "system"]
    later = [at for at in said[1:] if messages[at].role == "user"]
    if not later:
        return None
    return [turn for at, turn in enumerate(messages) if turn.role == "system" or at >= later[0]]


def first_bytes(tokenizer: Any, text: str) -> int:
    """Bytes of a text that its first token stands for; of a letter that tokens share, the part that is its own."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = found["input_ids"], found["offset_mapping"]
    if not ids:
        return 0
    stop = spans[0][1]
    if len(spans) > 1 and spans[1][0] < stop:  # a token of single bytes
        piece = tokenizer.convert_ids_to_tokens(ids[0])
        return 1 if piece.startswith("<0x") else len(piece)
    return len(text[:stop].encode())


def ends_of(tokenizer: Any, generation: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's own first, then those that the model's settings name."""
    named = getattr(generation, "eos_token_id", None)
    more = named if isinstance(named, list) else [named]
    found = dict.fromkeys(token for token in [tokenizer.eos_token_id, *more] if isinstance(token, int))
    return tuple(found)


def language_reader(
    config: ModelConfig, whole: Any, tokenizer: Any, length: int, pad_id: int, positions: int | None
) -> LanguageReader:
    """The reader for a model with this tokenizer; `ConfigError` where a chat template is asked for and there is none."""
    if config.template == "chat" and tokenizer.chat_template is None:
        raise ConfigError(
            f"model.template is chat, but the tokenizer of {config.path} has no chat template; set model.template: plain"
        )
    chat = config.template == "chat" or (config.template == "auto" and tokenizer.chat_template is not None)
    frame = chat_frame(tokenizer, config.path) if chat else ChatFrame()
    end = ends_of(tokenizer, whole.generation_config)
    return LanguageReader(
        tokenizer=tokenizer,
        max_length=length,
        pad_id=pad_id,
        end=tuple(dict.fromkeys([*end, *frame.ends])),
        template="chat" if chat else "plain",
        cut_prompts=config.cut_prompts,
        device=whole.device,
        decoder=bool(whole.config.is_encoder_decoder),
        frame=frame,
        rows=int(whole.get_input_embeddings().weight.shape[0]),
        positions=positions,
    )
