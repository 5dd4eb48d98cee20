"""Texts as token ids: tokenised once, padded on the right batch by batch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.backbone.reader.inputs import ModelInputs, Prepared, PreparedText, Reader, Rows, TokenRun, gather
from contune.errors import ConfigError, DataError
from contune.stream.inputs import Inputs

# Where a model or its files name no limit of their own: long enough for most sentences, cheap enough for a CPU.
DEFAULT_MAX_LENGTH = 256
# Texts per call of the tokenizer; bounds the memory of its intermediate objects.
_CHUNK = 4096


def choose_max_length(given: int | None, trained: int | None, limits: Sequence[int | None]) -> int:
    """Tokens a text may have: what the user gave, else what the encoder was trained with, else the default.

    Never more than the smallest of the model's own `limits`; asking for more raises `ConfigError`.

    >>> choose_max_length(None, None, [512, None]), choose_max_length(None, 128, [512])
    (256, 128)
    """
    known = [limit for limit in limits if limit is not None]
    most = min(known) if known else None
    if given is not None and most is not None and given > most:
        raise ConfigError(f"model.max_length is {given} but the model has {most} positions; give at most {most}")
    wanted = given or trained or DEFAULT_MAX_LENGTH
    return wanted if most is None else min(wanted, most)


def pad(lists: Sequence[NDArray[np.int32]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) int64, padded on the right to the longest, and the mask (B, L) that is true on tokens.

    >>> ids, mask = pad([np.array([5, 6], np.int32), np.array([7], np.int32)], pad_id=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [7, 0]], [[True, True], [True, False]])
    """
    lengths = np.array([len(tokens) for tokens in lists])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate(lists)
    return torch.from_numpy(ids), torch.from_numpy(mask)


@final
@dataclass(frozen=True, eq=False)
class TextReader(Reader):
    """Reads texts with a model's own fast tokenizer; `rows` is how many tokens the model has embeddings for."""

    tokenizer: Any
    max_length: int
    pad_id: int
    device: torch.device
    rows: int | None = None

    def description(self) -> str:
        return f"{tokenizer_hash(self.tokenizer)} {self.max_length} {self.pad_id}"

    @property
    def longest(self) -> int:
        return self.max_length

    def prepare(self, inputs: Inputs) -> PreparedText:
        run = TokenRun()
        for start in range(0, len(inputs), _CHUNK):
            texts = [_text(item, start + row) for row, item in enumerate(inputs[start : start + _CHUNK])]
            encoded = self.tokenizer(
                texts,
                truncation=True,
                max_length=self.max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            for row, (tokens, one) in enumerate(zip(encoded["input_ids"], encoded.encodings, strict=True)):
                if not tokens:
                    raise DataError(f"text {start + row} ({texts[row]!r}) has no tokens; remove it or give a text")
                require_known(tokens, self.rows, self.tokenizer, f"text {start + row}")
                run.append(tokens, cut=len(one.overflowing) > 0)
        return run.prepared()

    def collate(
        self,
        parts: Sequence[tuple[Prepared, Rows]],
        *,
        augment: torch.Generator | None,
        pixels: bool,
    ) -> ModelInputs:
        pairs = gather(parts, PreparedText)
        ids, mask = pad([prepared.tokens(row) for prepared, row in pairs], self.pad_id)
        return ModelInputs(len(pairs), ids=ids.to(self.device), mask=mask.to(self.device))


def tokenizer_hash(tokenizer: Any) -> str:
    """Hex sha256 of all that a fast tokenizer does to texts."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    own = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}  # set by each call
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def require_known(tokens: Sequence[int], rows: int | None, tokenizer: Any, where: str) -> None:
    """Refuse tokens for which a model of so many `rows` has no embedding: the tokenizer was extended and the model not."""
    if rows is None or max(tokens, default=0) < rows:
        return
    token = next(token for token in tokens if token >= rows)
    raise DataError(
        f"{where} has the token {tokenizer.convert_ids_to_tokens(token)!r}, number {token} of the tokenizer, and the model "
        f"has embeddings for {rows}, numbered from 0; give the tokenizer that belongs to the model, or resize the model's "
        "embeddings to the tokenizer"
    )


def _text(item: object, row: int) -> str:
    if not isinstance(item, str):
        raise DataError(f"input {row} is a {type(item).__name__} but this model reads text; give strings")
    return item
