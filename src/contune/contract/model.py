"""The model as parts see it: the frozen backbone, the parts in it, and what is trained now."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.contract.capability import Modules, find, require
from contune.contract.data import Batch, Outputs
from contune.contract.parts import Adapter, Head, Router, Tensors, Trait

if TYPE_CHECKING:
    from contune.contract.objective import Objective


@final
@dataclass(frozen=True, eq=False)
class Model:
    """Backbone, adapter, head and router together.

    `adapter_trainable` is false once the adapter is at rest for good (first-task adaptation), from when on its features
    are fixed. `class_tasks` (tasks, seen) says which columns each task has; `tasks_named` whether examples come with the
    number of their task also when they are to be answered.
    """

    backbone: Backbone
    adapter: Adapter
    head: Head
    router: Router | None
    adapter_trainable: bool
    class_tasks: Tensor
    tasks_named: bool
    objective: "Objective"

    @property
    def per_example(self) -> bool:
        """Whether each example has one feature and one row of scores."""
        return Trait.EXAMPLE_ROWS in self.objective.traits

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything trained by gradient now, in name order."""
        named: dict[str, nn.Parameter] = {}
        if self.adapter_trainable:
            named |= {f"adapter.{name}": value for name, value in self.adapter.trained().items()}
        named |= {f"head.{name}": value for name, value in self.head.trained().items()}
        if self.router is not None:
            named |= {f"router.{name}": value for name, value in self.router.trained().items()}
        return dict(sorted(named.items()))

    def lowest_layer(self) -> int:
        """The first layer whose output training changes; 0 where states of a layer do not say all that comes after."""
        if not (self.adapter_trainable and self.adapter.trained()):
            return self.backbone.depth
        return self.adapter.lowest_layer(self.backbone) if self.backbone.resumable else 0

    def class_mask(self, tasks: Tensor) -> Tensor:
        """Which columns (B, seen) an example of each of these tasks may be scored on in the loss."""
        if self.head.loss_over == "own-task" or self.tasks_named:
            return self.class_tasks.to(tasks.device)[tasks]
        return torch.ones(len(tasks), self.class_tasks.shape[1], dtype=torch.bool, device=tasks.device)

    def feature_size(self) -> int:
        """Width of what a head answers from: the features of one module, or of all side by side."""
        width = self.adapter.feature_size(self.backbone)
        return width * self.modules.modules() if self.modules is not None and self.side_by_side else width

    @property
    def modules(self) -> Modules | None:
        """The adapter's modules, where it has several to answer with."""
        return find(self.adapter, Modules)

    def module_of(self, task: int) -> int:
        """The module that learns the rows of a task, where there are several."""
        return int(require(self.adapter, Modules).routes(torch.tensor([task]))[0])

    @property
    def side_by_side(self) -> bool:
        """Whether examples are answered by the features of all modules."""
        return self.modules is not None and self.router is None and not self.tasks_named

    def forward(self, batch: Batch) -> Outputs:
        """Features and training scores of a batch, with gradients where the caller has them on."""
        features, penalty = self.encode(batch)
        routes = batch.target_routes
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

    def write(self, values: Tensors) -> None:
        """Put these values into the trained tensors of the same names."""
        trained = self.trained()
        with torch.no_grad():
            for name, value in values.items():
                trained[name].copy_(value)

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
