"""What a part may see while the engine runs it: the task, the model, and passes over data."""

from dataclasses import dataclass, replace
from typing import final

from contune.contract.data import Dataset
from contune.contract.model import Model
from contune.contract.passes import Passes
from contune.contract.settings import TrainSettings
from contune.stream.task import Kind


@final
@dataclass(frozen=True, eq=False)
class TaskView:
    """What is learned now: where it stands in head columns, its data, and how training runs.

    `classes` are the columns of this task, `known` counts the columns before it, `seen` those there are now;
    `class_names` (seen,) are the names of all columns.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    known: int
    seen: int
    kind: Kind
    class_names: tuple[str, ...]
    data: Dataset
    settings: TrainSettings

    @property
    def steps(self) -> int:
        """Gradient steps that the settings give these data: `epochs` times `steps_per_epoch`."""
        return self.epochs * self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Passes over these data: `settings.epochs`, and more until they come to `settings.min_steps`; 0 stays 0."""
        return self.settings.epochs_over(len(self.data))

    @property
    def steps_per_epoch(self) -> int:
        """Gradient steps of one epoch: `settings.batches`, or as many as pass over the data once."""
        return self.settings.steps_over(len(self.data))


@final
@dataclass(frozen=True, eq=False)
class Context:
    """Handed to parts at every call and never kept by them."""

    task: TaskView
    model: Model
    passes: Passes

    def with_data(self, data: Dataset) -> "Context":
        """The same task with other data."""
        return self._with(replace(self.task, data=data), self.model)

    def with_settings(self, settings: TrainSettings) -> "Context":
        """The same task under other settings of the gradient loop."""
        return self._with(replace(self.task, settings=settings), self.model)

    def with_model(self, model: Model) -> "Context":
        """The same task with another model."""
        return self._with(self.task, model)

    def with_adapter_at_rest(self) -> "Context":
        """The same task with an adapter that is trained no more."""
        return self.with_model(replace(self.model, adapter_trainable=False))

    def _with(self, task: TaskView, model: Model) -> "Context":
        changed = Context(task, model, self.passes)
        return Context(task, model, self.passes.of(changed))
