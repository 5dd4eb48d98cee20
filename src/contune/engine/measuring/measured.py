"""What a session measures: the stored predictions, the matrices that derive from them, and what else was found out."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import pyarrow as pa
import pyarrow.compute as pc

from contune.contract.data import Dataset
from contune.engine.learner import Learner
from contune.engine.measuring.predictions import Matrix, filled, matrices, prediction_table
from contune.engine.measuring.retention import NAMES, made_retention_set, retention
from contune.stream.task import Stream


@final
class Measured:
    """`rows` are the predictions stored so far, `matrices` what every measure of the objective makes of them.

    `retention` and `diagnostics` hold what the retention sets and the method's parts gave, after each task; `anytime` the
    mean score over all tests seen so far, by the number of examples that had come.
    """

    def __init__(self, learner: Learner, stream: Stream) -> None:
        self._learner, self._stream = learner, stream
        self._tests: dict[int, Dataset] = {}
        self.rows: pa.Table = learner.objective.table_schema().empty_table()
        self.matrices = self._matrices(self.rows)
        # Before anything is restored: the untouched model is what they are compared with.
        self._retention_sets = [made_retention_set(learner, task) for task in stream.retention_sets]
        self.retention = {one.name: {name: [one.values[name]] for name in NAMES} for one in self._retention_sets}
        self.diagnostics: list[dict[str, dict[str, float]]] = []
        self.anytime: list[tuple[int, float]] = []

    def _matrices(self, rows: pa.Table) -> dict[str, Matrix]:
        classes = [task.class_names for task in self._stream.tasks]
        return matrices(rows, classes, self._learner.objective.measures)

    @property
    def main(self) -> Matrix:
        """The matrix of the objective's first measure."""
        return self.matrices[self._learner.objective.measures[0].name]

    def task_ends(self, row: int, tasks: int) -> list[float]:
        """Ask about the first `tasks` tasks and fill this row of the matrices; gives what the main one then holds."""
        tables = [self._answers(row, index) for index in range(tasks)]
        self.diagnostics.append(self._learner.method.diagnostics())
        for one in self._retention_sets:
            for name, value in retention(self._learner, one).items():
                self.retention[one.name][name].append(value)
        new = pa.concat_tables(tables)
        self.rows, self.matrices = pa.concat_tables([self.rows, new]), filled(self.matrices, self._matrices(new))
        return [value for value in self.main[row] if value is not None]

    def point(self, examples: int, tasks: int) -> float:
        """Ask about the first `tasks` tasks and note the mean score over all their examples."""
        found = [self._learner.judge_task(index, self._test(index)).score for index in range(tasks)]
        value = float(sum(score.sum() for score in found) / sum(len(score) for score in found))
        self.anytime.append((examples, value))
        return value

    def _answers(self, row: int, index: int) -> pa.Table:
        judged = self._learner.judge_task(index, self._test(index))
        return prediction_table(row, index, self._stream.tasks[index], judged, self._learner.objective)

    def _test(self, index: int) -> Dataset:
        if index not in self._tests:
            self._tests[index] = self._learner.test_dataset(self._stream.tasks[index], index)
        return self._tests[index]

    def restore(self, rows: pa.Table, before_row: int, kept: Mapping[str, Any], experiences: int) -> None:
        """Take back stored predictions up to a row of the matrix, and what `kept` says was found after so many tasks.

        The untouched model's values are measured anew.
        """
        self.rows = rows.filter(pc.less(rows["after_task"], before_row))
        self.matrices = self._matrices(self.rows)
        self.diagnostics = list(kept.get("diagnostics", [{}] * experiences))[:experiences]
        for name, values in self.retention.items():
            for measure, found in values.items():
                found += kept["retention"][name][measure][1 : experiences + 1]

    def restore_points(self, points: Sequence[Sequence[float]]) -> None:
        """Take back what was measured along the way."""
        self.anytime = [(int(examples), float(value)) for examples, value in points]
