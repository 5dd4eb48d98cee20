"""What a part may see while the engine runs it: the model, the task's own training data, and passes over data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.contract.data import Batch, Dataset, Outputs, Rows, TaskInfo, columns_of
from contune.contract.parts import Adapter, Head
from contune.contract.settings import TrainSettings
from contune.contract.store import FrozenStore, Ragged, fixed_batches


@final
@dataclass(frozen=True, eq=False)
class Context:
    """Handed to parts at every call and never kept by them.

    `adapting` is false once the adapter rests for good (first-task adaptation), from when on its features are frozen.
    `class_tasks` (tasks, seen) says which columns each task has.
    """

    backbone: Backbone
    adapter: Adapter
    head: Head
    settings: TrainSettings
    store: FrozenStore
    task: TaskInfo
    dataset: Dataset
    adapting: bool
    class_tasks: Tensor
    base_key: str

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything trained by gradient now, in name order."""
        inside = self.adapter.trained() if self.adapting else {}
        named = {f"adapter.{name}": value for name, value in inside.items()}
        named |= {f"head.{name}": value for name, value in self.head.trained().items()}
        return dict(sorted(named.items()))

    def lowest_layer(self) -> int:
        """The first layer whose output training changes."""
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

    def forward(self, batch: Batch, *, training: bool = True) -> Outputs:
        """Features and logits of a batch, with gradients where the caller has them on."""
        if batch.features is not None:
            features, penalty = batch.features, None
        else:
            features, penalty = self.adapter.encode(self.backbone, batch)
        logits = self.head.training_logits(features) if training else self.head.logits(features)
        return Outputs(features, logits, penalty)

    def batch(
        self,
        parts: list[tuple[Dataset, Rows]],
        *,
        segments: Mapping[str, slice] | None = None,
        counts: Mapping[str, int] | None = None,
        augment: torch.Generator | None = None,
    ) -> Batch:
        """The named rows as one batch, with queries, cached states or features as the parts need them."""
        device = self.backbone.device
        labels, tasks = columns_of(parts, device)
        whole = {"task": slice(0, len(labels))}
        common = (tuple(parts), segments or whole, counts or {"task": len(labels)})
        if augment is None and self.lowest_layer() == self.backbone.depth and self._features_kept(parts):
            features = torch.cat([self.features(dataset)[torch.from_numpy(rows)] for dataset, rows in parts]).to(device)
            inputs = self.backbone.collate([(d.prepared, r) for d, r in parts], pixels=False)
            self.store.ledger.cache_hits += len(labels)
            return Batch(common[0], inputs, labels, tasks, common[1], common[2], features=features)
        resume = None if augment is not None else self._resume(parts)
        inputs = self.backbone.collate([(d.prepared, r) for d, r in parts], augment=augment, pixels=resume is None)
        queries = None
        if self.adapter.needs_queries:
            if augment is None:
                queries = torch.cat([self.base_features(d)[torch.from_numpy(r)] for d, r in parts]).to(device)
            else:
                with torch.no_grad():
                    queries = self.backbone.features(inputs)
        return Batch(common[0], inputs, labels, tasks, common[1], common[2], queries=queries, resume=resume)

    def batches(self, dataset: Dataset, size: int | None = None) -> Iterator[Batch]:
        """The whole data set once in a fixed order, in the model's deterministic view."""
        for rows in fixed_batches(dataset.prepared.lengths, size or self.store.settings.batch_size):
            yield self.batch([(dataset, rows)])

    def base_features(self, dataset: Dataset) -> Tensor:
        """Features (n, d) of the untouched frozen model: what prompt methods call queries."""
        backbone = self.backbone

        def compute(rows: Rows) -> Tensor:
            return backbone.features(backbone.collate([(dataset.prepared, rows)]))

        with self.adapter.absent():
            return self.store.features(dataset, f"base-{self.base_key}", backbone.feature_size, compute)

    def features(self, dataset: Dataset) -> Tensor:
        """Features (n, d) through the adapter as it is now; kept where they are frozen."""
        fixed = not self.adapting or self.adapter.name == "none"
        name = f"features-{self.base_key}-{self.adapter_key()}" if fixed else None

        def compute(rows: Rows) -> Tensor:
            return self.adapter.encode(self.backbone, self._encoding_batch(dataset, rows))[0]

        return self.store.features(dataset, name, self.adapter.feature_size(self.backbone), compute)

    def logits(self, dataset: Dataset) -> Tensor:
        """Prediction scores (n, seen) of the whole data set, as the model stands."""
        features = self.features(dataset)
        with torch.no_grad():
            chunks = [self.head.logits(chunk.to(self.backbone.device)).cpu() for chunk in torch.split(features, 4096)]
        return torch.cat(chunks) if chunks else torch.zeros(0, self.task.seen)

    def adapter_key(self) -> str:
        """Names the adapter's frozen weights in the store."""
        return "none" if self.adapter.name == "none" else state_key(self.adapter)

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

    def _features_kept(self, parts: list[tuple[Dataset, Rows]]) -> bool:
        width = self.adapter.feature_size(self.backbone)
        return all(self.store.keeps_features((len(dataset), width)) for dataset, _ in parts)

    def _encoding_batch(self, dataset: Dataset, rows: Rows) -> Batch:
        part = [(dataset, rows)]
        labels, tasks = columns_of(part, self.backbone.device)
        resume = self._resume(part)
        inputs = self.backbone.collate([(dataset.prepared, rows)], pixels=resume is None)
        queries = None
        if self.adapter.needs_queries:
            queries = self.base_features(dataset)[torch.from_numpy(rows)].to(self.backbone.device)
        return Batch(tuple(part), inputs, labels, tasks, queries=queries, resume=resume)

    def _resume(self, parts: list[tuple[Dataset, Rows]]) -> tuple[int, Tensor] | None:
        layer = self.lowest_layer()
        if layer == 0 or layer == self.backbone.depth:
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

        width = backbone.model.config.hidden_size
        return self.store.hidden(dataset, f"layer{layer}-{self.base_key}", int(width), compute)


def state_key(adapter: Adapter) -> str:
    """Short hash of an adapter's tensors."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(adapter.state().tensors.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
