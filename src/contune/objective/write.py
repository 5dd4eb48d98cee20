"""Answers that the model writes: learned token by token, judged by what is written or by what is likelier."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from contune.backbone.backbone import Backbone
from contune.backbone.reader.language import PreparedConversations
from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.model import Model
from contune.contract.objective import Columns, Floats, Judged, Measure, Objective, Prediction
from contune.contract.parts import Head, Trait
from contune.errors import CombinationError
from contune.head.language import SPARE_TOKENS, Language
from contune.metric.answers.text import chosen_score, judged
from contune.numerics.divergences import softmax_divergence
from contune.objective.classify import drawn_or_right
from contune.stream.conversation import Conversation, language_examples
from contune.stream.task import Kind

MOST_NATS = 700.0  # e to more is no float
Watch = Callable[[Rows, Tensor], None]  # rows of a batch, and scores (T, V) of the tokens of their answers


def share(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Sum of `above` over sum of `below`, added in order; None where the latter is 0.

    >>> share([1.0, 2.0], [2.0, 4.0])
    0.5
    """
    total = sum(below)
    return float(sum(above) / total) if total else None


def mean_score(columns: Columns, classes: Sequence[str]) -> float | None:
    """Mean score of the answers."""
    del classes
    return share(columns["score"], [1.0] * len(columns["score"]))


def nats_per_token(columns: Columns, classes: Sequence[str]) -> float | None:
    """Nats per token of the right answers."""
    del classes
    return share(columns["nats"], columns["tokens"])


def bits_per_byte(columns: Columns, classes: Sequence[str]) -> float | None:
    """Bits per byte of UTF-8 text of the right answers: nats / ln 2 / bytes, which can be compared between tokenizers.

    Bytes whose token is not scored, as the first one of a text that nothing comes before, do not count. How much text a
    token is predicted from does: of documents, only pieces of one length, read with as much `context`, can be compared.
    """
    del classes
    return share([nats / math.log(2) for nats in columns["nats"]], columns["bytes"])


def perplexity(columns: Columns, classes: Sequence[str]) -> float | None:
    """e to the nats per token; None where that is no float."""
    loss = nats_per_token(columns, classes)
    return None if loss is None or loss > MOST_NATS else math.exp(loss)


def format_failures(columns: Columns, classes: Sequence[str]) -> float | None:
    """Share of answers without the form that was asked for."""
    del classes
    return share([1.0 - formed for formed in columns["well_formed"]], [1.0] * len(columns["well_formed"]))


@final
@dataclass(frozen=True, eq=False)
class LikelihoodScores:
    """How well a model expects the answers: per example the nats of their tokens, how many there are, how many it had
    right as its first choice; all (n,)."""

    nats: Floats
    tokens: Rows
    right: Rows


def read_answers(context: Context, dataset: Dataset, watch: Watch | None = None) -> LikelihoodScores:
    """One pass over the right answers, each token given all those before it; `watch` sees the scores as they come."""
    count = len(dataset)
    nats, right = np.zeros(count), np.zeros(count, dtype=np.int64)
    prepared = dataset.prepared
    assert isinstance(prepared, PreparedConversations)
    for rows, batch, scores in token_scores(context, dataset):
        if watch is not None:
            watch(rows, scores)
        loss = functional.cross_entropy(scores, batch.labels, reduction="none").double().cpu().numpy()
        hits = (scores.argmax(dim=1) == batch.labels).cpu().numpy()
        units = batch.inputs.target_rows().cpu().numpy()
        nats[rows] = np.bincount(units, weights=loss, minlength=len(rows))
        right[rows] = np.bincount(units, weights=hits, minlength=len(rows)).astype(np.int64)
    return LikelihoodScores(nats, prepared.lengths - prepared.starts, right)


def token_scores(context: Context, dataset: Dataset) -> Iterator[tuple[Rows, Batch, torch.Tensor]]:
    """For batches of rows the scores (T, V) of every token of their right answers, given all tokens before it."""
    language = context.model.backbone.language
    for rows, routes in context.passes.routed_batches(dataset):
        batch = context.passes.encoding_batch(dataset, rows, routes)
        context.passes.ledger.examples_forward += len(rows)
        with torch.no_grad():
            yield rows, batch, language.scores(context.model.encode(batch)[0]).float()


def write_answers(context: Context, dataset: Dataset, max_new_tokens: int) -> list[str]:
    """What the model writes after each prompt, at most `max_new_tokens` tokens, always the likeliest one next."""
    reader = context.model.backbone.language.reader
    said = [""] * len(dataset)
    for rows, routes in context.passes.routed_batches(dataset):
        batch = context.passes.encoding_batch(dataset, rows, routes, max_new_tokens=max_new_tokens)
        context.passes.ledger.examples_forward += len(rows)
        tokens = context.model.encode(batch)[0].cpu().numpy()
        for row, written in zip(rows.tolist(), tokens, strict=True):
            said[row] = reader.text(written)
    return said


def likeliest_options(context: Context, dataset: Dataset, rows: Rows) -> list[str]:
    """For each of these rows the option whose tokens have the highest mean log-probability after the prompt."""
    conversations: list[Conversation] = [dataset.examples.inputs[row] for row in rows.tolist()]
    asked = [replace(one, answers=(option,), options=()) for one in conversations for option in one.options]
    owner = np.repeat(rows, [len(one.options) for one in conversations])
    examples = language_examples(asked, range(len(asked)))
    offered = Dataset.of(examples, context.model.backbone, examples.labels, dataset.tasks[owner])
    reading = read_answers(context, offered)
    mean = -reading.nats / np.maximum(reading.tokens, 1)
    given, start = [], 0
    for one in conversations:
        given.append(one.options[int(np.argmax(mean[start : start + len(one.options)]))])
        start += len(one.options)
    return given


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """What n conversations were answered with, `scores` (n,) from 0 to 1, whether each was `well_formed`, and how well the
    right answers were expected."""

    generations: Sequence[str]
    scores: Floats
    well_formed: list[bool]
    likelihoods: LikelihoodScores


def answered(context: Context, dataset: Dataset, max_new_tokens: int, watch: Watch | None = None) -> Answers:
    """Answers of a language model, each judged by its own measure; `watch` as of `read_answers`."""
    conversations: list[Conversation] = list(dataset.examples.inputs)
    reading = read_answers(context, dataset, watch)
    given, scores = [""] * len(conversations), np.zeros(len(conversations))
    formed = [True] * len(conversations)
    measures = np.array([one.measure for one in conversations], dtype=object)
    documents = np.flatnonzero(measures == "tokens")
    scores[documents] = reading.right[documents] / np.maximum(reading.tokens[documents], 1)
    chosen = np.flatnonzero(measures == "likelihood")
    if len(chosen):
        for row, option in zip(chosen.tolist(), likeliest_options(context, dataset, chosen), strict=True):
            given[row], scores[row] = option, chosen_score(option, conversations[row].answers)
    written = np.flatnonzero(~np.isin(measures, ["tokens", "likelihood"]))
    if len(written):
        # As `predict` asks, which knows no answer: what is cut of a prompt does not depend on the right one's length.
        prompts = language_examples(
            [replace(conversations[row], answers=("",)) for row in written.tolist()], range(len(written))
        )
        asked = Dataset.of(prompts, context.model.backbone, dataset.labels[written], dataset.tasks[written])
        for row, text in zip(written.tolist(), write_answers(context, asked, max_new_tokens), strict=True):
            one = conversations[row]
            judgement = judged(text, one.answers, one.options, one.measure, one.form)
            given[row], scores[row], formed[row] = text, judgement.score, judgement.well_formed
    return Answers(given, scores, formed, reading)


@final
class Write(Objective):
    """Every token of an answer is learned, given all before it; nothing of the model's own language head is trained.

    Only modular adapters with a router make sense, since a text goes through one module.
    """

    name: ClassVar[str] = "write"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.COMPETING, Trait.WRITTEN})
    kinds: ClassVar[tuple[Kind, ...]] = ("domain-incremental",)
    reads: ClassVar[str | None] = "chat"
    schema = (
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
        ("well_formed", pa.bool_()),
        ("nats", pa.float64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    )
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("score", "Score", "Mean score of the answers.", mean_score),
        Measure("loss", "Loss per token", "Nats per token of the right answers.", nats_per_token, False, False),
        Measure("perplexity", "Perplexity", "e to the loss per token.", perplexity, False, False),
        Measure(
            "bits_per_byte",
            "Bits per byte",
            "The same loss by the size of the text, comparable between tokenizers.",
            bits_per_byte,
            False,
            False,
        ),
        Measure(
            "format_failures",
            "Answers without the form",
            "Share of answers that lack the form that was asked for.",
            format_failures,
            False,
        ),
    )

    def head(self, head: Head) -> Head:
        if head.name not in ("linear", Language.name):
            raise CombinationError(
                f"head {head.name!r} scores classes, but with objective: write answers are written by the model's own "
                "language head; take a method with head: linear, which it replaces"
            )
        return head if isinstance(head, Language) else Language()

    def score_columns(self, backbone: Backbone, class_names: Sequence[str]) -> int:
        return int(backbone.language.whole.get_output_embeddings().weight.shape[0])

    def losses(self, model: Model, batch: Batch, logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, batch.labels, reduction="none")

    def log_likelihood(self, model: Model, batch: Batch, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return drawn_or_right(functional.log_softmax(logits, dim=1), batch.labels, generator).sum()

    def divergences(self, logits: Tensor, before: Tensor, temperature: float) -> Tensor:
        return softmax_divergence(logits, before, temperature)

    def judge(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        del allowed
        found = answered(context, dataset, written_tokens(context))
        right = [conversation.answer for conversation in dataset.examples.inputs]
        stored = {
            "label": right,
            "prediction": list(found.generations),
            "correct": (found.scores == 1.0).tolist(),
            "score": found.scores.tolist(),
            "well_formed": found.well_formed,
            "nats": found.likelihoods.nats.tolist(),
            "tokens": found.likelihoods.tokens.tolist(),
            "bytes": scored_bytes(dataset),
        }
        return Judged(found.scores, stored)

    def predict(self, context: Context, dataset: Dataset, allowed: Sequence[int] | None = None) -> list[Prediction]:
        del allowed
        return [Prediction(text) for text in write_answers(context, dataset, written_tokens(context))]


def scored_bytes(dataset: Dataset) -> list[int]:
    """Bytes of each right answer whose tokens are predicted."""
    prepared = dataset.prepared
    assert isinstance(prepared, PreparedConversations)
    sizes = [len(one.answer.encode()) for one in dataset.examples.inputs]
    return [size - lost for size, lost in zip(sizes, prepared.unscored.tolist(), strict=True)]


def written_tokens(context: Context) -> int:
    """How many tokens an answer may have: what the longest learned one had, and a few more."""
    head = context.model.head
    assert isinstance(head, Language)
    return head.max_new_tokens


def spare_tokens(dataset: Dataset) -> int:
    """How many tokens answers to these examples may have: what the longest right one has, and a few more."""
    prepared = dataset.prepared
    assert isinstance(prepared, PreparedConversations)
    return prepared.longest_answer + SPARE_TOKENS


def answer_lengths(dataset: Dataset) -> Rows:
    """How many tokens the right answer of each example has (n,)."""
    prepared = dataset.prepared
    assert isinstance(prepared, PreparedConversations)
    return prepared.lengths - prepared.starts
