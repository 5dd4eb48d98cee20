"""Numbers: one or several values for each example, by squared error on the scale of the task that first had them."""

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.model import Model
from contune.contract.objective import Columns, Floats, Judged, Measure, Objective, Prediction, scored
from contune.contract.parts import Trait
from contune.contract.state import State
from contune.metric.answers.values import explained, mean_absolute_error, r_squared, root_mean_squared_error
from contune.stream.task import Kind


def values_of(dataset: Dataset, rows: Rows, columns: int) -> Floats:
    """The right values (rows, columns), not a number where an example has none."""
    values = np.full((len(rows), columns), np.nan)
    for place, row in enumerate(rows.tolist()):
        own = dataset.targets.of(row)
        values[place, : len(own)] = own
    return values


@final
class Regress(Objective):
    """Every example has a number for each name of its task, such as a price; a missing one is not learned.

    Values are learned on the scale on which their first task has mean 0 and deviation 1, and answered on their own. Loss:
    squared error, averaged over the values that an example has. The matrix holds the share of the variance in a task's
    test values that is explained: R^2, and 0 where the mean would have been better.
    """

    name: ClassVar[str] = "regress"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS})
    kinds: ClassVar[tuple[Kind, ...]] = ("domain-incremental", "task-incremental")
    schema = (
        ("label", pa.list_(pa.float64())),
        ("prediction", pa.list_(pa.float64())),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
    )
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("explained", "Explained variance", "R², and 0 where the mean would have been better.", explained),
        Measure(
            "r_squared",
            "R²",
            "1 less squared errors over the variance; below 0 where the mean is better.",
            r_squared,
            share=False,
        ),
        Measure("rmse", "Root mean squared error", "On the values' own scale.", root_mean_squared_error, False, False),
        Measure("mae", "Mean absolute error", "On the values' own scale.", mean_absolute_error, False, False),
    )

    def __init__(self) -> None:
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._deviation = torch.zeros(0, dtype=torch.float64)

    def begin_task(self, context: Context) -> None:
        data, known = context.task.data, len(self._mean)
        values = values_of(data, np.arange(len(data)), context.task.seen)[:, known:]
        mean = torch.from_numpy(np.nanmean(values, axis=0)) if values.size else torch.zeros(0, dtype=torch.float64)
        deviation = torch.from_numpy(np.nanstd(values, axis=0)) if values.size else mean
        self._mean = torch.cat([self._mean, mean])
        self._deviation = torch.cat([self._deviation, torch.where(deviation > 0, deviation, torch.ones_like(mean))])

    def scaled(self, values: Floats) -> Tensor:
        """Values (n, C) on the scale on which they are learned."""
        return (torch.from_numpy(values) - self._mean) / self._deviation

    def _errors(self, model: Model, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
        columns = logits.shape[1]
        each = [self.scaled(values_of(dataset, rows, columns)) for dataset, rows in batch.parts]
        right = torch.cat(each).to(logits)
        mask = ~torch.isnan(right)
        return (logits - torch.where(mask, right, logits)), mask

    def losses(self, model: Model, batch: Batch, logits: Tensor) -> Tensor:
        errors, mask = self._errors(model, batch, logits)
        return errors.square().sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def log_likelihood(self, model: Model, batch: Batch, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        errors, mask = self._errors(model, batch, logits)
        if generator is not None:  # of a normal law around the answer whose negative logarithm is the loss
            noise = torch.randn(logits.shape, generator=generator).to(logits) * 0.5**0.5
            errors = torch.where(mask, logits - (logits.detach() + noise), torch.zeros_like(logits))
        return -(errors.square().sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()

    def trained_columns(self, model: Model, batch: Batch) -> Tensor:
        each = [values_of(dataset, rows, model.class_tasks.shape[1]) for dataset, rows in batch.parts]
        return ~torch.isnan(torch.cat([torch.from_numpy(values) for values in each])).to(model.backbone.device)

    def divergences(self, logits: Tensor, before: Tensor, temperature: float) -> Tensor:
        del temperature
        return (logits - before).square().mean(dim=1)

    def target_matrix(self, model: Model, dataset: Dataset, rows: Rows) -> Tensor:
        return torch.nan_to_num(self.scaled(values_of(dataset, rows, model.class_tasks.shape[1])), nan=0.0)

    def answers(self, context: Context, dataset: Dataset) -> Floats:
        """The values (n, C) answered, on their own scale."""
        found = torch.zeros(len(dataset), context.task.seen, dtype=torch.float64)
        for rows, scores in scored(context, dataset):
            found[torch.from_numpy(rows)] = scores.double() * self._deviation + self._mean
        return found.numpy()

    def judge(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        right = values_of(dataset, np.arange(len(dataset)), context.task.seen)
        found = self.answers(context, dataset)
        asked = list(range(context.task.seen)) if allowed is None else list(allowed)
        error = np.nan_to_num((found - right) / self._deviation.numpy())[:, asked]
        score = np.exp(-np.abs(error).mean(axis=1))
        stored: Columns = {
            "label": right[:, asked].tolist(),
            "prediction": found[:, asked].tolist(),
            "correct": (score == 1.0).tolist(),
            "score": score.tolist(),
        }
        return Judged(score, stored)

    def predict(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> list[Prediction]:
        names = context.task.class_names
        asked = list(range(len(names))) if allowed is None else list(allowed)
        rows = self.answers(context, dataset)[:, asked].tolist()
        found = []
        for row in rows:
            text = f"{row[0]:.6g}" if len(row) == 1 else ", ".join(f"{value:.6g}" for value in row)
            listed = {names[column]: value for column, value in zip(asked, row, strict=True)}
            found.append(Prediction(text, scores=listed, value=row[0] if len(row) == 1 else tuple(row)))
        return found

    def state(self) -> State:
        return State({"mean": self._mean, "deviation": self._deviation})

    def load_state(self, state: State, context: Context) -> None:
        self._mean, self._deviation = state.tensors["mean"], state.tensors["deviation"]
