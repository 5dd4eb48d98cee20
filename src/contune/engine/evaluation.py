"""How answers are found and judged: classes by the best score, language by what is written or by what is likelier.

Nothing here changes the model, and no answer depends on another row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from contune.backbone.reader.language import PreparedConversations
from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.engine.cache import fixed_batches
from contune.metric.text import judged
from contune.stream.conversation import Conversation, language_examples

Floats = NDArray[np.float64]
Watch = Callable[[Rows, torch.Tensor], None]  # rows of a batch, and scores (T, V) of the tokens of their answers


@final
@dataclass(frozen=True, eq=False)
class LikelihoodScores:
    """How well a model expects the answers: per example the nats of their tokens, how many there are, how many it had
    right as its first choice; all (n,)."""

    nats: Floats
    tokens: Rows
    right: Rows


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers to n examples: what was `given`, its `scores` (n,) from 0 to 1, and whether it was `well_formed`.

    `reading` is there in language alone.
    """

    given: Sequence[str]
    scores: Floats
    well_formed: NDArray[np.bool_]
    reading: LikelihoodScores | None = None


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
    for rows, routes in routed_batches(context, dataset):
        batch = context.passes.encoding_batch(dataset, rows, routes)
        context.passes.ledger.examples_forward += len(rows)
        with torch.no_grad():
            yield rows, batch, language.scores(context.model.encode(batch)[0]).float()


def write_answers(context: Context, dataset: Dataset, max_new_tokens: int) -> list[str]:
    """What the model writes after each prompt, at most `max_new_tokens` tokens, always the likeliest one next."""
    reader = context.model.backbone.language.reader
    said = [""] * len(dataset)
    for rows, routes in routed_batches(context, dataset):
        batch = context.passes.encoding_batch(dataset, rows, routes, max_new_tokens=max_new_tokens)
        context.passes.ledger.examples_forward += len(rows)
        tokens = context.model.encode(batch)[0].cpu().numpy()
        for row, written in zip(rows.tolist(), tokens, strict=True):
            said[row] = reader.text(written)
    return said


def routed_batches(context: Context, dataset: Dataset) -> list[tuple[Rows, torch.Tensor | None]]:
    """Batches of like length; with several modules, each goes through one of them."""
    routes = context.passes.routes(dataset) if context.model.modules is not None else None
    size, lengths = context.passes.batch_size, dataset.prepared.lengths
    if routes is None:
        return [(rows, None) for rows in fixed_batches(lengths, size)]
    found: list[tuple[Rows, torch.Tensor | None]] = []
    for module in sorted(set(routes.tolist())):
        rows = np.flatnonzero((routes == module).numpy())
        found += [(rows[chosen], routes) for chosen in fixed_batches(lengths[rows], size)]
    return found


def likeliest_options(context: Context, dataset: Dataset, rows: Rows) -> list[str]:
    """For each of these rows the option whose tokens have the highest mean log-probability after the prompt."""
    conversations: list[Conversation] = [dataset.examples.inputs[row] for row in rows.tolist()]
    asked = [Conversation(one.messages, (option,)) for one in conversations for option in one.options]
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


def examined_language(
    context: Context, dataset: Dataset, max_new_tokens: int, watch: Watch | None = None
) -> Evaluation:
    """Answers of a language model, each judged by its own measure; `watch` as of `read_answers`."""
    conversations: list[Conversation] = list(dataset.examples.inputs)
    reading = read_answers(context, dataset, watch)
    given, scores = [""] * len(conversations), np.zeros(len(conversations))
    formed = np.ones(len(conversations), dtype=np.bool_)
    measures = np.array([one.measure for one in conversations], dtype=object)
    documents = np.flatnonzero(measures == "tokens")
    scores[documents] = reading.right[documents] / np.maximum(reading.tokens[documents], 1)
    chosen = np.flatnonzero(measures == "likelihood")
    if len(chosen):
        for row, option in zip(chosen.tolist(), likeliest_options(context, dataset, chosen), strict=True):
            given[row], scores[row] = option, float(option in conversations[row].answers)
    written = np.flatnonzero(~np.isin(measures, ["tokens", "likelihood"]))
    if len(written):
        asked = Dataset.of(
            dataset.examples.take(written), context.model.backbone, dataset.labels[written], dataset.tasks[written]
        )
        for row, text in zip(written.tolist(), write_answers(context, asked, max_new_tokens), strict=True):
            one = conversations[row]
            judgement = judged(text, one.answers, one.options, one.measure)
            given[row], scores[row], formed[row] = text, judgement.score, judgement.well_formed
    return Evaluation(given, scores, formed, reading)
