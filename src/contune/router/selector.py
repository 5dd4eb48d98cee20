"""A trained classifier over modules with an adapter of its own: it says which module answers (ConPET, arXiv 2309.14763)."""

import hashlib
from typing import Annotated, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.contract.capability import Modules, require
from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.contract.parts import Parameters, Router
from contune.contract.state import State
from contune.errors import ConfigError
from contune.router.keys import own_module
from contune.router.side_lora import SideLora, base_matrices


def with_new_row(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (k, d) and biases (k,) of a linear head with one more of each, at zero.

    >>> with_new_row(torch.ones(1, 2), torch.ones(1))
    (tensor([[1., 1.],
            [0., 0.]]), tensor([1., 0.]))
    """
    return torch.cat([weight, torch.zeros_like(weight[:1])]), torch.cat([bias, torch.zeros_like(bias[:1])])


@final
class Selector(Router):
    """One low-rank adapter of the frozen model and a linear head with a row for each module; the largest score answers.

    It goes on learning through all tasks: cross-entropy between its scores and the module of each row, a mean over all
    rows of the step, the task's own and what rules add; take rule `task-replay` with it, or old modules are forgotten. In
    language an example counts as often as its answer has tokens. Old rows of the head are kept and the row of a new module
    starts at zero, where the released code draws it. While there is one module there is nothing to learn. The modules'
    own adapter is absent where the selector looks, and no gradient goes from one to the other, so that learning both in one
    step is learning one after the other, but for a gradient norm that is clipped together.

    Memory: rank (d_in + d_out) per chosen matrix, once, and d + 1 per module. Compute: a forward and backward pass over
    all rows of every step from the second module on, and a pass of its own to answer.
    """

    name: ClassVar[str] = "selector"

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "paper"] = 4,
        alpha: Alpha = 8.0,
        targets: Targets = "query-value",
        layers: Layers = "all",
        lr_scale: Annotated[float, "learning rate of the selector, as a multiple of train.lr"] = 1.0,
    ) -> None:
        if rank < 1:
            raise ConfigError(f"rank is {rank}; give at least 1")
        self.rank, self.alpha, self.targets, self.layers, self.lr_scale = rank, alpha, targets, layers, lr_scale
        self._lora: SideLora | None = None
        self._modules: list[int] = []
        self._weight = nn.Parameter(torch.zeros(0, 0))
        self._bias = nn.Parameter(torch.zeros(0))

    @property
    def lora(self) -> SideLora:
        """The adapter that the selector looks through, from the first task on."""
        assert self._lora is not None
        return self._lora

    def begin_task(self, context: Context) -> None:
        if self._lora is None:
            self._lora = self._new_lora(context)
        module = own_module(context)
        if not self._modules:
            self._set(torch.zeros(1, context.model.backbone.feature_size), torch.zeros(1), context)
        elif module not in self._modules:
            self._set(*with_new_row(self._weight.detach(), self._bias.detach()), context)
        if module not in self._modules:
            self._modules.append(module)

    def _new_lora(self, context: Context) -> SideLora:
        places = base_matrices(context.model.backbone, self.targets, self.layers)
        return SideLora(places, self.rank, self.alpha, context.task.settings.seed, context.model.backbone.device)

    def _set(self, weight: Tensor, bias: Tensor, context: Context) -> None:
        device = context.model.backbone.device
        self._weight, self._bias = nn.Parameter(weight.clone().to(device)), nn.Parameter(bias.clone().to(device))

    def trained(self) -> Parameters:
        if len(self._modules) < 2:
            return {}
        lora = {f"lora.{name}": value for name, value in self.lora.parameters().items()}
        return {**lora, "weight": self._weight, "bias": self._bias}

    def scores(self, context: Context, batch: Batch) -> Tensor:
        """Scores (B, k) of the rows of a batch, of its augmented images where it has them."""
        inputs = batch.inputs
        if inputs.pixels is None:  # a text, or an image whose lower states were kept
            inputs = context.model.backbone.prompts_only([(dataset.prepared, rows) for dataset, rows in batch.parts])
        with context.model.adapter.disabled(), self.lora.active():
            return functional.linear(context.model.backbone.features(inputs), self._weight, self._bias)

    def targets_of(self, context: Context, tasks: Tensor) -> Tensor:
        """The place among the head's rows of the module of each of these tasks."""
        learned = require(context.model.adapter, Modules).routes(tasks.cpu())
        return (learned[:, None] == torch.tensor(self._modules)).to(torch.int64).argmax(dim=1)

    def loss(self, context: Context, batch: Batch) -> Tensor | None:
        if len(self._modules) < 2:
            return None
        tasks = torch.from_numpy(np.concatenate([dataset.tasks[rows] for dataset, rows in batch.parts]))
        scores = self.scores(context, batch)
        rows = functional.cross_entropy(scores, self.targets_of(context, tasks).to(scores.device), reduction="none")
        return rows[batch.inputs.target_rows().to(rows.device)].sum() / sum(batch.counts.values())

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        modules = torch.tensor(self._modules)
        if len(modules) == 1:
            return modules.expand(len(dataset))

        def compute(rows: Rows) -> Tensor:
            inputs = context.model.backbone.prompts_only([(dataset.prepared, rows)])
            with context.model.adapter.disabled(), self.lora.active():
                return functional.linear(context.model.backbone.features(inputs), self._weight, self._bias)

        name = f"selector-{context.passes.base_fingerprint}-{self._key()}"
        return modules[context.passes.kept(dataset, name, len(modules), compute).argmax(dim=1)]

    def _key(self) -> str:
        """Names what the scores depend on, beside the frozen model and the example."""
        digest = hashlib.sha256(repr([self.rank, self.alpha]).encode())
        for name, value in sorted(self.state().tensors.items()):
            digest.update(name.encode())
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def state(self) -> State:
        lora = {} if self._lora is None else self._lora.parameters()
        tensors = {f"lora.{name}": value.detach() for name, value in lora.items()}
        tensors |= {"weight": self._weight.detach(), "bias": self._bias.detach()}
        return State(tensors, {"modules": list(self._modules)})

    def load_state(self, state: State, context: Context) -> None:
        self._modules = [int(module) for module in state.values["modules"]]
        self._set(state.tensors["weight"], state.tensors["bias"], context)
        if self._modules:
            self._lora = self._new_lora(context)
            kept = state.tensors.items()
            self._lora.load({name.removeprefix("lora."): value for name, value in kept if name.startswith("lora.")})
