"""A model's own language head: scores of the next token, and answers written one token after another.

Shapes: B rows, L positions, T tokens to predict in the whole batch, V vocabulary, d width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from contune.backbone.reader.inputs import ModelInputs
from contune.backbone.reader.language import LanguageReader
from contune.backbone.reader.sampling import Draws
from contune.errors import ConfigError

TOLERANCE = 1e-4  # between the model's own scores and those computed from its states, relative to their size


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
        """The likeliest tokens (B, max_new_tokens) one after another, each row filled up with an end after its own.

        `embeddings` replace the ids. Where the inputs say how to draw, drawn ones. A row whose prompt leaves less room
        writes less; rows are only parted by it where the model has no places for what the others may still write.
        """
        rooms = self.reader.rooms(inputs, mask)
        wide = torch.full((len(inputs), inputs.max_new_tokens), self.reader.fill, device=mask.device)
        places = 0 if self.reader.decoder else int(mask.sum(dim=1).max())
        limit = self.reader.positions
        apart = limit is not None and places + max(rooms) > limit
        for room in sorted(set(rooms)) if apart else [max(rooms)]:
            rows = [at for at, own in enumerate(rooms) if own == room or not apart]
            chosen = torch.tensor(rows, device=mask.device)
            some = inputs if len(rows) == len(inputs) else inputs.take(chosen)
            words = embeddings if embeddings is None or some is inputs else embeddings[chosen]
            new = self._written(some, words, mask if some is inputs else mask[chosen], room)
            for at, tokens in zip(rows, new, strict=True):
                wide[at, : min(rooms[at], len(tokens))] = tokens[: rooms[at]]
        return wide

    def _written(self, inputs: ModelInputs, embeddings: Tensor | None, mask: Tensor, room: int) -> Tensor:
        """At most `room` tokens for every row.

        What the model's folder sets for generation (penalties, forced and suppressed tokens, sampling) would change which
        token is the likeliest, and `generate` takes it for whatever it is not told; so it is called on the same model
        without any such settings.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        how = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=room,
            use_cache=True,
            pad_token_id=self.reader.fill,
            eos_token_id=list(self.reader.end) or None,
            decoder_start_token_id=self.whole.config.decoder_start_token_id if self.reader.decoder else None,
        )
        writer = copy.copy(self.whole)
        writer.generation_config = GenerationConfig()
        source = {"input_ids": inputs.ids} if embeddings is None else {"inputs_embeds": embeddings}
        assert inputs.ids is not None
        # A decoder begins with its start token, a causal model repeats the prompt's ids.
        given = 1 if self.reader.decoder else 0 if embeddings is not None else inputs.ids.shape[1]
        drawn = LogitsProcessorList([] if inputs.sampling is None else [Draws(inputs.sampling, given)])
        with torch.no_grad():
            found: Tensor = writer.generate(
                **source, attention_mask=mask.long(), generation_config=how, logits_processor=drawn
            )
        return found[:, given:]


def before_text(prompts: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts (B, n, d) right before the text in words (B, L, d): what stands there (B, n + L, d), and its mask.

    `mask` (B, L) is true on tokens. Padding on the left stays left of the prompts: between them and the text it would
    count in a sliding window, so that what a row sees of its prompts would depend on the other rows.

    >>> prompts, words = torch.tensor([[[8.0]], [[9.0]]]), torch.tensor([[[1.0], [2.0]], [[0.0], [3.0]]])
    >>> wide, seen = before_text(prompts, words, torch.tensor([[True, True], [False, True]]))
    >>> wide[..., 0].tolist(), seen.int().tolist()
    ([[8.0, 1.0, 2.0], [0.0, 9.0, 3.0]], [[1, 1, 1], [0, 1, 1]])
    """
    count = prompts.shape[1]
    place = torch.arange(count + mask.shape[1], device=mask.device)
    start = mask.int().argmax(dim=1, keepdim=True)
    order = torch.where(place < start, place + count, torch.where(place < start + count, place - start, place))
    wide = torch.cat([prompts, words], dim=1)
    seen = torch.cat([mask.new_ones(prompts.shape[:2]), mask], dim=1)
    return wide.gather(1, order[..., None].expand_as(wide)), seen.gather(1, order)


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
