"""Rows of words for encoders of texts: each word's first token stands for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from contune.backbone.reader.inputs import ModelInputs, Prepared, PreparedText, Reader, Rows, TokenRun, gather
from contune.backbone.reader.text import TextReader, pad, require_known, tokenizer_hash
from contune.errors import ConfigError, DataError


@final
@dataclass(frozen=True, eq=False)
class PreparedWords(Prepared):
    """Token ids of rows of words, and of which tokens a word begins at: `first` is as flat as the ids."""

    texts: PreparedText
    first: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Rows:
        return self.texts.lengths

    @property
    def truncated(self) -> int:
        return self.texts.truncated

    def starts(self, row: int) -> NDArray[np.bool_]:
        """Which tokens of one row begin a word."""
        return self.first[self.texts.offsets[row] : self.texts.offsets[row + 1]]

    def take(self, rows: Rows | Sequence[int]) -> "PreparedWords":
        chosen = np.asarray(rows, dtype=np.int64)
        first = [self.starts(int(row)) for row in chosen]
        return PreparedWords(self.texts.take(chosen), np.concatenate([np.zeros(0, np.bool_), *first]))

    def units(self, rows: Rows) -> int:
        return int(sum(self.starts(int(row)).sum() for row in rows))


@final
@dataclass(frozen=True, eq=False)
class WordReader(Reader):
    """Reads rows of words with a model's own fast tokenizer; a row that is too long loses its last words."""

    texts: TextReader

    def description(self) -> str:
        texts = self.texts
        return f"words {tokenizer_hash(texts.tokenizer)} {texts.max_length} {texts.pad_id}"

    @property
    def longest(self) -> int:
        return self.texts.max_length

    def prepare(self, inputs: Sequence[Any]) -> PreparedWords:
        rows = [_words(item, at) for at, item in enumerate(inputs)]
        run, first = TokenRun(), [np.zeros(0, np.bool_)]
        for at, words in enumerate(rows):
            encoded = self.texts.tokenizer(
                words, is_split_into_words=True, truncation=True, max_length=self.texts.max_length, padding=False
            )
            owners = encoded.word_ids()
            starts = [
                owner is not None and owner != before for owner, before in zip(owners, [None, *owners], strict=False)
            ]
            seen = {owner for owner in owners if owner is not None}
            silent = next(
                (word for place, word in enumerate(words) if place not in seen and place < max(seen, default=-1)), None
            )
            if silent is not None or not seen:
                raise DataError(
                    f"row {at} has the word {silent or words[0]!r}, of which no token is made; leave it out"
                )
            require_known(encoded["input_ids"], self.texts.rows, self.texts.tokenizer, f"row {at}")
            first.append(np.asarray(starts, dtype=np.bool_))
            run.append(encoded["input_ids"], cut=len(seen) < len(words))
        return PreparedWords(run.prepared(), np.concatenate(first))

    def collate(
        self, parts: Sequence[tuple[Prepared, Rows]], *, augment: torch.Generator | None, pixels: bool
    ) -> ModelInputs:
        pairs = gather(parts, PreparedWords)
        ids, mask = pad([prepared.texts.tokens(row) for prepared, row in pairs], self.texts.pad_id)
        targets = torch.zeros_like(mask)
        for place, (prepared, row) in enumerate(pairs):
            starts = prepared.starts(row)
            targets[place, : len(starts)] = torch.from_numpy(starts)
        device = self.texts.device
        return ModelInputs(len(pairs), ids.to(device), mask.to(device), targets=targets.to(device), words=True)

    def prompts_only(self, parts: Sequence[tuple[Prepared, Rows]], max_new_tokens: int = 0) -> ModelInputs:
        """The rows as whole texts, with one feature each: queries and routers ask about the row, not about its words."""
        del max_new_tokens
        return replace(self.collate(parts, augment=None, pixels=True), targets=None, words=False)


def word_reader(reader: Reader, path: str) -> WordReader:
    """The reader of words for an encoder that reads texts."""
    if not isinstance(reader, TextReader):
        raise ConfigError(f"{path} reads no texts; objective: tag needs an encoder of texts")
    return WordReader(reader)


def _words(item: object, row: int) -> list[str]:
    if isinstance(item, str) or not isinstance(item, Sequence) or not item or not all(isinstance(w, str) for w in item):
        raise DataError(
            f"input {row} is {str(item)[:60]!r}; with objective: tag an input is a list of words, at least one"
        )
    return list(item)
