"""What a learner learns from: examples made ready for one backbone, and batches of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.backbone.inputs import ModelInputs, Prepared
from contune.stream.task import Examples, Kind

Rows = NDArray[np.int64]
TASK = "task"  # the segment of a batch that holds the current task's own examples


@final
@dataclass(frozen=True)
class TaskInfo:
    """Where the learner is, in head columns: `classes` of this task, `known` columns before it, `seen` now.

    `class_names` (seen,) are the names of all columns.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    known: int
    seen: int
    kind: Kind
    class_names: tuple[str, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples ready for one backbone; `labels` (n,) are head columns, `tasks` (n,) the task each example came with."""

    examples: Examples
    prepared: Prepared
    labels: Rows
    tasks: Rows

    @staticmethod
    def of(examples: Examples, backbone: Backbone, labels: Rows, tasks: Rows) -> "Dataset":
        """Tokenise or check the examples once and keep them with their columns."""
        return Dataset(examples, backbone.prepare(examples.inputs), labels, tasks)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def key(self) -> str:
        """Hex sha256 of the examples: what results of a frozen model are filed under."""
        return self.examples.content_hash()


@final
@dataclass(frozen=True)
class Selection:
    """Rows that a rule adds to the step.

    `weight`: their classification loss is an own term, `weight` times its mean; None joins them to the mean over the
    task's own rows.
    """

    dataset: Dataset
    rows: Rows
    weight: float | None = None


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one step on this process, in segments: the task's own, then what each rule added.

    `counts` holds each segment's number of rows over all processes: a mean over a segment is the local sum divided by
    it, so that the sum over processes is the mean. `queries` (B, d) are features of the frozen model, `resume` the
    cached states below the lowest trained layer, `features` (B, d) all that is needed where nothing inside is trained.
    `routes` (B,) are the modules of a modular adapter; `route` is the one module where a whole batch goes through it.
    """

    parts: tuple[tuple[Dataset, Rows], ...]
    inputs: ModelInputs
    labels: Tensor
    tasks: Tensor
    segments: Mapping[str, slice] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    queries: Tensor | None = None
    resume: tuple[int, Tensor] | None = None
    features: Tensor | None = None
    routes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def route(self) -> int:
        """The module that all rows go through."""
        assert self.routes is not None
        return int(self.routes[0])

    def through(self, module: int) -> tuple[Tensor, "Batch"]:
        """The places of the rows that go through `module`, and those rows as a batch."""
        assert self.routes is not None
        places = (self.routes == module).nonzero()[:, 0]
        if len(places) == len(self):
            return places, self
        kept: dict[str, Tensor] = {}
        for name in ("labels", "tasks", "queries", "features", "routes"):
            value: Tensor | None = getattr(self, name)
            if value is not None:
                kept[name] = value[places]
        resume = None if self.resume is None else (self.resume[0], self.resume[1][places])
        return places, replace(self, inputs=self.inputs.take(places), resume=resume, **kept)  # type: ignore[arg-type]

    def mean(self, values: Tensor, segment: str = TASK) -> Tensor:
        """Mean of per-row `values` (rows of the segment) over all processes' rows of that segment."""
        return values.sum() / max(self.counts[segment], 1)


@final
@dataclass(frozen=True, eq=False)
class Outputs:
    """What the model made of a batch: `features` (B, d), `logits` (B, seen), and the adapter's own `penalty`."""

    features: Tensor
    logits: Tensor
    penalty: Tensor | None = None


def columns_of(parts: Sequence[tuple[Dataset, Rows]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels and task indices of the named rows, in order."""
    labels = np.concatenate([dataset.labels[rows] for dataset, rows in parts])
    tasks = np.concatenate([dataset.tasks[rows] for dataset, rows in parts])
    return torch.from_numpy(labels).to(device), torch.from_numpy(tasks).to(device)
