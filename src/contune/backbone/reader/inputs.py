"""What goes into a backbone and what comes out: prepared inputs, batches, encoded states.

Shapes: B rows of a batch, L positions, d width of the model, n prompt tokens.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.backbone.reader.packing import Packing
from contune.backbone.reader.sampling import Sampling
from contune.errors import CombinationError, ConfigError, DataError
from contune.stream.inputs import Inputs, taken

Rows = NDArray[np.int64]
OneKind = TypeVar("OneKind", bound="Prepared")


class Prepared(ABC):
    """Inputs after the work that is done once per example, before any batch is made."""

    @abstractmethod
    def __len__(self) -> int:
        """How many examples."""

    @property
    @abstractmethod
    def lengths(self) -> Rows:
        """Positions that each example takes in the model, prompts not counted; (n,)."""

    @property
    @abstractmethod
    def truncated(self) -> int:
        """How many examples were longer than the model's limit and lost their end."""

    @abstractmethod
    def take(self, rows: Rows | Sequence[int]) -> Self:
        """The examples at `rows`, in that order."""

    def units(self, rows: Rows) -> int:
        """How many answers these examples ask for: one each, or in language one for every token of theirs."""
        return len(rows)

    def viewed(self, view: int) -> Self:
        """The same examples, each in its fixed augmented view of that number; refused where inputs have none."""
        raise ConfigError(f"view {view} was asked for texts; augmented views exist for images only, leave them off")


@final
@dataclass(frozen=True, eq=False)
class PreparedText(Prepared):
    """Token ids of all texts in one flat array: text i is `flat[offsets[i]:offsets[i + 1]]`.

    >>> texts = PreparedText(np.array([7, 8, 9], np.int32), np.array([0, 2, 3]), np.array([False, True]))
    >>> texts.lengths.tolist(), texts.truncated, texts.take([1, 0]).flat.tolist()
    ([2, 1], 1, [9, 7, 8])
    """

    flat: NDArray[np.int32]
    offsets: Rows
    cut: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Rows:
        return np.diff(self.offsets)

    @property
    def truncated(self) -> int:
        return int(self.cut.sum())

    def take(self, rows: Rows | Sequence[int]) -> "PreparedText":
        chosen = np.asarray(rows, dtype=np.int64)
        return from_token_lists([self.tokens(int(row)) for row in chosen], self.cut[chosen])

    def tokens(self, row: int) -> NDArray[np.int32]:
        """The token ids of one text."""
        return self.flat[self.offsets[row] : self.offsets[row + 1]]


@final
class TokenRun:
    """Token ids of texts as they come, 4 bytes each.

    >>> run = TokenRun()
    >>> for tokens in ([7, 8], [9]):
    ...     run.append(tokens, cut=False)
    >>> run.prepared().tokens(0).tolist()
    [7, 8]
    """

    def __init__(self) -> None:
        self._flat, self._ends, self._cut = array("i"), array("q", [0]), bytearray()

    def append(self, tokens: Sequence[int], *, cut: bool) -> None:
        """One more text; `cut` says whether it lost its end."""
        self._flat.extend(tokens)
        self._ends.append(len(self._flat))
        self._cut.append(cut)

    def prepared(self) -> PreparedText:
        """All of them."""
        flat, ends = np.array(self._flat, dtype=np.int32), np.array(self._ends, dtype=np.int64)
        return PreparedText(flat, ends, np.array(self._cut, dtype=np.bool_))


def from_token_lists(lists: Sequence[NDArray[np.int32]], cut: NDArray[np.bool_]) -> PreparedText:
    """Lay out token ids flat; `cut` says for each text whether it lost its end."""
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(tokens) for tokens in lists], out=offsets[1:])
    flat = np.concatenate(lists) if lists else np.zeros(0, np.int32)
    return PreparedText(flat.astype(np.int32, copy=False), offsets, cut)


@final
@dataclass(frozen=True, eq=False)
class PreparedItems(Prepared):
    """Inputs that need nothing done before a batch is made; they are decoded when they are asked for, and not held here.

    `positions` is how many positions every one takes in the model. `view` is the number of the fixed augmented view
    that batches show, None for the model's deterministic one.
    """

    items: Inputs
    positions: int
    view: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> Rows:
        return np.full(len(self.items), self.positions, dtype=np.int64)

    @property
    def truncated(self) -> int:
        return 0

    def take(self, rows: Rows | Sequence[int]) -> "PreparedItems":
        return replace(self, items=taken(self.items, rows))

    def viewed(self, view: int) -> "PreparedItems":
        return replace(self, view=view)


@final
@dataclass(frozen=True, eq=False)
class ModelInputs:
    """One batch on the backbone's device.

    Text: `ids` (B, L) padded on the right and `mask` (B, L), true where there is a token. Images: `pixels`
    (B, 3, height, width), or nothing when the batch will resume from cached states. `size` is B. Language: `targets`
    (B, L) is true on the tokens to be predicted; with `max_new_tokens`, so many are to be written after each row,
    which is then padded on the left; `sampling` says how they are drawn, None for the likeliest. Where a decoder writes the
    answers, `answers` (B, M) are their tokens and `targets` (B, M) is true on them, with M other than L. `packing`: texts
    share rows inside the model, where its layers see those rows; all that is said here is of one text a row. `words`: the
    targets are no tokens to predict but the first ones of words, whose own states are asked for.
    """

    size: int
    ids: Tensor | None = None
    mask: Tensor | None = None
    pixels: Tensor | None = None
    targets: Tensor | None = None
    max_new_tokens: int = 0
    answers: Tensor | None = None
    sampling: Sampling | None = None
    packing: Packing | None = None
    words: bool = False

    def __len__(self) -> int:
        return self.size

    def tokens(self, states: Tensor) -> Tensor | None:
        """Where a token stands (R, P), of what a module of the model reads or gives, (R, P, d); None where all counts.

        Texts that share rows do so inside the model, and a decoder has its answer's positions where it does not look at
        the encoder's. Raises `CombinationError` for other positions.
        """
        if self.mask is None or states.dim() < 3:
            return None
        shown = self.mask if self.packing is None else self.packing.pack(self.mask)
        written = None if self.answers is None else self.targets
        for mask in (shown, written):
            if mask is not None and mask.shape == states.shape[:2]:
                return mask
        raise CombinationError(
            f"a layer sees states of shape {tuple(states.shape)} in a batch of {tuple(shown.shape)} positions, so padding "
            "cannot be told from tokens; use this method on a model that keeps (rows, positions, width)"
        )

    def take(self, places: Tensor) -> "ModelInputs":
        """The rows at `places` (n,), in that order; they share no rows."""
        tensors = (self.ids, self.mask, self.pixels, self.targets, self.answers)
        ids, mask, pixels, targets, answers = (None if t is None else t[places] for t in tensors)
        sampling = None if self.sampling is None else self.sampling.take(places)
        return ModelInputs(
            len(places), ids, mask, pixels, targets, self.max_new_tokens, answers, sampling, words=self.words
        )

    def target_rows(self) -> Tensor:
        """The row (T,) that each answer belongs to: every row once, or in language once for every token of its answer."""
        return torch.arange(self.size) if self.targets is None else self.targets.nonzero()[:, 0]

    def target_ids(self) -> Tensor:
        """The tokens (T,) to predict, row by row."""
        tokens = self.ids if self.answers is None else self.answers
        assert tokens is not None
        assert self.targets is not None
        return tokens[self.targets]


@final
@dataclass(frozen=True, eq=False)
class Encoded:
    """What the model made of a batch: `states` (B, L, d) after the final norm.

    The first `prompts` positions belong to the prompts. `mask` (B, L) is true where a position holds a prompt or a
    token and not padding; images have none.
    """

    states: Tensor
    mask: Tensor | None
    prompts: int


class Reader(ABC):
    """Turns raw inputs of one modality into batches."""

    @abstractmethod
    def description(self) -> str:
        """All that batches depend on beside the inputs: readers with equal ones give equal batches."""

    @property
    def longest(self) -> int | None:
        """The most tokens that an input may have; None where inputs have no length of their own."""
        return None

    @abstractmethod
    def prepare(self, inputs: Inputs) -> Prepared:
        """Do once per example what can be done once; raises `DataError` naming the first example that does not fit."""

    @abstractmethod
    def collate(
        self, parts: Sequence[tuple[Prepared, Rows]], *, augment: torch.Generator | None, pixels: bool
    ) -> ModelInputs:
        """The named rows of every part, in order, as one batch on the CPU or the reader's device.

        `augment` is None where the modality has no augmented views.
        """

    def prompts_only(self, parts: Sequence[tuple[Prepared, Rows]], max_new_tokens: int = 0) -> ModelInputs:
        """What is known of these rows before they are answered: all of them, or in language their prompts."""
        del max_new_tokens
        return self.collate(parts, augment=None, pixels=True)


def gather(parts: Sequence[tuple[Prepared, Rows]], kind: type[OneKind]) -> list[tuple[OneKind, int]]:
    """Every (part, row) of a batch in order; refuses an empty batch and parts of another modality."""
    pairs: list[tuple[OneKind, int]] = []
    for prepared, rows in parts:
        if not isinstance(prepared, kind):
            raise DataError(
                f"the batch holds {type(prepared).__name__} but this model reads {kind.__name__}; "
                "prepare the inputs with the same backbone"
            )
        pairs.extend((prepared, int(row)) for row in rows)
    if not pairs:
        raise DataError("the batch is empty; give at least one row")
    return pairs
