"""One class for each example, by cross-entropy over the classes that may compete."""

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.model import Model
from contune.contract.objective import Columns, Judged, Measure, Objective, Prediction, Ranked, scored
from contune.contract.parts import Trait
from contune.numerics.divergences import softmax_divergence


def mean_correct(columns: Columns, classes: Sequence[str]) -> float | None:
    """Share of right answers.

    >>> mean_correct({"correct": [True, False]}, ())
    0.5
    """
    del classes
    correct = np.asarray(columns["correct"], dtype=np.float64)
    return float(correct.mean()) if len(correct) else None


ACCURACY = Measure("accuracy", "Accuracy", "Share of test examples answered rightly.", mean_correct)


def competing(model: Model, batch: Batch, logits: Tensor) -> Tensor:
    """Scores (U, C) with minus infinity where a class may not compete for a row."""
    return logits.masked_fill(~model.class_mask(batch.tasks), float("-inf"))


def drawn_or_right(log_p: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """Log-probability (U,) of a label drawn from each row, or of the right one where there is no generator."""
    if generator is None:
        return log_p.gather(1, labels[:, None])[:, 0]
    drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
    return log_p.gather(1, drawn.to(log_p.device))[:, 0]


def predictions_of(scores: Tensor, names: Sequence[str]) -> list[Prediction]:
    """Predictions from rows of scores (n, C): shares of softmax over the columns that are not closed."""
    shares = functional.softmax(scores.double(), dim=1).numpy()
    listed, found = list(names), []
    for row, best in zip(shares, shares.argmax(axis=1).tolist(), strict=True):
        score = float(row[best])
        found.append(Prediction(listed[best], score=score, scores=Ranked(listed, row), unknown=1.0 - score))
    return found


class CrossEntropy(Objective):
    """Rows that each have one class, of an example or of a word: -log softmax over the classes that may compete."""

    def losses(self, model: Model, batch: Batch, logits: Tensor) -> Tensor:
        return functional.cross_entropy(competing(model, batch, logits), batch.labels, reduction="none")

    def log_likelihood(self, model: Model, batch: Batch, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        log_p = functional.log_softmax(competing(model, batch, logits), dim=1)
        return drawn_or_right(log_p, batch.labels, generator).sum()

    def divergences(self, logits: Tensor, before: Tensor, temperature: float) -> Tensor:
        return softmax_divergence(logits, before, temperature)


@final
class Classify(CrossEntropy):
    """Every example has one class. Loss: -log softmax over the columns that the head's `loss_over` lets compete."""

    name: ClassVar[str] = "classify"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS, Trait.COMPETING, Trait.CLASSES})
    schema = (("label", pa.string()), ("prediction", pa.string()), ("correct", pa.bool_()))
    measures: ClassVar[tuple[Measure, ...]] = (ACCURACY,)

    def target_matrix(self, model: Model, dataset: Dataset, rows: Rows) -> Tensor:
        return functional.one_hot(torch.from_numpy(dataset.labels[rows]), model.class_tasks.shape[1]).double()

    def best_columns(
        self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None
    ) -> NDArray[np.int64]:
        """The best column (n,) for every example, among the allowed ones; depends on no other row."""
        columns = np.zeros(len(dataset), dtype=np.int64)
        for rows, scores in scored(context, dataset, allowed):
            columns[rows] = scores.argmax(dim=1).numpy()
        return columns

    def judge(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        names = context.task.class_names
        columns = self.best_columns(context, dataset, allowed)
        right = columns == dataset.labels
        stored = {
            "label": [names[column] for column in dataset.labels.tolist()],
            "prediction": [names[column] for column in columns.tolist()],
            "correct": right.tolist(),
        }
        return Judged(right.astype(np.float64), stored)

    def predict(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> list[Prediction]:
        found: list[Prediction] = [Prediction("")] * len(dataset)
        for rows, scores in scored(context, dataset, allowed):
            for row, one in zip(rows.tolist(), predictions_of(scores, context.task.class_names), strict=True):
                found[row] = one
        return found
