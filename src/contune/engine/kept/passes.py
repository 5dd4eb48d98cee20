"""Passes over data through the model as it stands, with what of them is fixed kept and found again."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from contune.backbone.reader.inputs import ModelInputs
from contune.contract.capability import Lifetime, Modules, require
from contune.contract.context import Context, TaskView
from contune.contract.data import Batch, Dataset, Rows, columns_of, segments_of, target_columns
from contune.contract.model import Model
from contune.contract.parts import Adapter, Rule
from contune.contract.passes import BLOCK_ROWS, Passes
from contune.contract.processes import Processes
from contune.contract.state import State
from contune.engine.kept.cache import Compute, FeatureCache, Ragged, fixed_batches
from contune.metric.ledger import Ledger

Asked = tuple[Dataset, str | None, int, Compute]  # what the store's ways to features are called with


@final
@dataclass(frozen=True, eq=False)
class CachedPasses(Passes):
    """Plans for each pass what comes from the store, what resumes from a layer's states, and what is computed.

    `base_fingerprint` names what features of the frozen model depend on beside the examples; `steps` takes a task's
    gradient steps.
    """

    task: TaskView
    model: Model
    feature_cache: FeatureCache
    inference: bool
    base_fingerprint: str
    steps: Callable[[Context, Sequence[Rule]], None]

    def of(self, context: Context) -> "CachedPasses":
        return replace(self, task=context.task, model=context.model)

    def extra_steps(self, context: Context, rules: Sequence[Rule]) -> None:
        self.steps(context, rules)

    @property
    def processes(self) -> Processes:  # type: ignore[override]
        """Those that share the work."""
        return self.feature_cache.processes

    @property
    def ledger(self) -> Ledger:  # type: ignore[override]
        """What the work has cost so far."""
        return self.feature_cache.ledger

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Examples in one forward pass without gradients."""
        return self.feature_cache.settings.batch_size

    def kept(self, dataset: Dataset, name: str, width: int, compute: Compute) -> Tensor:
        return self.feature_cache.features(dataset, name, width, compute)

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
        shown = parts if view is None else [(dataset.viewed(view), rows) for dataset, rows in parts]
        labels, tasks = columns_of(parts, self.model.backbone.device)
        routes = None if self.model.modules is None else self.model.modules.routes(tasks)
        if augment is None and self._features_kept([dataset for dataset, _ in shown]):
            features = self._rows(self._answered_from, shown)
            inputs = self.model.backbone.collate([(d.prepared, r) for d, r in shown], pixels=False)
            self.feature_cache.ledger.cache_hits += len(labels)
            queries = self._queries(shown, inputs, fresh=False) if self._needs_queries() else None
            locations = segments_of(labels, segments, counts)
            return Batch(
                tuple(parts), inputs, labels, tasks, *locations, queries=queries, features=features, routes=routes
            )
        resume = None if augment is not None else self._resume(shown)
        groups = [(d.prepared, r) for d, r in shown]
        inputs = self.model.backbone.collate(groups, augment=augment, pixels=resume is None, packed=packed)
        labels, tasks = target_columns(parts, inputs, labels, tasks)
        queries = None
        if self._needs_queries():
            queries = self._queries(shown, inputs, fresh=augment is not None)
        locations = segments_of(labels, segments, counts)
        return Batch(tuple(parts), inputs, labels, tasks, *locations, queries=queries, resume=resume, routes=routes)

    def encoding_batch(self, dataset: Dataset, rows: Rows, routes: Tensor | None, *, max_new_tokens: int = 0) -> Batch:
        part = [(dataset, rows)]
        labels, tasks = columns_of(part, self.model.backbone.device)
        resume = None if max_new_tokens else self._resume(part)
        if max_new_tokens:
            inputs = self.model.backbone.prompts_only([(dataset.prepared, rows)], max_new_tokens=max_new_tokens)
        else:
            inputs = self.model.backbone.collate([(dataset.prepared, rows)], pixels=resume is None)
        labels, tasks = target_columns(part, inputs, labels, tasks)
        queries = None
        if self.model.adapter.needs_queries:
            queries = self._queries(part, inputs, fresh=False)
        routed = None if routes is None else routes[torch.from_numpy(rows)].to(self.model.backbone.device)
        return Batch(tuple(part), inputs, labels, tasks, queries=queries, resume=resume, routes=routed)

    def prepare(self, datasets: Sequence[Dataset], view: int | None) -> None:
        shown = [dataset if view is None else dataset.viewed(view) for dataset in datasets]
        for dataset in shown:
            if self._features_kept(shown):
                for asked in self._answered_from(dataset):
                    self.feature_cache.prepare(*asked)
            else:
                self._prepare_hidden(dataset)
            self._prepare_queries(dataset)

    def batches(self, dataset: Dataset, size: int | None = None) -> Iterator[Batch]:
        for rows in fixed_batches(dataset.prepared.lengths, size or self.feature_cache.settings.batch_size):
            yield self.batch([(dataset, rows)])

    def base_features(self, dataset: Dataset) -> Tensor:
        return self.feature_cache.features(*self._queried(dataset))

    def features(self, dataset: Dataset) -> Tensor:
        found = [self.feature_cache.features(*asked) for asked in self._answered_from(dataset)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def feature_blocks(self, dataset: Dataset, count: int = BLOCK_ROWS) -> Iterator[tuple[Rows, Tensor]]:
        if self.model.side_by_side:
            return self._blocks_beside(dataset, count)
        return self.feature_cache.feature_blocks(*self._asked(dataset, *self._way(dataset)), count)

    def module_features(self, dataset: Dataset, module: int) -> Tensor:
        return self.feature_cache.features(*self._asked(dataset, *self._through(dataset, module)))

    def module_blocks(self, dataset: Dataset, module: int, count: int = BLOCK_ROWS) -> Iterator[tuple[Rows, Tensor]]:
        return self.feature_cache.feature_blocks(*self._asked(dataset, *self._through(dataset, module)), count)

    def routes(self, dataset: Dataset) -> Tensor:
        if self.inference and self.model.router is not None and not self.model.tasks_named:
            return self.model.router.route(Context(self.task, self.model, self), dataset)
        return require(self.model.adapter, Modules).routes(torch.from_numpy(dataset.tasks))

    def _way(self, dataset: Dataset) -> tuple[str | None, Tensor | None]:
        """Under what the features of one module per example are kept, and which module each goes through."""
        if self.model.modules is not None:
            return None, self.routes(dataset)
        fixed = not self.model.adapter_trainable or self.model.adapter.lifetime is Lifetime.NOTHING
        return self.adapter_key() if fixed else None, None

    def _through(self, dataset: Dataset, module: int) -> tuple[str | None, Tensor]:
        state = require(self.model.adapter, Modules).module_state(module)
        key = None if state is None else f"module{module}-{frozen_key(self.model.adapter, state)}"
        return key, torch.full((len(dataset),), module)

    def _answered_from(self, dataset: Dataset) -> list[Asked]:
        """What to ask the store for so as to have `features`; what comes of each goes side by side."""
        if self.model.modules is not None and self.model.side_by_side:
            modules = range(self.model.modules.modules())
            return [self._asked(dataset, *self._through(dataset, module)) for module in modules]
        return [self._asked(dataset, *self._way(dataset))]

    def _queried(self, dataset: Dataset) -> Asked:
        """The same for `base_features`."""
        backbone = self.model.backbone

        def compute(rows: Rows) -> Tensor:
            with self.model.adapter.disabled():
                return backbone.features(backbone.prompts_only([(dataset.prepared, rows)]))

        return dataset, f"base-{self.base_fingerprint}", backbone.feature_size, compute

    def _asked(self, dataset: Dataset, key: str | None, routes: Tensor | None) -> Asked:
        """What to ask the store for."""

        def compute(rows: Rows) -> Tensor:
            return self.model.encode(self.encoding_batch(dataset, rows, routes))[0]

        if self.feature_cache.processes.count > 1:
            self._prepare_hidden(dataset)
            self._prepare_queries(dataset)
        name = key and f"features-{self.base_fingerprint}-{key}"
        return dataset, name, self.model.adapter.feature_size(self.model.backbone), compute

    def _blocks_beside(self, dataset: Dataset, count: int) -> Iterator[tuple[Rows, Tensor]]:
        beside = require(self.model.adapter, Modules)
        modules = range(beside.modules())
        changing = [module for module in modules if beside.module_state(module) is None]
        whole = {module: self.module_features(dataset, module) for module in changing if len(changing) < len(modules)}
        for blocks in zip(*(self.module_blocks(dataset, m, count) for m in modules if m not in whole), strict=True):
            rows, found = blocks[0][0], iter(blocks)
            values = [whole[m][torch.from_numpy(rows)] if m in whole else next(found)[1] for m in modules]
            yield rows, torch.cat(values, dim=1)

    def routed_batches(self, dataset: Dataset) -> list[tuple[Rows, Tensor | None]]:
        routes = self.routes(dataset) if self.model.modules is not None else None
        size, lengths = self.batch_size, dataset.prepared.lengths
        if routes is None:
            return [(rows, None) for rows in fixed_batches(lengths, size)]
        found: list[tuple[Rows, Tensor | None]] = []
        for module in sorted(set(routes.tolist())):
            rows = np.flatnonzero((routes == module).numpy())
            found += [(rows[chosen], routes) for chosen in fixed_batches(lengths[rows], size)]
        return found

    def logits(self, dataset: Dataset) -> Tensor:
        scores = torch.zeros(0, self.task.seen)
        for rows, chunk in self.logit_blocks(dataset):
            scores = scores if len(scores) else chunk.new_zeros(len(dataset), chunk.shape[1])
            scores[torch.from_numpy(rows)] = chunk
        return scores

    def logit_blocks(self, dataset: Dataset) -> Iterator[tuple[Rows, Tensor]]:
        device = self.model.backbone.device
        routes = self.routes(dataset) if self.model.modules is not None and not self.model.side_by_side else None
        blocks = (
            self.feature_blocks(dataset)
            if routes is None
            else self.feature_cache.feature_blocks(*self._asked(dataset, None, routes))
        )
        for rows, features in blocks:
            with torch.no_grad():
                chunk = features.to(device)
                scores = (
                    self.model.head.logits(chunk)
                    if routes is None
                    else self.model.head.routed_logits(chunk, routes[torch.from_numpy(rows)].to(device), training=False)
                )
            yield rows, scores.cpu()

    def adapter_key(self) -> str:
        """Names the adapter's frozen weights in the store."""
        adapter = self.model.adapter
        return "none" if adapter.lifetime is Lifetime.NOTHING else frozen_key(adapter, adapter.state())

    def _features_kept(self, datasets: Sequence[Dataset]) -> bool:
        if self.model.lowest_layer() < self.model.backbone.depth or not self.model.per_example:
            return False
        width = self.model.adapter.feature_size(self.model.backbone)
        return self.feature_cache.keeps_features((sum(len(dataset) for dataset in datasets), width))

    def _needs_queries(self) -> bool:
        router = self.model.router
        return self.model.adapter.needs_queries or (
            router is not None and router.needs_queries and bool(router.trained())
        )

    def _prepare_hidden(self, dataset: Dataset) -> None:
        layer = self.model.lowest_layer()
        if 0 < layer < self.model.backbone.depth and self.feature_cache.keeps_hidden([dataset], self._hidden_size()):
            self._hidden(dataset, layer)

    def _prepare_queries(self, dataset: Dataset) -> None:
        if self._needs_queries() and self._queries_kept([dataset]):
            self.feature_cache.prepare(*self._queried(dataset))

    def _queries_kept(self, datasets: Sequence[Dataset]) -> bool:
        return self.feature_cache.keeps_features(
            (sum(len(dataset) for dataset in datasets), self.model.backbone.feature_size)
        )

    def _queries(self, parts: list[tuple[Dataset, Rows]], inputs: ModelInputs, *, fresh: bool) -> Tensor:
        """Queries of these rows: read from what is kept, or from one more forward pass of the frozen model."""
        if not fresh and self._queries_kept([dataset for dataset, _ in parts]):
            return self._rows(lambda dataset: [self._queried(dataset)], parts)
        if not fresh:  # the batch may resume from kept states, and then it has no pixels
            inputs = self.model.backbone.prompts_only([(dataset.prepared, rows) for dataset, rows in parts])
        self.feature_cache.ledger.examples_forward += len(inputs)
        with torch.no_grad(), self.model.adapter.disabled():
            return self.model.backbone.features(inputs)

    def _rows(self, asked: Callable[[Dataset], list[Asked]], parts: list[tuple[Dataset, Rows]]) -> Tensor:
        groups = [
            torch.cat([self.feature_cache.rows(*each, rows) for each in asked(dataset)], dim=1)
            for dataset, rows in parts
        ]
        return torch.cat(groups).to(self.model.backbone.device)

    def _resume(self, parts: list[tuple[Dataset, Rows]]) -> tuple[int, Tensor] | None:
        layer = self.model.lowest_layer()
        if layer == 0 or layer == self.model.backbone.depth:
            return None
        if not self.feature_cache.keeps_hidden([dataset for dataset, _ in parts], self._hidden_size()):
            return None
        ragged = [self._hidden(dataset, layer) for dataset, _ in parts]
        length = max(int(dataset.prepared.lengths[rows].max()) for dataset, rows in parts if len(rows))
        states: list[Tensor] = []
        for states_of, (_, rows) in zip(ragged, parts, strict=True):
            if states_of is None:
                return None
            states.append(states_of.padded(rows, length))
            self.feature_cache.ledger.cache_hits += len(rows)
        return layer, torch.cat(states).to(self.model.backbone.device)

    def _hidden(self, dataset: Dataset, layer: int) -> Ragged | None:
        backbone = self.model.backbone

        def compute(rows: Rows) -> Tensor:
            return backbone.hidden(backbone.collate([(dataset.prepared, rows)]), layer)

        return self.feature_cache.hidden(dataset, f"layer{layer}-{self.base_fingerprint}", self._hidden_size(), compute)

    def _hidden_size(self) -> int:
        return int(self.model.backbone.model.config.hidden_size)


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
