"""One set of bottlenecks per task, finished ones frozen and kept as modules of their own (EASE, arXiv 2403.12030)."""

from typing import ClassVar, Literal, final

from torch import Tensor, nn

from contune.adapter.bottleneck import SHARES, Bottlenecks, check_bottleneck
from contune.adapter.layers import resolve_layers
from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State


@final
class BottleneckPerTask(Adapter):
    """Module t is the frozen model with the bottlenecks that task t trained; each task starts a fresh set.

    Options as of `bottleneck`. Memory: one set per task, 1.19 million weights for size 64 in ViT-B/16. Compute: a task
    trains through its own set alone; without a router an answer takes one forward pass per task. Where the adapter
    learns in the first task only, later tasks add no set and go through the first.
    """

    name: ClassVar[str] = "bottleneck-per-task"
    modular: ClassVar[bool] = True

    def __init__(
        self,
        *,
        size: int = 64,
        form: Literal["parallel", "houlsby", "pfeiffer"] = "parallel",
        scale: float | None = None,
        dropout: float = 0.0,
        layers: str | list[int] = "all",
    ) -> None:
        check_bottleneck(size, dropout)
        self.size, self.form, self.layers, self.dropout = size, form, layers, dropout
        self.scale = SHARES[form] if scale is None else scale
        self._training = False
        self._seed = 0
        self._finished = 0
        self._places: Bottlenecks | None = None
        self._sets: list[dict[str, nn.Parameter]] = []

    @property
    def places(self) -> Bottlenecks:
        """Where the bottlenecks sit, from `attach` on."""
        assert self._places is not None
        return self._places

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        self._places = Bottlenecks(backbone, self.form, self.layers)

    def begin_task(self, context: Context) -> None:
        if self._sets and not context.adapting:
            return
        start = self.places.fresh(self.size, self._seed, len(self._sets))
        self._append(start, context.backbone)

    def _append(self, weights: dict[str, Tensor], backbone: Backbone) -> None:
        """Freeze the sets so far and add one that trains."""
        for finished in self._sets[-1:]:
            for parameter in finished.values():
                parameter.requires_grad_(False)
        self._sets.append({name: nn.Parameter(value.clone().to(backbone.device)) for name, value in weights.items()})

    def end_task(self, context: Context) -> None:
        del context
        self._finished = len(self._sets)

    def trained(self) -> Parameters:
        last = len(self._sets) - 1
        return {f"task{last}.{name}": value for name, value in self._sets[last].items()} if self._sets else {}

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self._training else 0.0
        with self.places.active(self._sets[batch.route], self.scale, dropout):
            return backbone.features(batch.inputs, resume=batch.resume), None

    def modules(self) -> int:
        return len(self._sets)

    def routes(self, tasks: Tensor) -> Tensor:
        return tasks.clamp(max=len(self._sets) - 1)

    def module_state(self, module: int) -> State | None:
        if module >= self._finished:
            return None
        return State({name: value.detach() for name, value in self._sets[module].items()})

    def train_mode(self, training: bool) -> None:
        self._training = training

    def state(self) -> State:
        tensors = {
            f"task{task}/{name}": value.detach()
            for task, weights in enumerate(self._sets)
            for name, value in weights.items()
        }
        return State(tensors, {"tasks": len(self._sets), "finished": self._finished})

    def load_state(self, state: State, context: Context) -> None:
        self._sets = []
        for task in range(int(state.values["tasks"])):
            self._append(dict(state.inner(f"task{task}").tensors), context.backbone)
        self._finished = int(state.values["finished"])
