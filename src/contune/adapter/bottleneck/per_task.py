"""One set of bottlenecks per task, finished ones frozen and kept as modules of their own (EASE, arXiv 2403.12030)."""

from typing import Annotated, ClassVar, final

from torch import Tensor

from contune.adapter.bottleneck.single import SHARES, Bottleneck, Bottlenecks, Form, check_bottleneck
from contune.adapter.task_sets import TaskSets
from contune.backbone.backbone import Backbone
from contune.backbone.targets import resolve_layers
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State


@final
class BottleneckPerTask(Adapter):
    """Module t is the frozen model with the bottlenecks that task t trained from a fresh start (arXiv 2403.12030).

    Where the adapter learns in the first task only, later tasks add no set and go through the first.

    Memory: one set per task, 1.19 million weights for size 64 in ViT-B/16.
    Compute: a task trains through its own set alone; without a router an answer takes one forward pass per task.
    """

    name: ClassVar[str] = "bottleneck-per-task"
    expands = True
    lifetime = Lifetime.PER_MODULE

    def __init__(
        self,
        *,
        size: Annotated[int, Bottleneck] = 64,
        form: Annotated[Form, Bottleneck] = "parallel",
        scale: Annotated[float | None, Bottleneck] = None,
        dropout: Annotated[float, Bottleneck] = 0.0,
        layers: Layers = "all",
    ) -> None:
        check_bottleneck(size, dropout)
        self.size, self.form, self.layers, self.dropout = size, form, layers, dropout
        self.scale = SHARES[form] if scale is None else scale
        self._training = False
        self._seed = 0
        self._places: Bottlenecks | None = None
        self._sets = TaskSets()

    @property
    def places(self) -> Bottlenecks:
        """Where the bottlenecks sit, from `attach` on."""
        assert self._places is not None
        return self._places

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        self._places = Bottlenecks(backbone, self.form, self.layers)

    def begin_task(self, context: Context) -> None:
        task = len(self._sets)
        if task and not context.model.adapter_trainable:
            return
        start = self.places.fresh(self.size, self._seed, task)
        self._sets.append(start, context.model.backbone.device, context.task.index)

    def end_task(self, context: Context) -> None:
        del context
        self._sets.finish()

    def trained(self) -> Parameters:
        return self._sets.trained()

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self._training else 0.0
        with self.places.active(self._sets[batch.route], self.scale, dropout):
            return backbone.features(batch.inputs, resume=batch.resume), None

    def modules(self) -> int:
        return len(self._sets)

    def routes(self, tasks: Tensor) -> Tensor:
        return self._sets.routes(tasks)

    def module_state(self, module: int) -> State | None:
        return self._sets.done(module)

    def train_mode(self, training: bool) -> None:
        self._training = training

    def state(self) -> State:
        return self._sets.state()

    def load_state(self, state: State, context: Context) -> None:
        self._sets.load_state(state, context.model.backbone.device)
