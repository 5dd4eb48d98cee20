"""One trained key per task: the module whose key is nearest to the frozen feature answers (DualPrompt, 2204.04799)."""

from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Dataset
from contune.contract.parts import Parameters, Router
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.numerics.keys import nearest_keys

REACH = 0.01  # keys start uniform in [0, 0.01), as in the official JAX code


def own_module(context: Context) -> int:
    """The module that learns the rows of the task at hand."""
    return context.model.module_of(context.task.index)


def frozen_queries(batch: Batch) -> Tensor:
    """Features of the frozen model on the very views of the batch, one row (d) for each of its answers.

    A batch whose own features are at hand has those of the deterministic view. In language the feature of a text stands
    for every token of its answer.
    """
    assert batch.queries is not None, "keys in training are handed queries"
    return batch.queries[batch.inputs.target_rows()]


@final
class Keys(Router):
    """Draws each task's key to the frozen features of its examples by cosine; the nearest key's module answers.

    Loss: -`pull` x mean over the task's own rows of cos(q(x), k_t) (DualPrompt, section 4). A finished key is frozen to
    the bit, and only keys of tasks that were met compete, so none that was never trained can win. Each row chooses for
    itself, where the official code lets a batch vote for CIFAR-100. Keys start uniform in [0, 0.01) and are not copied
    from task to task.

    Memory: d per task.
    Compute: one pass of the frozen model over every example, kept; with augmented images one more for every step.
    """

    name: ClassVar[str] = "keys"
    needs_queries: ClassVar[bool] = True

    def __init__(
        self,
        *,
        pull: Annotated[float, "weight of drawing a task's key to its features, from 0", "official code"] = 1.0,
        lr_scale: Annotated[float, "learning rate of the keys, as a multiple of train.lr"] = 1.0,
    ) -> None:
        self.pull, self.lr_scale = pull, lr_scale
        self._keys: dict[int, nn.Parameter] = {}
        self._current: int | None = None

    def begin_task(self, context: Context) -> None:
        module = own_module(context)
        self._freeze()
        self._current = None
        if module not in self._keys:
            generator = torch_generator(context.task.settings.seed, "router key", module)
            start = REACH * torch.rand(context.model.backbone.feature_size, generator=generator)
            self._keys[module] = nn.Parameter(start.to(context.model.backbone.device))
            self._current = module

    def _freeze(self) -> None:
        for key in self._keys.values():
            key.requires_grad_(False)

    def trained(self) -> Parameters:
        return {} if self._current is None else {f"key{self._current}": self._keys[self._current]}

    def loss(self, context: Context, batch: Batch) -> Tensor | None:
        place = batch.segments[TASK]
        if not self.pull or self._current is None or place.start == place.stop:
            return None
        queries = frozen_queries(batch)[place]
        cosines = functional.cosine_similarity(queries, self._keys[self._current].unsqueeze(0), dim=1)
        return -self.pull * batch.mean(cosines)

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        modules = sorted(self._keys)
        keys = torch.stack([self._keys[module].detach().cpu() for module in modules])
        # float64: in float32 the last bits depend on what else is in the data set, and may decide between close keys
        nearest, _ = nearest_keys(context.passes.base_features(dataset).double(), keys.double(), 1)
        return torch.tensor(modules)[nearest[:, 0]]

    def state(self) -> State:
        tensors = {f"key{module}": key.detach() for module, key in self._keys.items()}
        return State(tensors, {"modules": sorted(self._keys), "current": self._current})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        modules = [int(module) for module in state.values["modules"]]
        self._keys = {module: nn.Parameter(state.tensors[f"key{module}"].clone().to(device)) for module in modules}
        self._freeze()
        self._current = state.values["current"]
        if self._current is not None:
            self._keys[self._current].requires_grad_(True)
