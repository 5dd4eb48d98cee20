"""Language as tokens: prompts and answers laid out for a causal model, its own language head, and generation.

Training rows are `prompt answer end`, padded on the right; what is predicted are the tokens of the answer and its end.
Prompts to be answered are padded on the left, so that every row goes on at the same place.

Shapes: B rows, L positions, T tokens to predict in the whole batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.backbone.inputs import ModelInputs, Prepared, PreparedText, Reader, Rows, from_token_lists, gather
from contune.backbone.text import pad, tokenizer_hash
from contune.errors import ConfigError, DataError
from contune.stream.exchange import Exchange, Turn

Template = Literal["plain", "chat"]
TOLERANCE = 1e-4  # between the model's own scores and those computed from its states, relative to their size


@final
@dataclass(frozen=True, eq=False)
class PreparedExchanges(Prepared):
    """Token ids of prompts and answers. `texts` holds both in one row; the prompt is its first `starts` (n,) tokens.

    At least one token comes before what is predicted: a start token, or else the first one of a document.
    """

    texts: PreparedText
    starts: Rows

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Rows:
        return self.texts.lengths

    @property
    def truncated(self) -> int:
        return self.texts.truncated

    def take(self, rows: Rows | Sequence[int]) -> "PreparedExchanges":
        chosen = np.asarray(rows, dtype=np.int64)
        return PreparedExchanges(self.texts.take(chosen), self.starts[chosen])

    def viewed(self, view: int) -> "PreparedExchanges":
        raise ConfigError(f"view {view} was asked for texts; augmented views exist for images only, leave them off")

    def units(self, rows: Rows) -> int:
        return int((self.lengths[rows] - self.starts[rows]).sum())

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer, its end counted; 0 without rows."""
        return int((self.lengths - self.starts).max(initial=0))


@final
@dataclass(frozen=True, eq=False)
class LanguageReader(Reader):
    """Reads exchanges with a model's own fast tokenizer.

    `template` `plain` writes the turns one below the other and a new line before the answer; `chat` is the tokenizer's
    own chat template. A prompt that does not fit before its answer is an error, or with `cut_prompts` loses its
    beginning and is counted; an answer is never cut. `end` are tokens that close an answer.
    """

    tokenizer: Any
    max_length: int
    pad_id: int
    end: tuple[int, ...]
    template: Template
    cut_prompts: bool
    device: torch.device

    def description(self) -> str:
        own = [tokenizer_hash(self.tokenizer), self.max_length, self.pad_id, self.end, self.template, self.cut_prompts]
        return f"language {own} {self.tokenizer.chat_template if self.template == 'chat' else ''}"

    def prepare(self, inputs: Sequence[Any]) -> PreparedExchanges:
        rows = [self._tokens(as_exchange(item, at), at) for at, item in enumerate(inputs)]
        cut = np.array([lost for _, _, lost in rows], dtype=np.bool_)
        lists = [np.array([*prompt, *answer], dtype=np.int32) for prompt, answer, _ in rows]
        starts = np.array([len(prompt) for prompt, _, _ in rows], dtype=np.int64)
        return PreparedExchanges(from_token_lists(lists, cut), starts)

    def _tokens(self, exchange: Exchange, row: int) -> tuple[list[int], list[int], bool]:
        """Tokens before and of the answer, and whether the prompt lost its beginning."""
        prompt = self._prompt(exchange)
        answer = list(self.tokenizer(exchange.answer, add_special_tokens=False)["input_ids"])
        answer += list(self.end[:1]) if exchange.ends else []
        if not prompt:
            prompt, answer = answer[:1], answer[1:]
        room = self.max_length - len(answer)
        if room < 1:
            raise DataError(
                f"the answer of row {row} ({exchange.answer[:60]!r}) has {len(answer)} tokens, and with a prompt it does "
                f"not fit in {self.max_length}; raise model.max_length, shorten it, or for documents lower "
                "stream.language.piece"
            )
        if len(prompt) <= room:
            return prompt, answer, False
        if not self.cut_prompts:
            raise DataError(
                f"the prompt of row {row} ({exchange.prompt[:60]!r}) has {len(prompt)} tokens and its answer {len(answer)}, "
                f"more than the {self.max_length} that fit; raise model.max_length, or set model.cut_prompts: true to drop "
                "the beginning of such prompts"
            )
        return prompt[len(prompt) - room :], answer, True

    def _prompt(self, exchange: Exchange) -> list[int]:
        if not exchange.turns:
            start = self.tokenizer.bos_token_id
            return [] if start is None else [start]
        if self.template == "chat":
            return self._chat(exchange.turns)
        text = f"{exchange.prompt}\n"
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] in self.end else ids  # some tokenizers close every text

    def _chat(self, turns: Sequence[Turn]) -> list[int]:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        found = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(found, add_special_tokens=False)["input_ids"])

    def collate(
        self, parts: Sequence[tuple[Prepared, Rows]], *, augment: torch.Generator | None, pixels: bool
    ) -> ModelInputs:
        if augment is not None:
            raise ConfigError("augmentation was asked for texts; it exists for images only, leave it off")
        pairs = gather(parts, PreparedExchanges)
        ids, mask = pad([prepared.texts.tokens(row) for prepared, row in pairs], self.pad_id)
        starts = torch.tensor([int(prepared.starts[row]) for prepared, row in pairs])
        targets = mask & (torch.arange(ids.shape[1]) >= starts.unsqueeze(1))
        ids, mask, targets = (t.to(self.device) for t in (ids, mask, targets))
        return ModelInputs(len(pairs), ids, mask, targets=targets)

    def questions(self, parts: Sequence[tuple[Prepared, Rows]], room: int = 0) -> ModelInputs:
        """The prompts alone: padded on the left with `room` for so many new tokens, or on the right without."""
        pairs = gather(parts, PreparedExchanges)
        prompts = [prepared.texts.tokens(row)[: prepared.starts[row]] for prepared, row in pairs]
        if not room:
            ids, mask = pad(prompts, self.pad_id)
            return ModelInputs(len(pairs), ids.to(self.device), mask.to(self.device))
        short = [prompt[-max(self.max_length - room, 1) :] for prompt in prompts]
        ids, mask = (t.flip(1) for t in pad([prompt[::-1] for prompt in short], self.pad_id))
        return ModelInputs(len(pairs), ids.to(self.device), mask.to(self.device), room=room)

    def text(self, tokens: NDArray[np.int64]) -> str:
        """What generated tokens say, up to the first that ends an answer."""
        ends = np.flatnonzero(np.isin(tokens, self.end))
        said = tokens[: ends[0]] if len(ends) else tokens
        return str(self.tokenizer.decode(said.tolist(), skip_special_tokens=True)).strip()


def as_exchange(item: object, row: int) -> Exchange:
    """An exchange, or a plain text as a prompt whose answer is not known."""
    if isinstance(item, str):
        return Exchange((Turn("user", item),), ("",))
    if not isinstance(item, Exchange):
        raise DataError(f"input {row} is a {type(item).__name__}; a language model is asked with texts or exchanges")
    return item


@final
@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A causal model with its own language head. `scale` and `cap` are what it does to the head's scores.

    `whole` is the stock model; the backbone's model is the part of it below the head.
    """

    whole: Any
    reader: LanguageReader
    scale: float
    cap: float | None

    def scores(self, states: Tensor) -> Tensor:
        """Scores (T, V) of the next token, from states (T, d) after the final norm."""
        raw: Tensor = self.whole.get_output_embeddings()(states) * self.scale
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)

    def generate(self, inputs: ModelInputs, embeddings: Tensor | None, mask: Tensor) -> Tensor:
        """The likeliest tokens (B, room) one after another, padded after an end; `embeddings` replace the ids."""
        from transformers import GenerationConfig

        how = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=inputs.room,
            use_cache=True,
            pad_token_id=self.reader.pad_id,
            eos_token_id=list(self.reader.end),
        )
        source = {"input_ids": inputs.ids} if embeddings is None else {"inputs_embeds": embeddings}
        with torch.no_grad():
            found: Tensor = self.whole.generate(**source, attention_mask=mask.long(), generation_config=how)
        assert inputs.ids is not None
        new = found if embeddings is not None else found[:, inputs.ids.shape[1] :]
        wide = torch.full((len(inputs), inputs.room), self.reader.pad_id, device=new.device)
        wide[:, : new.shape[1]] = new
        return wide


def score_rule(raw: Tensor, scores: Tensor, cap: float | None, name: str) -> tuple[float, float | None]:
    """The factor and cap that turn the head's raw scores into the model's own; `ConfigError` where none does.

    >>> raw = torch.tensor([[1.0, 2.0]])
    >>> score_rule(raw, raw * 0.5, None, "a model")
    (0.5, None)
    """
    open_scores = scores if cap is None else cap * torch.atanh((scores / cap).clamp(-1 + 1e-6, 1 - 1e-6))
    scale = float((open_scores * raw).sum() / raw.square().sum())
    scale = 1.0 if abs(scale - 1) < TOLERANCE else scale
    if (raw * scale - open_scores).abs().max() > TOLERANCE * open_scores.abs().max() + TOLERANCE:
        raise ConfigError(
            f"{name} computes its scores in a way that is not known here (not its output embedding, times a number, with a "
            "cap); use another causal model"
        )
    return scale, cap


def ends_of(tokenizer: Any, generation: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's own first, then those that the model's settings name."""
    named = getattr(generation, "eos_token_id", None)
    more = named if isinstance(named, list) else [named]
    found = dict.fromkeys(token for token in [tokenizer.eos_token_id, *more] if isinstance(token, int))
    return tuple(found)
