"""Several labels for each example, by binary cross-entropy on every label that its task asks for."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.model import Model
from contune.contract.objective import Columns, Judged, Measure, Objective, Prediction, Ranked, scored
from contune.contract.parts import Trait
from contune.metric.answers.labels import exact_share, macro_f1, micro_f1
from contune.numerics.divergences import sigmoid_divergence


def multi_hot(dataset: Dataset, rows: Rows, columns: int) -> Tensor:
    """1 in the columns (rows, columns) of each example's labels, 0 elsewhere; float32."""
    hot = torch.zeros(len(rows), columns)
    for place, row in enumerate(rows.tolist()):
        hot[place, torch.from_numpy(dataset.targets.of(row))] = 1.0
    return hot


def masked_row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (U,) of each row (U, C) over the columns where the mask is true.

    >>> masked_row_mean(torch.tensor([[1.0, 9.0]]), torch.tensor([[True, False]])).tolist()
    [1.0]
    """
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def own_labels(model: Model, tasks: Tensor) -> Tensor:
    """The labels (B, C) about which examples of these tasks say something."""
    return model.class_tasks.to(tasks.device)[tasks]


def _figure(function: Any) -> Any:
    return lambda columns, classes: function(columns["label"], columns["prediction"], classes)


@final
class MultiLabel(Objective):
    """An example has any number of labels; each is answered where its probability is above one half.

    Loss: binary cross-entropy, averaged over the labels of the example's own task, because nothing says which labels of
    other tasks it has. A head that is solved (ridge) is solved for 1 and -1 there and 0 elsewhere. A cell of the matrix
    asks for its own task's labels alone.
    """

    name: ClassVar[str] = "multi-label"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS})
    schema = (
        ("label", pa.list_(pa.string())),
        ("prediction", pa.list_(pa.string())),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
    )
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("micro_f1", "Micro F1", "F1 over all labels of all test examples.", _figure(micro_f1)),
        Measure("macro_f1", "Macro F1", "Mean over labels of their F1.", _figure(macro_f1)),
        Measure(
            "exact",
            "All labels right",
            "Share of examples with every label right and none missing.",
            _figure(exact_share),
        ),
    )

    def losses(self, model: Model, batch: Batch, logits: Tensor) -> Tensor:
        wrong = functional.binary_cross_entropy_with_logits(logits, right_of(batch, logits), reduction="none")
        return masked_row_mean(wrong, own_labels(model, batch.tasks))

    def log_likelihood(self, model: Model, batch: Batch, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        right = right_of(batch, logits)
        if generator is not None:
            right = torch.bernoulli(torch.sigmoid(logits.detach()).cpu(), generator=generator).to(logits)
        wrong = functional.binary_cross_entropy_with_logits(logits, right, reduction="none")
        return -masked_row_mean(wrong, own_labels(model, batch.tasks)).sum()

    def trained_columns(self, model: Model, batch: Batch) -> Tensor:
        return own_labels(model, batch.tasks)

    def divergences(self, logits: Tensor, before: Tensor, temperature: float) -> Tensor:
        return sigmoid_divergence(logits, before, temperature)

    def target_matrix(self, model: Model, dataset: Dataset, rows: Rows) -> Tensor:
        known = own_labels(model, torch.from_numpy(dataset.tasks[rows]))
        signs = 2 * multi_hot(dataset, rows, known.shape[1]) - 1
        return torch.where(known, signs, torch.zeros_like(signs)).double()

    def judge(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        names = context.task.class_names
        found = self.predict(context, dataset, allowed)
        right = [[names[column] for column in dataset.targets.of(row).tolist()] for row in range(len(dataset))]
        answered = [list(one.value) for one in found]
        asked = names if allowed is None else [names[column] for column in allowed]
        score = np.array([micro_f1([r], [a], asked) for r, a in zip(right, answered, strict=True)], dtype=np.float64)
        score = np.nan_to_num(score, nan=1.0)  # nothing to find, and nothing answered
        stored = {"label": right, "prediction": answered, "correct": (score == 1.0).tolist(), "score": score.tolist()}
        return Judged(score, stored)

    def predict(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> list[Prediction]:
        names = context.task.class_names
        found: list[Prediction] = [Prediction("")] * len(dataset)
        for rows, scores in scored(context, dataset, allowed):
            for row, shares in zip(rows.tolist(), torch.sigmoid(scores.double()).numpy(), strict=True):
                listed, likely = Ranked(names, shares), np.flatnonzero(shares > 0.5)
                chosen = tuple(names[column] for column in likely[np.argsort(-shares[likely], kind="stable")].tolist())
                best = float(shares.max(initial=0.0))
                found[row] = Prediction(", ".join(chosen), score=best, scores=listed, unknown=1.0 - best, value=chosen)
        return found


def right_of(batch: Batch, logits: Tensor) -> Tensor:
    """The right answers (U, C) of a batch's rows, where the scores are."""
    each = [multi_hot(dataset, rows, logits.shape[1]) for dataset, rows in batch.parts]
    return torch.cat(each).to(logits)


__all__ = ["Columns", "MultiLabel", "masked_row_mean", "multi_hot", "right_of"]
