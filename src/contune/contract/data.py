"""What a learner learns from: examples made ready for one backbone, and batches of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.backbone.reader.inputs import ModelInputs, Prepared
from contune.stream.modality import find_modality
from contune.stream.task import Examples, Targets

Rows = NDArray[np.int64]
TASK = "task"  # the segment of a batch that holds the current task's own examples
FEW_ROWS = 4  # labels of fewer rows are computed with others of their kind, or every label would be a batch of its own
PIECE_ROWS = 256


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples ready for one backbone; `labels` (n,) are head columns, `tasks` (n,) the task each example came with.

    `view` is the number of the fixed augmented view that batches show of the `plain` examples; None for the model's
    deterministic view.
    """

    examples: Examples
    prepared: Prepared
    labels: Rows
    tasks: Rows
    view: int | None = None
    plain: "Dataset | None" = None
    _views: dict[int, "Dataset"] = field(default_factory=dict)

    @staticmethod
    def of(examples: Examples, backbone: Backbone, labels: Rows, tasks: Rows) -> "Dataset":
        """Tokenise or check the examples once and keep them with their columns."""
        return Dataset(examples, backbone.prepare(examples.inputs), labels, tasks)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> Targets:
        """What each example is to be answered with, in head columns, where one label does not say it."""
        assert self.examples.targets is not None
        return self.examples.targets

    @cached_property
    def key(self) -> str:
        """Hex sha256 of the examples and their view: what results of a frozen model are filed under."""
        digest = hashlib.sha256()
        for group, rows in self.groups.items():
            digest.update(f"|{group}|{len(rows)}|".encode())
            digest.update(rows.tobytes())
        return digest.hexdigest()

    @cached_property
    def groups(self) -> dict[str, Rows]:
        """The rows that are computed and kept together, under the hash of their inputs alone; see `pieces_of`."""
        if self.plain is not None:
            return {f"{group}-view{self.view}": rows for group, rows in self.plain.groups.items()}
        found: dict[str, Rows] = {}
        for rows in pieces_of(self.labels):
            group = inputs_hash(self.examples, rows)
            while group in found:  # two labels with the very same inputs
                group += "-again"
            found[group] = rows
        return found

    @cached_property
    def locations(self) -> tuple[list[str], Rows, Rows]:
        """The names of all pieces, and for every row the number of its piece and its place there."""
        owner, place = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        for number, rows in enumerate(self.groups.values()):
            owner[rows], place[rows] = number, np.arange(len(rows))
        return list(self.groups), owner, place

    def viewed(self, view: int) -> "Dataset":
        """These examples, each in its fixed augmented view of that number."""
        if view not in self._views:
            self._views[view] = replace(self, prepared=self.prepared.viewed(view), view=view, plain=self, _views={})
        return self._views[view]


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

    Where answers are tokens or tags, each of them is a row of its own wherever this page says row: of `labels` (the token),
    `tasks`, `segments`, `counts`, and of the outputs' features and logits. Inputs, queries, routes and cached states are
    those of whole texts.

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
        inputs = (self.routes == module).nonzero()[:, 0]
        locations = torch.isin(self.inputs.target_rows().to(inputs.device), inputs).nonzero()[:, 0]
        if len(locations) == len(self):
            return locations, self
        kept: dict[str, Tensor] = {"labels": self.labels[locations], "tasks": self.tasks[locations]}
        for name in ("queries", "features", "routes"):
            value: Tensor | None = getattr(self, name)
            if value is not None:
                kept[name] = value[inputs]
        resume = None if self.resume is None else (self.resume[0], self.resume[1][inputs])
        return locations, replace(self, inputs=self.inputs.take(inputs), resume=resume, **kept)  # type: ignore[arg-type]

    @property
    def target_routes(self) -> Tensor | None:
        """The module that each row of the outputs came through."""
        if self.routes is None or self.inputs.targets is None:
            return self.routes
        return self.routes[self.inputs.target_rows().to(self.routes.device)]

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


def pieces_of(labels: Rows) -> list[Rows]:
    """The rows of each label: the same pieces in every order of the classes. Labels of very few rows share a piece.

    >>> [rows.tolist() for rows in pieces_of(np.array([2, 1, 0, 1, 1, 1]))]
    [[1, 3, 4, 5], [2, 0]]
    """
    found: list[Rows] = []
    few: list[Rows] = []
    _, starts = np.unique(np.sort(labels), return_index=True)
    for rows in np.split(np.argsort(labels, kind="stable"), starts[1:]):
        if len(rows) >= FEW_ROWS:
            found.append(rows)
            continue
        few.append(rows)
        if sum(map(len, few)) >= PIECE_ROWS:
            found.append(np.concatenate(few))
            few = []
    return [*found, np.concatenate(few)] if few else found


def inputs_hash(examples: Examples, rows: Rows) -> str:
    """Hex sha256 over the inputs at `rows` in that order.

    >>> both = Examples(["a", "b"], np.array([0, 1]), np.array([0, 1]), "text")
    >>> inputs_hash(both, np.array([0])) == inputs_hash(both.take([0, 1]), np.array([1]))
    False
    """
    modality = find_modality(examples.modality)
    digest = hashlib.sha256(modality.hash_name.encode())
    for row in rows.tolist():
        data, shape = modality.content(examples.inputs[row])
        digest.update(f"|{len(data) if shape is None else shape}|".encode())
        digest.update(data)
    return digest.hexdigest()


def columns_of(parts: Sequence[tuple[Dataset, Rows]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels and task indices of the named rows, in order."""
    labels = np.concatenate([dataset.labels[rows] for dataset, rows in parts])
    tasks = np.concatenate([dataset.tasks[rows] for dataset, rows in parts])
    return torch.from_numpy(labels).to(device), torch.from_numpy(tasks).to(device)


def segments_of(
    labels: Tensor, segments: Mapping[str, slice] | None, counts: Mapping[str, int] | None
) -> tuple[Mapping[str, slice], Mapping[str, int]]:
    """Segments and counts of a batch; without any, all of it is the task's own."""
    return segments or {TASK: slice(0, len(labels))}, counts or {TASK: len(labels)}


def target_columns(
    parts: Sequence[tuple[Dataset, Rows]], inputs: ModelInputs, labels: Tensor, tasks: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels and tasks of all answers: one a row, or the tokens to predict, or the tags of words, with their row's task."""
    if inputs.targets is None:
        return labels, tasks
    owners = inputs.target_rows()
    if not inputs.words:
        return inputs.target_ids(), tasks[owners]
    if any(dataset.examples.targets is None for dataset, _ in parts):  # nobody knows the tags that are asked for
        return torch.zeros_like(owners).to(labels.device), tasks[owners]
    counts = torch.bincount(owners.cpu(), minlength=len(inputs)).tolist()
    rows = ((dataset, row) for dataset, chosen in parts for row in chosen.tolist())
    tags = [dataset.targets.of(row)[:count] for (dataset, row), count in zip(rows, counts, strict=True)]
    return torch.from_numpy(np.concatenate(tags)).to(labels.device), tasks[owners]
