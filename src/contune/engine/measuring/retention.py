"""Retained ability: what a language model still knows of text that no task is about, against the untouched model.

A stream's retention sets are measured before the first task and after every task. `score` is the mean score of the
answers, `loss` the nats per token of the right ones, `changed_tokens` the share of their positions where another token
has become the likeliest, and `divergence` the mean KL(untouched || now) in nats over the same positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from contune.adapter.none import NoAdapter
from contune.contract.context import Context
from contune.contract.data import Dataset, Rows
from contune.engine.learner import Learner
from contune.objective.write import Watch, answer_lengths, answered, spare_tokens
from contune.stream.task import Task

MOST_BYTES = 256 * 2**20  # of log-probabilities that are kept of one set
NAMES = ("score", "loss", "changed_tokens", "divergence")


@final
@dataclass(frozen=True, eq=False)
class RetentionSet:
    """A retention set and what the untouched model makes of it: its likeliest tokens and, where they fit, log-probabilities.

    `likeliest` (T,) and `log_probabilities` (T, V), in half precision, are of all answers' tokens, row after row.
    """

    name: str
    dataset: Dataset
    max_new_tokens: int
    values: Mapping[str, float | None]
    likeliest: Tensor
    log_probabilities: Tensor | None


def made_retention_set(learner: Learner, task: Task) -> RetentionSet:
    """The retention set as the untouched model answers it. Call it before anything is learned or restored."""
    rows = torch.zeros(len(task.test), dtype=torch.int64).numpy()
    dataset = Dataset.of(task.test, learner.backbone, rows, rows)
    max_new_tokens = spare_tokens(dataset)
    found: list[tuple[Tensor, Tensor]] = []
    with learner.method.adapter.disabled():
        reading = learner.reading(dataset)
        context = reading.with_model(replace(reading.model, adapter=NoAdapter(), router=None))
        values = _values(
            context,
            dataset,
            max_new_tokens,
            lambda rows, scores: found.append((answer_tokens(dataset, rows), functional.log_softmax(scores, dim=1))),
        )
    places = torch.cat([place for place, _ in found]).argsort()
    likeliest = torch.cat([piece.argmax(dim=1) for _, piece in found]).cpu()[places]
    size = sum(2 * piece.numel() for _, piece in found)
    kept = torch.cat([piece.half() for _, piece in found]).cpu()[places] if size <= MOST_BYTES else None
    changed = {"changed_tokens": 0.0, "divergence": 0.0 if kept is not None else None}
    return RetentionSet(task.name, dataset, max_new_tokens, {**values, **changed}, likeliest, kept)


def retention(learner: Learner, retention_set: RetentionSet) -> dict[str, float | None]:
    """The retention set as the learner answers it now; `divergence` is None where the log-probabilities did not fit."""
    changed, divergence = torch.zeros(()), torch.zeros((), dtype=torch.float64)

    def watch(rows: Rows, scores: Tensor) -> None:
        places = answer_tokens(retention_set.dataset, rows)
        changed.add_((scores.argmax(dim=1).cpu() != retention_set.likeliest[places]).sum())
        if retention_set.log_probabilities is not None:
            untouched = retention_set.log_probabilities[places].to(scores.device)
            divergence.add_(divergences(untouched, scores).sum().cpu())

    values: dict[str, float | None] = dict(
        _values(learner.reading(retention_set.dataset), retention_set.dataset, retention_set.max_new_tokens, watch)
    )
    total = max(len(retention_set.likeliest), 1)
    values["changed_tokens"] = float(changed) / total
    values["divergence"] = float(divergence) / total if retention_set.log_probabilities is not None else None
    return values


def answer_tokens(dataset: Dataset, rows: Rows) -> Tensor:
    """The places (T,) of the answers' tokens of these rows among those of all rows, in order."""
    counts = answer_lengths(dataset)
    ends = np.cumsum(counts)
    return torch.from_numpy(np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in rows.tolist()]))


def divergences(log_probabilities: Tensor, scores: Tensor) -> Tensor:
    """KL(p || softmax(scores)) in nats for rows of log p (T, V), made to sum to one again after half precision.

    >>> even = torch.tensor([[0.5, 0.5]]).log()
    >>> round(divergences(even, torch.tensor([[0.75, 0.25]]).log()).item(), 4)
    0.1438
    """
    log_p = functional.log_softmax(log_probabilities.float(), dim=1)
    return (log_p.exp() * (log_p - functional.log_softmax(scores.float(), dim=1))).sum(dim=1)


def _values(context: Context, dataset: Dataset, max_new_tokens: int, watch: Watch) -> dict[str, float | None]:
    found = answered(context, dataset, max_new_tokens, watch)
    return {
        "score": float(found.scores.mean()),
        "loss": float(found.likelihoods.nats.sum() / max(int(found.likelihoods.tokens.sum()), 1)),
    }
