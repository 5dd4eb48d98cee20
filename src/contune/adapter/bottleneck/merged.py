"""Bottlenecks per task that go on from the last task's and are drawn to the mean of all earlier (MOS, arXiv 2412.09441)."""

from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from contune.adapter.bottleneck.per_task import BottleneckPerTask
from contune.adapter.bottleneck.single import Bottleneck
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers
from contune.contract.parts import Tensors
from contune.contract.state import State
from contune.errors import ConfigError
from contune.numerics.averages import class_sums

TEMPERATURE = 0.8  # of the spread, as in the released code


def merged(current: Tensors, earlier: Tensors, share: float) -> dict[str, Tensor]:
    """(1 - share) * current + share * earlier, by the names of `current`.

    >>> merged({"a": torch.tensor([1.0])}, {"a": torch.tensor([5.0])}, 0.25)["a"].item()
    2.0
    """
    return {name: (1 - share) * value.detach() + share * earlier[name] for name, value in current.items()}


def share_of(share: float, merges: int) -> float:
    """The share of what earlier sets have after so many merges in a row.

    >>> round(share_of(0.1, 1), 6), round(share_of(0.1, 13), 6)
    (0.1, 0.745813)
    """
    return 1 - (1 - share) ** merges


def mean_set(sets: list[Tensors]) -> dict[str, Tensor]:
    """The mean of several sets of the same tensors.

    >>> mean_set([{"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}])["a"].item()
    1.5
    """
    return {name: torch.stack([each[name] for each in sets]).mean(dim=0) for name in sets[0]}


def spread(features: Tensor, means: Tensor) -> Tensor:
    """How little features (B, d) and class means (m, d) lie apart: each is to be most alike to itself.

    Mean over all m + B of -log softmax(M M^T / 0.8) on the diagonal, M both below one another and not normalised.

    >>> round(spread(torch.zeros(2, 1), torch.zeros(1, 1)).item(), 4)
    1.0986
    """
    every = torch.cat([means, features])
    return functional.cross_entropy(every @ every.T / TEMPERATURE, torch.arange(len(every), device=every.device))


@final
class BottleneckMerged(Around):
    """Module t has the bottlenecks of task t, which start as those of task t - 1 ended, in the frozen model (2412.09441).

    After every step they become, `merges` times in a row, (1 - `share`) times themselves plus `share` times the mean of
    all earlier sets, so that modules stay near one another: the paper writes one merge, the released code does one before
    each layer of a forward pass and one after the step, 13 in ViT-B/16, which leave a quarter of what a step has learned
    where one leaves nine tenths. The first task is not merged. As in the released code, a term of weight `spread` holds the
    features of a batch and the means of old classes apart.

    Memory: one set per task, 0.31 million weights for size 16 in ViT-B/16, one more while it trains, and a mean per
    class.
    Compute: as `bottleneck-per-task`, and one more pass over each task for the means.
    Differs:
    - All merges of a step come after it, where in the released code the layers of a forward pass go through weights that
      were merged once, twice and so on.
    - The released code merges in answering too, where it changes finished adapters; here what is finished stays.
    - A class that comes back has the mean of its last task.
    - With several processes each holds its own rows apart.
    """

    name: ClassVar[str] = "bottleneck-merged"

    def __init__(
        self,
        *,
        size: Annotated[int, Bottleneck, "released code, CIFAR-100"] = 16,
        share: Annotated[
            float, "how far a merge draws it to the mean of earlier tasks', 0 to 1", "released code"
        ] = 0.1,
        merges: Annotated[
            int | None,
            "merges of a step; 1 as the paper writes; null: one for each layer and one more",
            "released code",
        ] = None,
        spread: Annotated[float, "weight of the term that keeps classes apart, from 0", "released code"] = 0.1,
        scale: Annotated[float | None, Bottleneck] = None,
        dropout: Annotated[float, Bottleneck, "released code"] = 0.1,
        layers: Layers = "all",
    ) -> None:
        if not 0 <= share <= 1 or spread < 0:
            raise ConfigError(f"share is {share} and spread {spread}; give a share from 0 to 1 and at least 0")
        if merges is not None and merges < 0:
            raise ConfigError(
                f"merges is {merges}; give how often a step is drawn to earlier tasks' sets, from 0, or null"
            )
        self._sets = BottleneckPerTask(size=size, scale=scale, dropout=dropout, layers=layers)
        super().__init__(self._sets)
        self.share, self.merges, self.spread = share, merges, spread
        self._training = False
        self._means: dict[int, Tensor] = {}
        self._earlier: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        before = self._sets.modules()
        self.inner.begin_task(context)
        self._earlier = {}
        if 0 < before < self._sets.modules():
            last = self._finished(before - 1)
            with torch.no_grad():
                for name, parameter in self.trained().items():
                    parameter.copy_(last[own_name(name)])

    def _finished(self, module: int) -> Tensors:
        """The set of a finished task."""
        state = self._sets.module_state(module)
        assert state is not None
        return state.tensors

    def after_step(self, context: Context) -> None:
        module = self._sets.modules() - 1
        if not (context.model.adapter_trainable and self.share and module > 0):
            return
        if not self._earlier:
            self._earlier = mean_set([self._finished(task) for task in range(module)])
        trained = self.trained()
        current = {own_name(name): value for name, value in trained.items()}
        merges = context.model.backbone.depth + 1 if self.merges is None else self.merges
        values = merged(current, self._earlier, share_of(self.share, merges))
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(values[own_name(name)])

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)
        self._earlier = {}
        if context.model.adapter_trainable and self.spread:
            labels = torch.from_numpy(context.task.data.labels)
            features = context.passes.module_features(context.task.data, self._sets.modules() - 1)
            sums, counts = class_sums(features, labels, context.task.seen)
            for column in counts.nonzero()[:, 0].tolist():
                self._means[column] = (sums[column] / counts[column]).float()

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        features, penalty = self.inner.encode(backbone, batch)
        if not (self._training and self.spread):
            return features, penalty
        means = [self._means[column].to(features) for column in sorted(self._means)]
        old = torch.stack(means) if means else features.new_zeros(0, features.shape[1])
        rows = len(features) / max(sum(batch.counts.values()), 1)
        return features, self.spread * rows * spread(features, old)

    def train_mode(self, training: bool) -> None:
        self._training = training
        self.inner.train_mode(training)

    def state(self) -> State:
        means = State({str(column): mean for column, mean in self._means.items()})
        return State.nested({"inner": self.inner.state(), "means": means})

    def load_state(self, state: State, context: Context) -> None:
        self.inner.load_state(state.inner("inner"), context)
        self._means = {int(column): mean for column, mean in state.inner("means").tensors.items()}
        self._earlier = {}


def own_name(name: str) -> str:
    """A trained tensor's name within its set.

    >>> own_name("task3.0.mlp.down")
    '0.mlp.down'
    """
    return name.split(".", 1)[1]
