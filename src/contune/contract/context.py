"""What a part may see while the engine runs it: the model, the task's own training data, and passes over data."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.inputs import ModelInputs
from contune.contract.data import Batch, Dataset, Outputs, Rows, TaskInfo, columns_of, segments_of, unit_columns
from contune.contract.parts import Adapter, Head, Router, Rule, Tensors
from contune.contract.settings import TrainSettings
from contune.contract.state import State
from contune.contract.store import BLOCK_ROWS, Compute, FrozenStore, Ragged, fixed_batches

Asked = tuple[Dataset, str | None, int, Compute]  # what the store's ways to features are called with


@final
@dataclass(frozen=True, eq=False)
class Context:
    """Handed to parts at every call and never kept by them.

    `adapting` is false once the adapter rests for good (first-task adaptation), from when on its features are frozen.
    `answering` is true at prediction, when nobody says which task an example belongs to. `class_tasks` (tasks, seen)
    says which columns each task has. `practise(context, rules)` takes all of the task's gradient steps with these rules
    alone, beside the run's own: what a rule learns by it is lost unless the rule keeps it.
    """

    backbone: Backbone
    adapter: Adapter
    head: Head
    router: Router | None
    settings: TrainSettings
    store: FrozenStore
    task: TaskInfo
    dataset: Dataset
    adapting: bool
    answering: bool
    class_tasks: Tensor
    base_key: str
    practise: Callable[["Context", Sequence[Rule]], None]

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything trained by gradient now, in name order."""
        named: dict[str, nn.Parameter] = {}
        if self.adapting:
            named |= {f"adapter.{name}": value for name, value in self.adapter.trained().items()}
        named |= {f"head.{name}": value for name, value in self.head.trained().items()}
        if self.router is not None:
            named |= {f"router.{name}": value for name, value in self.router.trained().items()}
        return dict(sorted(named.items()))

    def lowest_layer(self) -> int:
        """The first layer whose output training changes; 0 where states of a layer do not say all that comes after."""
        if not self.backbone.resumable and self.adapting and self.adapter.trained():
            return 0
        return (
            self.adapter.lowest_layer(self.backbone)
            if self.adapting and self.adapter.trained()
            else self.backbone.depth
        )

    def class_mask(self, tasks: Tensor) -> Tensor:
        """Which columns (B, seen) an example of each of these tasks may be scored on in the loss."""
        if self.head.loss_over == "own-task" or self.task.kind == "task-incremental":
            return self.class_tasks.to(tasks.device)[tasks]
        return torch.ones(len(tasks), self.task.seen, dtype=torch.bool, device=tasks.device)

    def feature_size(self) -> int:
        """Width of what a head answers from: the features of one module, or of all side by side."""
        width = self.adapter.feature_size(self.backbone)
        return width * self.adapter.modules() if self.side_by_side else width

    @property
    def side_by_side(self) -> bool:
        """Whether examples are answered by the features of all modules."""
        return self.adapter.modular and self.router is None and self.task.kind != "task-incremental"

    def forward(self, batch: Batch) -> Outputs:
        """Features and training scores of a batch, with gradients where the caller has them on."""
        features, penalty = self.encode(batch)
        routes = batch.unit_routes
        if routes is None:
            return Outputs(features, self.head.training_logits(features), penalty)
        return Outputs(features, self.head.routed_logits(features, routes, training=True), penalty)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Features (B, d) and the adapter's penalty; each row goes through the module of its route."""
        if batch.features is not None:
            return batch.features, None
        routes = None if batch.routes is None else torch.unique(batch.routes).tolist()
        if routes is None or len(routes) == 1:
            return self.adapter.encode(self.backbone, batch)
        pieces, places, penalties = [], [], []
        for module in routes:
            at, rows = batch.through(module)
            features, penalty = self.adapter.encode(self.backbone, rows)
            pieces.append(features)
            places.append(at)
            penalties += [] if penalty is None else [penalty]
        back = torch.cat(places).argsort()
        return torch.cat(pieces)[back], torch.stack(penalties).sum() if penalties else None

    def batch(
        self,
        parts: list[tuple[Dataset, Rows]],
        *,
        segments: Mapping[str, slice] | None = None,
        counts: Mapping[str, int] | None = None,
        augment: torch.Generator | None = None,
        view: int | None = None,
        packed: bool = False,
    ) -> Batch:
        """The named rows as one batch, with queries, cached states or features as the parts need them.

        `augment` draws a fresh view of every image, of which nothing is kept; `view` takes one of their fixed ones.
        `packed`: texts share rows inside the model, where hooks see those rows; nothing else changes.
        """
        shown = parts if view is None else [(dataset.viewed(view), rows) for dataset, rows in parts]
        labels, tasks = columns_of(parts, self.backbone.device)
        routes = self.adapter.routes(tasks) if self.adapter.modular else None
        if augment is None and self._features_kept([dataset for dataset, _ in shown]):
            features = self._rows(self._answered_from, shown)
            inputs = self.backbone.collate([(d.prepared, r) for d, r in shown], pixels=False)
            self.store.ledger.cache_hits += len(labels)
            queries = self._queries(shown, inputs, fresh=False) if self._needs_queries() else None
            places = segments_of(labels, segments, counts)
            return Batch(
                tuple(parts), inputs, labels, tasks, *places, queries=queries, features=features, routes=routes
            )
        resume = None if augment is not None else self._resume(shown)
        pieces = [(d.prepared, r) for d, r in shown]
        inputs = self.backbone.collate(pieces, augment=augment, pixels=resume is None, packed=packed)
        labels, tasks = unit_columns(inputs, labels, tasks)
        queries = None
        if self._needs_queries():
            queries = self._queries(shown, inputs, fresh=augment is not None)
        places = segments_of(labels, segments, counts)
        return Batch(tuple(parts), inputs, labels, tasks, *places, queries=queries, resume=resume, routes=routes)

    def encoding_batch(self, dataset: Dataset, rows: Rows, routes: Tensor | None, *, room: int = 0) -> Batch:
        """These rows as one batch for features; with `room`, to be answered in writing. `routes` (n,) of all rows."""
        part = [(dataset, rows)]
        labels, tasks = columns_of(part, self.backbone.device)
        resume = None if room else self._resume(part)
        if room:
            inputs = self.backbone.questions([(dataset.prepared, rows)], room=room)
        else:
            inputs = self.backbone.collate([(dataset.prepared, rows)], pixels=resume is None)
        labels, tasks = unit_columns(inputs, labels, tasks)
        queries = None
        if self.adapter.needs_queries:
            queries = self._queries(part, inputs, fresh=False)
        routed = None if routes is None else routes[torch.from_numpy(rows)].to(self.backbone.device)
        return Batch(tuple(part), inputs, labels, tasks, queries=queries, resume=resume, routes=routed)

    def prepare(self, datasets: Sequence[Dataset], view: int | None) -> None:
        """Have at hand what is kept of these data sets; every process that shares the work must call this."""
        shown = [dataset if view is None else dataset.viewed(view) for dataset in datasets]
        for dataset in shown:
            if self._features_kept(shown):
                for asked in self._answered_from(dataset):
                    self.store.prepare(*asked)
            else:
                self._prepare_hidden(dataset)
            self._prepare_queries(dataset)

    def batches(self, dataset: Dataset, size: int | None = None) -> Iterator[Batch]:
        """The whole data set once in a fixed order, in the model's deterministic view."""
        for rows in fixed_batches(dataset.prepared.lengths, size or self.store.settings.batch_size):
            yield self.batch([(dataset, rows)])

    def base_features(self, dataset: Dataset) -> Tensor:
        """Features (n, d) of the untouched frozen model: what prompt methods call queries."""
        return self.store.features(*self._queried(dataset))

    def features(self, dataset: Dataset) -> Tensor:
        """Features (n, d) a head answers from: through the module of each example's route, or of all side by side."""
        found = [self.store.features(*asked) for asked in self._answered_from(dataset)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def feature_blocks(self, dataset: Dataset, count: int = BLOCK_ROWS) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of `features`, to the bit, in blocks of about `count`, each with their places in ascending order.

        What is not kept is computed block by block. Of modules side by side, those that still change are held whole where
        others do not change any more, because the two are computed in other batches. Every process must take all blocks.
        """
        if self.side_by_side:
            return self._blocks_beside(dataset, count)
        return self.store.feature_blocks(*self._asked(dataset, *self._way(dataset)), count)

    def module_features(self, dataset: Dataset, module: int) -> Tensor:
        """Features (n, d) through one module of a modular adapter; kept where that module will not change any more."""
        return self.store.features(*self._asked(dataset, *self._through(dataset, module)))

    def module_blocks(self, dataset: Dataset, module: int, count: int = BLOCK_ROWS) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of `module_features` in blocks, as `feature_blocks` gives them."""
        return self.store.feature_blocks(*self._asked(dataset, *self._through(dataset, module)), count)

    def routes(self, dataset: Dataset) -> Tensor:
        """The module (n,) for every example: the router's choice where nobody knows the task, else its task's own."""
        if self.answering and self.router is not None and self.task.kind != "task-incremental":
            return self.router.route(self, dataset)
        return self.adapter.routes(torch.from_numpy(dataset.tasks))

    def _way(self, dataset: Dataset) -> tuple[str | None, Tensor | None]:
        """Under what the features of one module per example are kept, and which module each goes through."""
        if self.adapter.modular:
            return None, self.routes(dataset)
        fixed = not self.adapting or self.adapter.name == "none"
        return self.adapter_key() if fixed else None, None

    def _through(self, dataset: Dataset, module: int) -> tuple[str | None, Tensor]:
        state = self.adapter.module_state(module)
        key = None if state is None else f"module{module}-{frozen_key(self.adapter, state)}"
        return key, torch.full((len(dataset),), module)

    def _answered_from(self, dataset: Dataset) -> list[Asked]:
        """What to ask the store for so as to have `features`; what comes of each goes side by side."""
        if self.side_by_side:
            modules = range(self.adapter.modules())
            return [self._asked(dataset, *self._through(dataset, module)) for module in modules]
        return [self._asked(dataset, *self._way(dataset))]

    def _queried(self, dataset: Dataset) -> Asked:
        """The same for `base_features`."""
        backbone = self.backbone

        def compute(rows: Rows) -> Tensor:
            with self.adapter.absent():
                return backbone.features(backbone.questions([(dataset.prepared, rows)]))

        return dataset, f"base-{self.base_key}", backbone.feature_size, compute

    def _asked(self, dataset: Dataset, key: str | None, routes: Tensor | None) -> Asked:
        """What to ask the store for."""

        def compute(rows: Rows) -> Tensor:
            return self.encode(self.encoding_batch(dataset, rows, routes))[0]

        if self.store.processes.count > 1:
            self._prepare_hidden(dataset)
            self._prepare_queries(dataset)
        name = key and f"features-{self.base_key}-{key}"
        return dataset, name, self.adapter.feature_size(self.backbone), compute

    def _blocks_beside(self, dataset: Dataset, count: int) -> Iterator[tuple[Rows, Tensor]]:
        modules = range(self.adapter.modules())
        changing = [module for module in modules if self.adapter.module_state(module) is None]
        whole = {module: self.module_features(dataset, module) for module in changing if len(changing) < len(modules)}
        for blocks in zip(*(self.module_blocks(dataset, m, count) for m in modules if m not in whole), strict=True):
            rows, found = blocks[0][0], iter(blocks)
            values = [whole[m][torch.from_numpy(rows)] if m in whole else next(found)[1] for m in modules]
            yield rows, torch.cat(values, dim=1)

    def logits(self, dataset: Dataset) -> Tensor:
        """Prediction scores (n, seen) of the whole data set, as the model stands."""
        scores = torch.zeros(0, self.task.seen)
        for rows, chunk in self.logit_blocks(dataset):
            scores = scores if len(scores) else chunk.new_zeros(len(dataset), chunk.shape[1])
            scores[torch.from_numpy(rows)] = chunk
        return scores

    def logit_blocks(self, dataset: Dataset) -> Iterator[tuple[Rows, Tensor]]:
        """Prediction scores in blocks, each with the places of its rows."""
        device = self.backbone.device
        routes = self.routes(dataset) if self.adapter.modular and not self.side_by_side else None
        blocks = (
            self.feature_blocks(dataset)
            if routes is None
            else self.store.feature_blocks(*self._asked(dataset, None, routes))
        )
        for rows, features in blocks:
            with torch.no_grad():
                chunk = features.to(device)
                scores = (
                    self.head.logits(chunk)
                    if routes is None
                    else self.head.routed_logits(chunk, routes[torch.from_numpy(rows)].to(device), training=False)
                )
            yield rows, scores.cpu()

    def write(self, values: Tensors) -> None:
        """Put these values into the trained tensors of the same names."""
        trained = self.trained()
        with torch.no_grad():
            for name, value in values.items():
                trained[name].copy_(value)

    def adapter_key(self) -> str:
        """Names the adapter's frozen weights in the store."""
        return "none" if self.adapter.name == "none" else frozen_key(self.adapter, self.adapter.state())

    @contextmanager
    def swapped(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """The block sees these values in place of the trained ones: an old model without a second copy of the base."""
        trained = self.trained()
        current = {name: trained[name].data for name in tensors if name in trained}
        for name in current:
            trained[name].data = tensors[name].to(current[name].device)
        try:
            yield
        finally:
            for name, value in current.items():
                trained[name].data = value

    def _features_kept(self, datasets: Sequence[Dataset]) -> bool:
        if self.lowest_layer() < self.backbone.depth:
            return False
        width = self.adapter.feature_size(self.backbone)
        return self.store.keeps_features((sum(len(dataset) for dataset in datasets), width))

    def _needs_queries(self) -> bool:
        router = self.router
        return self.adapter.needs_queries or (router is not None and router.needs_queries and bool(router.trained()))

    def _prepare_hidden(self, dataset: Dataset) -> None:
        layer = self.lowest_layer()
        if 0 < layer < self.backbone.depth and self.store.keeps_hidden([dataset], self._hidden_size()):
            self._hidden(dataset, layer)

    def _prepare_queries(self, dataset: Dataset) -> None:
        if self._needs_queries() and self._queries_kept([dataset]):
            self.store.prepare(*self._queried(dataset))

    def _queries_kept(self, datasets: Sequence[Dataset]) -> bool:
        return self.store.keeps_features((sum(len(dataset) for dataset in datasets), self.backbone.feature_size))

    def _queries(self, parts: list[tuple[Dataset, Rows]], inputs: ModelInputs, *, fresh: bool) -> Tensor:
        """Queries of these rows: read from what is kept, or from one more forward pass of the frozen model."""
        if not fresh and self._queries_kept([dataset for dataset, _ in parts]):
            return self._rows(lambda dataset: [self._queried(dataset)], parts)
        if not fresh:  # the batch may resume from kept states, and then it has no pixels
            inputs = self.backbone.questions([(dataset.prepared, rows) for dataset, rows in parts])
        self.store.ledger.examples_forward += len(inputs)
        with torch.no_grad(), self.adapter.absent():
            return self.backbone.features(inputs)

    def _rows(self, asked: Callable[[Dataset], list[Asked]], parts: list[tuple[Dataset, Rows]]) -> Tensor:
        pieces = [
            torch.cat([self.store.rows(*each, rows) for each in asked(dataset)], dim=1) for dataset, rows in parts
        ]
        return torch.cat(pieces).to(self.backbone.device)

    def _resume(self, parts: list[tuple[Dataset, Rows]]) -> tuple[int, Tensor] | None:
        layer = self.lowest_layer()
        if layer == 0 or layer == self.backbone.depth:
            return None
        if not self.store.keeps_hidden([dataset for dataset, _ in parts], self._hidden_size()):
            return None
        ragged = [self._hidden(dataset, layer) for dataset, _ in parts]
        length = max(int(dataset.prepared.lengths[rows].max()) for dataset, rows in parts if len(rows))
        states: list[Tensor] = []
        for states_of, (_, rows) in zip(ragged, parts, strict=True):
            if states_of is None:
                return None
            states.append(states_of.padded(rows, length))
            self.store.ledger.cache_hits += len(rows)
        return layer, torch.cat(states).to(self.backbone.device)

    def _hidden(self, dataset: Dataset, layer: int) -> Ragged | None:
        backbone = self.backbone

        def compute(rows: Rows) -> Tensor:
            return backbone.hidden(backbone.collate([(dataset.prepared, rows)]), layer)

        return self.store.hidden(dataset, f"layer{layer}-{self.base_key}", self._hidden_size(), compute)

    def _hidden_size(self) -> int:
        return int(self.backbone.model.config.hidden_size)


def frozen_key(adapter: Adapter, state: State) -> str:
    """Short hash of an adapter's options and of a state's tensors: what its frozen features depend on."""
    digest = hashlib.sha256(repr(options_of(adapter)).encode())
    for name, tensor in sorted(state.tensors.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def options_of(adapter: Adapter) -> list[object]:
    """Name and public plain values of an adapter and of the adapters inside it."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    found: list[object] = [adapter.name]
    for name, value in sorted(vars(adapter).items()):
        if isinstance(value, Adapter):
            found.append((name, options_of(value)))
        elif not name.startswith("_") and isinstance(value, plain):
            found.append((name, value))
    return found
