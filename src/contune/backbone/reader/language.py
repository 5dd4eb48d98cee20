"""Language as tokens: prompts and answers laid out for a causal model, its own language head, and generation.

Training rows are `prompt answer end`, padded on the right; what is predicted are the tokens of the answer and its end.
Prompts to be answered are padded on the left, so that every row goes on at the same place.

Shapes: B rows, L positions, T tokens to predict in the whole batch, V vocabulary.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from contune.backbone.config import ModelConfig
from contune.backbone.reader.inputs import ModelInputs, Prepared, PreparedText, Reader, Rows, TokenRun, gather
from contune.backbone.reader.text import pad, tokenizer_hash
from contune.backbone.sampling import Draws
from contune.errors import ConfigError, DataError
from contune.stream.conversation import Conversation, Message

Template = Literal["plain", "chat"]
TOLERANCE = 1e-4  # between the model's own scores and those computed from its states, relative to their size


@final
@dataclass(frozen=True, eq=False)
class PreparedConversations(Prepared):
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

    def take(self, rows: Rows | Sequence[int]) -> "PreparedConversations":
        chosen = np.asarray(rows, dtype=np.int64)
        return PreparedConversations(self.texts.take(chosen), self.starts[chosen])

    def viewed(self, view: int) -> "PreparedConversations":
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
    beginning and is counted; an answer is never cut. `end` are tokens that close an answer. `decoder`: an encoder reads
    the prompt and a decoder writes the answer; the prompt has `max_length` tokens for itself, the answer one less.
    """

    tokenizer: Any
    max_length: int
    pad_id: int
    end: tuple[int, ...]
    template: Template
    cut_prompts: bool
    device: torch.device
    decoder: bool = False

    def description(self) -> str:
        own = [tokenizer_hash(self.tokenizer), self.max_length, self.pad_id, self.end, self.template, self.cut_prompts]
        return f"language {own} {self.tokenizer.chat_template if self.template == 'chat' else ''}"

    def prepare(self, inputs: Sequence[Any]) -> PreparedConversations:
        run, starts = TokenRun(), array("q")
        for row, item in enumerate(inputs):
            prompt, answer, cut = self._tokens(as_conversation(item, row), row)
            run.append([*prompt, *answer], cut=cut)
            starts.append(len(prompt))
        return PreparedConversations(run.prepared(), np.array(starts, dtype=np.int64))

    def _tokens(self, conversation: Conversation, row: int) -> tuple[list[int], list[int], bool]:
        """Tokens before and of the answer, and whether the prompt lost its beginning."""
        prompt = self._prompt(conversation)
        answer = list(self.tokenizer(conversation.answer, add_special_tokens=False)["input_ids"])
        answer += list(self.end[:1]) if conversation.ends else []
        if not prompt and self.decoder:
            raise DataError(
                f"row {row} is a document ({conversation.answer[:60]!r}), which a model with an encoder cannot learn as one "
                "text; take a causal model"
            )
        if not prompt:
            prompt, answer = answer[:1], answer[1:]
        own = self.decoder and len(answer) < self.max_length  # one position less: see `collate`
        space = self.max_length - (0 if own else len(answer))
        if space < 1:
            raise DataError(
                f"the answer of row {row} ({conversation.answer[:60]!r}) has {len(answer)} tokens, and with a prompt it "
                f"does not fit in {self.max_length}; raise model.max_length, shorten it, or for documents lower "
                "stream.language.piece"
            )
        if len(prompt) <= space:
            return prompt, answer, False
        if not self.cut_prompts:
            raise DataError(
                f"the prompt of row {row} ({conversation.prompt[:60]!r}) has {len(prompt)} tokens and its answer "
                f"{len(answer)}, more than the {self.max_length} that fit; raise model.max_length, or set "
                "model.cut_prompts: true to drop the beginning of such prompts"
            )
        return prompt[len(prompt) - space :], answer, True

    def _prompt(self, conversation: Conversation) -> list[int]:
        if not conversation.messages:
            start = None if self.decoder else self.tokenizer.bos_token_id
            return [] if start is None else [start]
        if self.template == "chat":
            return self._chat(conversation.messages)
        text = f"{conversation.prompt}\n"
        ids = list(self.tokenizer(text)["input_ids"])
        closed = bool(ids) and ids[-1] in self.end  # some tokenizers close every text
        return ids[:-1] if closed and not self.decoder else ids

    def _chat(self, messages: Sequence[Message]) -> list[int]:
        plain = [{"role": message.role, "content": message.text} for message in messages]
        found = self.tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(found, add_special_tokens=False)["input_ids"])

    def collate(
        self, parts: Sequence[tuple[Prepared, Rows]], *, augment: torch.Generator | None, pixels: bool
    ) -> ModelInputs:
        if augment is not None:
            raise ConfigError("augmentation was asked for texts; it exists for images only, leave it off")
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
        short = [prompt[-max(self.max_length - max_new_tokens, 1) :] for prompt in prompts]
        ids, mask = (t.flip(1) for t in pad([prompt[::-1] for prompt in short], self.pad_id))
        return ModelInputs(len(pairs), ids.to(self.device), mask.to(self.device), max_new_tokens=max_new_tokens)

    def text(self, tokens: NDArray[np.int64]) -> str:
        """What generated tokens say, up to the first that ends an answer."""
        ends = np.flatnonzero(np.isin(tokens, self.end))
        said = tokens[: ends[0]] if len(ends) else tokens
        return str(self.tokenizer.decode(said.tolist(), skip_special_tokens=True)).strip()


def as_conversation(item: object, row: int) -> Conversation:
    """An exchange, or a plain text as a prompt whose answer is not known."""
    if isinstance(item, str):
        return Conversation((Message("user", item),), ("",))
    if not isinstance(item, Conversation):
        raise DataError(f"input {row} is a {type(item).__name__}; a language model is asked with texts or exchanges")
    return item


@final
@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A model with its own language head. `scale` and `cap` are what it does to the head's scores.

    `whole` is the stock model; the backbone's model is the part of it below the head, or all of it where a decoder
    stands on an encoder.
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
        """The likeliest tokens (B, max_new_tokens) one after another, padded after an end; `embeddings` replace the ids.

        Where the inputs say how to draw, drawn ones.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        how = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=inputs.max_new_tokens,
            use_cache=True,
            pad_token_id=self.reader.pad_id,
            eos_token_id=list(self.reader.end),
        )
        source = {"input_ids": inputs.ids} if embeddings is None else {"inputs_embeds": embeddings}
        assert inputs.ids is not None
        # A decoder begins with its start token, a causal model repeats the prompt's ids.
        given = 1 if self.reader.decoder else 0 if embeddings is not None else inputs.ids.shape[1]
        drawn = LogitsProcessorList([] if inputs.sampling is None else [Draws(inputs.sampling, given)])
        with torch.no_grad():
            found: Tensor = self.whole.generate(
                **source, attention_mask=mask.long(), generation_config=how, logits_processor=drawn
            )
        new = found[:, given:]
        wide = torch.full((len(inputs), inputs.max_new_tokens), self.reader.pad_id, device=new.device)
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


def language_reader(config: ModelConfig, whole: Any, tokenizer: Any, length: int, pad_id: int) -> LanguageReader:
    """The reader for a model with this tokenizer; `ConfigError` where a chat template is asked for and there is none."""
    if config.template == "chat" and tokenizer.chat_template is None:
        raise ConfigError(
            f"model.template is chat, but the tokenizer of {config.path} has no chat template; set model.template: plain"
        )
    chat = config.template == "chat" or (config.template == "auto" and tokenizer.chat_template is not None)
    return LanguageReader(
        tokenizer=tokenizer,
        max_length=length,
        pad_id=pad_id,
        end=ends_of(tokenizer, whole.generation_config),
        template="chat" if chat else "plain",
        cut_prompts=config.cut_prompts,
        device=whole.device,
        decoder=bool(whole.config.is_encoder_decoder),
    )


def language_model(
    whole: Any, reader: LanguageReader, states: Tensor, sample: dict[str, Tensor], name: str
) -> LanguageModel:
    """The model with the rule of its scores, found by comparing them with those of its states on a sample."""
    inputs = dict(sample)
    answers = inputs.pop("answers", None)
    with torch.no_grad():
        raw = whole.get_output_embeddings()(states)
        scores = whole(**inputs, **({} if answers is None else {"labels": answers})).logits
    cap = getattr(whole.config, "final_logit_softcapping", None)
    return LanguageModel(whole, reader, *score_rule(raw, scores, cap, name))


def two_towers(whole: Any) -> Callable[..., Tensor]:
    """How an encoder with a decoder runs: the decoder's states (B, M, d), each after the answer's tokens before it.

    Without `answers` (B, M), the encoder's states (B, L, d) alone.
    """

    def forward(*, attention_mask: Tensor, answers: Tensor | None = None, **inputs: Tensor) -> Tensor:
        read: Tensor = whole.get_encoder()(**inputs, attention_mask=attention_mask).last_hidden_state
        if answers is None:
            return read
        start = torch.full_like(answers[:, :1], whole.config.decoder_start_token_id)
        before = torch.cat([start, answers[:, :-1]], dim=1)
        # Padding stands after every answer, where a causal decoder looks at it from positions that do not count.
        written: Tensor = whole.get_decoder()(
            input_ids=before, encoder_hidden_states=read, encoder_attention_mask=attention_mask
        ).last_hidden_state
        return written

    return forward
