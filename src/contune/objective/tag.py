"""A tag for each word, by cross-entropy over the tags that may compete, at each word's first token."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Dataset, Rows
from contune.contract.objective import Columns, Judged, Measure, Prediction, open_scores
from contune.contract.parts import Trait
from contune.metric.answers.entities import entity_f1, is_entity_tag, split_tag
from contune.objective.classify import CrossEntropy

OUTSIDE = "O"  # what a word is answered that the model could not see, because the row was cut


def tag_score(columns: Columns, classes: Sequence[str]) -> float | None:
    """F1 over the entities of the task's own types; where its tags are of no such scheme, the share of right tags.

    >>> tag_score({"label": [["B-A", "O"]], "prediction": [["B-A", "O"]]}, ["O", "B-A"])
    1.0
    """
    if all(is_entity_tag(name) for name in classes):
        types = {split_tag(name)[1] for name in classes} - {""}
        return entity_f1(columns["label"], columns["prediction"], types)
    return right_tags(columns, classes)


def right_tags(columns: Columns, classes: Sequence[str]) -> float | None:
    """Share of words with the right tag."""
    del classes
    pairs = zip(columns["label"], columns["prediction"], strict=True)
    right = [a == b for wanted, found in pairs for a, b in zip(wanted, found, strict=True)]
    return sum(right) / len(right) if right else None


@final
class Tag(CrossEntropy):
    """Every word of an example has a tag. Loss: -log softmax at each word's first token, a mean over words.

    Words beyond the model's limit are neither learned nor seen, and are answered with O. The matrix holds F1 over
    entities where tags are of such a scheme (B-PER, I-PER, O), over those of each task's own types: what a model says of
    types that a task did not annotate does not count for it.
    """

    name: ClassVar[str] = "tag"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.COMPETING, Trait.CLASSES})
    reads: ClassVar[str | None] = "words"
    schema = (
        ("label", pa.list_(pa.string())),
        ("prediction", pa.list_(pa.string())),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
    )
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "entity_f1", "Entity F1", "F1 over entities, or the share of right tags where tags name none.", tag_score
        ),
        Measure("right_tags", "Right tags", "Share of words with the right tag.", right_tags),
    )

    def best_tags(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> list[list[str]]:
        """The best tag of every word, among the allowed columns; O for words that were cut away."""
        names = context.task.class_names
        found = [[OUTSIDE] * len(words) for words in dataset.examples.inputs]
        for rows, owners, scores in word_scores(context, dataset):
            best, start = open_scores(scores, allowed).argmax(dim=1).tolist(), 0
            for row, count in zip(rows.tolist(), np.bincount(owners, minlength=len(rows)).tolist(), strict=True):
                found[row][:count] = [names[column] for column in best[start : start + count]]
                start += count
        return found

    def judge(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        names = context.task.class_names
        found = self.best_tags(context, dataset, allowed)
        right = [[names[column] for column in dataset.targets.of(row).tolist()] for row in range(len(dataset))]
        score = np.array(
            [np.mean([a == b for a, b in zip(r, f, strict=True)]) for r, f in zip(right, found, strict=True)]
        )
        stored = {"label": right, "prediction": found, "correct": (score == 1.0).tolist(), "score": score.tolist()}
        return Judged(score.astype(np.float64), stored)

    def predict(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> list[Prediction]:
        return [Prediction(" ".join(tags), value=tuple(tags)) for tags in self.best_tags(context, dataset, allowed)]


def word_scores(context: Context, dataset: Dataset) -> Iterator[tuple[Rows, Rows, Tensor]]:
    """For batches of rows: the rows, the place in them (T,) that each word belongs to, and its scores (T, C)."""
    head = context.model.head
    for rows, routes in context.passes.routed_batches(dataset):
        batch = context.passes.encoding_batch(dataset, rows, routes)
        context.passes.ledger.examples_forward += len(rows)
        with torch.no_grad():
            features = context.model.encode(batch)[0]
            through = batch.target_routes
            scores = head.logits(features) if through is None else head.routed_logits(features, through, training=False)
        yield rows, batch.inputs.target_rows().cpu().numpy(), scores.cpu()
