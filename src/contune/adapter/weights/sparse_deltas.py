"""Each task fine-tunes the base model from its start; of what changed, a random few percent is kept and summed (SoTU)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.adapter.weights.subset import full
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.options import Layers, LrScale
from contune.contract.randomness import torch_generator
from contune.contract.state import State, on_device
from contune.errors import CombinationError, ConfigError


def bernoulli_mask(shape: torch.Size, keep: float, generator: torch.Generator) -> Tensor:
    """Which entries are kept, each with probability `keep` on its own.

    >>> bernoulli_mask(torch.Size([3]), 1.0, torch.Generator()).tolist()
    [True, True, True]
    """
    return torch.rand(shape, generator=generator) < keep


def merged_tensor(start: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """start + the sum of sparse deltas, each a mask and the values (k,) where it is true; summed in float64.

    >>> merged_tensor(torch.zeros(3), [(torch.tensor([True, False, True]), torch.tensor([1.0, 2.0]))]).tolist()
    [1.0, 0.0, 2.0]
    """
    total = start.double()
    for mask, values in parts:
        total[mask] += values.double()
    return total.to(start.dtype)


@final
class SparseDeltas(Around):
    """theta = theta_0 + sum over tasks of m_t * (theta_t - theta_0), where every task fine-tunes theta_0 anew to theta_t.

    m_t keeps each entry with probability `keep`; it is drawn again from the seed, never stored. Rescaling keeps a
    delta's size at the price of variance; without it merged deltas are small. The sum does not depend on the order of
    tasks. Between begin and end of a task the model is theta_t, afterwards the merged one.

    Memory: `keep` of the trained weights per task, and theta_0 once more while the learner lives.
    Compute: a full backward pass.
    """

    name: ClassVar[str] = "sparse-deltas"

    def __init__(
        self,
        *,
        keep: Annotated[float, "chance of a changed entry to be kept at a task's end, above 0 to 1"] = 0.1,
        rescale: Annotated[bool, "divide what is kept by keep: changes keep their size on average"] = False,
        layers: Layers = "all",
        lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
    ) -> None:
        if not 0 < keep <= 1:
            raise ConfigError(f"keep is {keep}; give a share above 0 and at most 1")
        super().__init__(full(layers=layers, lr_scale=lr_scale))
        self.keep, self.rescale = keep, rescale
        self.lifetime = Lifetime.RESTARTED
        self._start: dict[str, Tensor] = {}
        self._deltas: dict[int, dict[str, Tensor]] = {}
        self._seed = 0
        self._task: int | None = None

    def attach(self, backbone: Backbone, seed: int) -> None:
        self.inner.attach(backbone, seed)
        self._seed = seed
        self._start = {name: value.detach().clone() for name, value in self.inner.trained().items()}

    def begin_task(self, context: Context) -> None:
        if context.model.head.closed_form:
            raise CombinationError(
                f"head {context.model.head.name!r} learns features before adapter 'sparse-deltas' has merged its weights, "
                "and would answer from others; set head: merged"
            )
        if context.model.adapter_trainable:
            self._put(self._start)
            self._task = context.task.index

    def end_task(self, context: Context) -> None:
        del context
        if self._task is not None:
            self._deltas[self._task] = self._delta(self._task)
            self._task = None
            self._put(self._merged(self._deltas))

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The block sees the model as it will be once the task in progress is merged into it."""
        now = {name: value.detach().clone() for name, value in self.trained().items()}
        new = {} if self._task is None else {self._task: self._delta(self._task)}
        self._put(self._merged({**self._deltas, **new}))
        try:
            yield
        finally:
            self._put(now)

    def delta(self, task: int) -> dict[str, Tensor]:
        """What a finished task added to each tensor, zero where it was dropped."""
        zeros = {name: torch.zeros_like(value) for name, value in self._start.items()}
        values = self._deltas[task]
        return {name: merged_tensor(zero, [(self._mask(task, name), values[name])]) for name, zero in zeros.items()}

    def _mask(self, task: int, name: str) -> Tensor:
        generator = torch_generator(self._seed, "sparse deltas", task, name)
        return bernoulli_mask(self._start[name].shape, self.keep, generator).to(self._start[name].device)

    def _delta(self, task: int) -> dict[str, Tensor]:
        factor = 1 / self.keep if self.rescale else 1.0
        trained = self.trained()
        return {
            name: (trained[name].detach() - start)[self._mask(task, name)] * factor
            for name, start in self._start.items()
        }

    def _merged(self, deltas: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: merged_tensor(start, [(self._mask(task, name), deltas[task][name]) for task in sorted(deltas)])
            for name, start in self._start.items()
        }

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained().items():
            parameter.data.copy_(values[name])

    def merge(self) -> bool:
        return self._task is None and self.inner.merge()

    def state(self) -> State:
        tensors = {f"delta{task}/{n}": v for task, values in self._deltas.items() for n, v in values.items()}
        if self._task is not None:
            tensors |= {f"now/{name}": value.detach() for name, value in self.trained().items()}
        return State(tensors, {"tasks": sorted(self._deltas), "task": self._task})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        for task in state.values["tasks"]:
            kept = stored(state, f"delta{task}/")
            self._deltas[int(task)] = on_device(kept, device)
        self._task = state.values["task"]
        self._put(stored(state, "now/") if self._task is not None else self._merged(self._deltas))


def stored(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors of a state under a prefix."""
    return {name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)}
