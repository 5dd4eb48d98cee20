"""The contract of an objective: what an answer is, how a wrong one counts, how answers are judged and stored."""

from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.model import Model
from contune.contract.parts import Head, Part, Trait
from contune.errors import ConfigError
from contune.stream.task import Examples, Kind

if TYPE_CHECKING:
    from contune.contract.context import Context

Floats = NDArray[np.float64]
Columns = Mapping[str, Sequence[Any]]
PLACES = (("after_task", pa.int32()), ("task", pa.int32()), ("example", pa.int64()))  # first in every schema


@final
class Prediction(str):
    """An answer as text, with how sure the model is of it.

    `score` is that of the answer, `scores` those of all names there are to answer with, best first (empty where answers
    are written), and `unknown` grows from 0 to 1 the less the model knows such inputs: 1 less the largest share of
    softmax (Hendrycks and Gimpel, arXiv 1610.02136). `value` is the answer where it is no name: a tuple of names, or a
    number.

    >>> one = Prediction("cat", score=0.9, scores={"cat": 0.9, "dog": 0.1}, unknown=0.1)
    >>> one == "cat", one.score
    (True, 0.9)
    """

    score: float | None
    scores: Mapping[str, float]
    unknown: float | None
    value: Any

    def __new__(
        cls,
        text: str,
        *,
        score: float | None = None,
        scores: Mapping[str, float] | None = None,
        unknown: float | None = None,
        value: Any = None,
    ) -> "Prediction":
        made = super().__new__(cls, text)
        made.score, made.scores, made.unknown = score, {} if scores is None else scores, unknown
        made.value = text if value is None else value
        return made


@final
class Ranked(Mapping[str, float]):
    """Names with their scores, best first. Sorted when asked, so that many answers over many names stay small.

    >>> Ranked(["a", "b"], np.array([0.25, 0.75]))
    {'b': 0.75, 'a': 0.25}
    """

    def __init__(self, names: Sequence[str], scores: Floats) -> None:
        self._names, self._scores = names, scores

    def __getitem__(self, name: str) -> float:
        try:
            return float(self._scores[self._names.index(name)])
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names[column] for column in self._order())

    def __len__(self) -> int:
        return len(self._names)

    def items(self) -> ItemsView[str, float]:
        """Names and scores, best first."""
        return {self._names[column]: float(self._scores[column]) for column in self._order()}.items()

    def _order(self) -> list[int]:
        best_first: list[int] = np.argsort(-self._scores, kind="stable").tolist()
        return best_first

    def __repr__(self) -> str:
        return repr(dict(self.items()))


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """Answers to n examples: `score` (n,) says from 0 to 1 how right each is; `columns` is what a run stores of them."""

    score: Floats
    columns: Columns


@final
@dataclass(frozen=True)
class Measure:
    """One figure of a cell of the matrix, from what was stored of its examples.

    `cell` takes the stored columns of one task's examples and the names of the task's classes, and gives None where the
    figure is not defined.
    """

    name: str
    title: str
    meaning: str
    cell: Callable[[Columns, Sequence[str]], float | None]
    higher_is_better: bool = True
    share: bool = True


class Objective(Part):
    """What is learned. `traits` say what kind of scores a part works with; `kinds` which streams there may be.

    `reads` is the modality the model's inputs must have, None where any will do; `schema` the columns of the stored
    predictions behind `PLACES`; the first of `measures` fills the accuracy matrix.
    """

    traits: ClassVar[frozenset[Trait]]
    kinds: ClassVar[tuple[Kind, ...]] = ("class-incremental", "domain-incremental", "task-incremental")
    reads: ClassVar[str | None] = None
    schema: ClassVar[tuple[tuple[str, pa.DataType], ...]]
    measures: ClassVar[tuple[Measure, ...]]

    def head(self, head: Head) -> Head:
        """The head that gives the scores: the method's own, or what stands in its place."""
        return head

    def begin_task(self, context: "Context") -> None:
        """Look at the training data of the task that begins."""

    def score_columns(self, backbone: Backbone, class_names: Sequence[str]) -> int:
        """How many columns the scores have."""
        del backbone
        return len(class_names)

    @abstractmethod
    def losses(self, model: Model, batch: Batch, logits: Tensor) -> Tensor:
        """How wrong each row of scores (U, C) is, (U,), before any weight."""

    @abstractmethod
    def log_likelihood(self, model: Model, batch: Batch, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Log-likelihood, summed over the batch, of answers drawn from the model with `generator`, or of the right ones.

        It is the likelihood whose negative logarithm training makes small.
        """

    @abstractmethod
    def divergences(self, logits: Tensor, before: Tensor, temperature: float) -> Tensor:
        """How far each row of scores (U, C) has moved from what another model gave (U, C), (U,)."""

    def trained_columns(self, model: Model, batch: Batch) -> Tensor:
        """Which columns (U, C) of the scores the loss of each row looks at."""
        return model.class_mask(batch.tasks)

    def target_matrix(self, model: Model, dataset: Dataset, rows: Rows) -> Tensor:
        """Right answers as numbers (rows, C) in float64, for heads that are solved; zero says nothing is known."""
        del model, dataset, rows
        raise ConfigError(f"objective {self.name!r} has no answers that a head could be solved for; take head: linear")

    @abstractmethod
    def judge(self, context: "Context", dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        """Answers to all examples and how good they are; depends on no other row. `allowed`: the columns to choose from."""

    @abstractmethod
    def predict(self, context: "Context", dataset: Dataset, allowed: Sequence[int] | None = None) -> list[Prediction]:
        """Answers to examples whose right answers nobody knows."""

    def unlabelled(self, examples: Examples) -> Examples:
        """New inputs as examples without a right answer, in the form that this objective asks for."""
        return examples

    def table_schema(self) -> pa.Schema:
        """The columns of the stored predictions."""
        return pa.schema([*PLACES, *self.schema])


def scored(
    context: "Context", dataset: Dataset, allowed: Sequence[int] | None = None
) -> "Sequence[tuple[Rows, Tensor]]":
    """Prediction scores (rows, C) in blocks, minus infinity in columns that are not allowed."""
    return [(rows, open_scores(scores, allowed)) for rows, scores in context.passes.logit_blocks(dataset)]


def open_scores(scores: Tensor, allowed: Sequence[int] | None) -> Tensor:
    """Scores (U, C) with minus infinity in columns that are not allowed; None allows all.

    >>> open_scores(torch.zeros(1, 3), [2]).tolist()
    [[-inf, -inf, 0.0]]
    """
    if allowed is None:
        return scores
    closed = torch.ones(scores.shape[1], dtype=torch.bool)
    closed[list(allowed)] = False
    return scores.masked_fill(closed, float("-inf"))
