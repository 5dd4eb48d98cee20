"""The stored predictions of a run: the table of what was answered, and the matrices that derive from it."""

from collections.abc import Sequence

import pyarrow as pa

from contune.contract.data import Dataset
from contune.engine.evaluation import Evaluation
from contune.metric.language import language_matrices, mean_matrix
from contune.metric.predictions import matrix_from_predictions
from contune.stream.task import Task

COLUMNS = pa.schema(
    [
        ("after_task", pa.int32()),
        ("task", pa.int32()),
        ("example", pa.int64()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("correct", pa.bool_()),
    ]
)
LANGUAGE_COLUMNS = pa.schema(
    [
        *COLUMNS,
        ("score", pa.float64()),
        ("well_formed", pa.bool_()),
        ("nats", pa.float64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


def matrices(rows: pa.Table, tasks: int) -> tuple[list[list[float | None]], dict[str, list[list[float | None]]]]:
    """The accuracy matrix from the stored predictions, and for language what else they tell."""
    columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.column_names}
    place = columns["after_task"], columns["task"]
    if "score" not in columns:
        return matrix_from_predictions(*place, columns["correct"], tasks), {}
    nats, tokens, sizes, formed = (columns[name] for name in ("nats", "tokens", "bytes", "well_formed"))
    return mean_matrix(*place, columns["score"], tasks), language_matrices(*place, nats, tokens, sizes, formed, tasks)


def prediction_table(
    row: int, index: int, task: Task, dataset: Dataset, found: Evaluation, names: Sequence[str]
) -> pa.Table:
    """What was answered on one task's test examples, one row each."""
    count = len(dataset)
    correct = (found.scores == 1.0).tolist()
    values = [[row] * count, [index] * count, task.test.ids.tolist()]
    if found.reading is None:
        labels = [names[column] for column in dataset.labels.tolist()]
        return pa.table(dict(zip(COLUMNS.names, [*values, labels, list(found.given), correct], strict=True)), COLUMNS)
    right = [conversation.answer for conversation in task.test.inputs]
    sizes = [len(text.encode()) for text in right]
    reading = [found.reading.nats.tolist(), found.reading.tokens.tolist(), sizes]
    values += [right, list(found.given), correct, found.scores.tolist(), found.well_formed.tolist(), *reading]
    return pa.table(dict(zip(LANGUAGE_COLUMNS.names, values, strict=True)), LANGUAGE_COLUMNS)
