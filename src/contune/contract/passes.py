"""Passes over data, as parts ask for them; what of a pass is kept, and where, is the engine's own affair."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from contune.backbone.reader.inputs import ModelInputs
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.processes import Processes
from contune.metric.ledger import Ledger
from contune.numerics.subspaces import Moments, token_rows

if TYPE_CHECKING:
    from contune.contract.context import Context
    from contune.contract.parts import Rule

BLOCK_ROWS = 2048  # rows that a head looks at together: at 10,000 random features in float64 they take 164 MB


class Passes(ABC):
    """Batches, features and scores of data sets through the model as it stands.

    Whatever is asked of a whole data set must be asked on every process, since all of them share the work. `inference`
    is true at prediction, when nobody says which task an example belongs to.
    """

    inference: bool
    base_fingerprint: str
    processes: Processes
    ledger: Ledger
    batch_size: int

    @abstractmethod
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

    @abstractmethod
    def encoding_batch(self, dataset: Dataset, rows: Rows, routes: Tensor | None, *, max_new_tokens: int = 0) -> Batch:
        """These rows as one batch for features; with `max_new_tokens`, to be answered in writing.

        `routes` (n,) are those of all rows of the data set.
        """

    @abstractmethod
    def prepare(self, datasets: Sequence[Dataset], view: int | None) -> None:
        """Have at hand what is kept of these data sets; every process that shares the work must call this."""

    @abstractmethod
    def batches(self, dataset: Dataset, size: int | None = None) -> Iterator[Batch]:
        """The whole data set once in a fixed order, in the model's deterministic view."""

    @abstractmethod
    def base_features(self, dataset: Dataset) -> Tensor:
        """Features (n, d) of the untouched frozen model: what prompt methods call queries."""

    @abstractmethod
    def features(self, dataset: Dataset) -> Tensor:
        """Features (n, d) a head answers from: through the module of each example's route, or of all side by side."""

    @abstractmethod
    def feature_blocks(self, dataset: Dataset, count: int = BLOCK_ROWS) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of `features`, to the bit, in blocks of about `count`, each with their places in ascending order.

        What is not kept is computed block by block. Of modules side by side, those that still change are held whole where
        others do not change any more, because the two are computed in other batches.
        """

    @abstractmethod
    def module_features(self, dataset: Dataset, module: int) -> Tensor:
        """Features (n, d) through one module of a modular adapter; kept where that module will not change any more."""

    @abstractmethod
    def module_blocks(self, dataset: Dataset, module: int, count: int = BLOCK_ROWS) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of `module_features` in blocks, as `feature_blocks` gives them."""

    @abstractmethod
    def kept(self, dataset: Dataset, name: str, width: int, compute: Callable[[Rows], Tensor]) -> Tensor:
        """What `compute` gives (rows, width) for all rows, kept under `name`, which says all that it depends on."""

    @abstractmethod
    def routes(self, dataset: Dataset) -> Tensor:
        """The module (n,) for every example: the router's choice where nobody knows the task, else its task's own."""

    @abstractmethod
    def routed_batches(self, dataset: Dataset) -> list[tuple[Rows, Tensor | None]]:
        """Rows of like length together, with the routes of all rows; of several modules, a batch goes through one."""

    @abstractmethod
    def logits(self, dataset: Dataset) -> Tensor:
        """Prediction scores (n, seen) of the whole data set, as the model stands."""

    @abstractmethod
    def logit_blocks(self, dataset: Dataset) -> Iterator[tuple[Rows, Tensor]]:
        """Prediction scores in blocks, each with the places of its rows."""

    @abstractmethod
    def extra_steps(self, context: "Context", rules: "Sequence[Rule]") -> None:
        """Take all gradient steps of the context's task with these rules alone, beside the run's own.

        What a rule learns by it is lost unless the rule keeps it; the steps are neither shown nor saved.
        """

    @abstractmethod
    def of(self, context: "Context") -> "Passes":
        """The same passes for another task or model, which `context` has."""


@final
class _Tally:
    """Sums of x x^T while batches pass by."""

    def __init__(self) -> None:
        self.inputs = ModelInputs(0)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.leaders: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None

    def note(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """One call of a module. Modules fed by one tensor are called one after the other."""
        del module
        given = args[0]
        if self._last is not None and self._last[1] is given:
            self.leaders[name] = self._last[0]
            return
        self._last = (name, given)
        self.leaders[name] = name
        rows = token_rows(given.detach(), self.inputs.tokens(given)).float()
        with torch.autocast(rows.device.type, enabled=False):  # a product in bf16 may not be positive semi-definite
            product = (rows.T @ rows).double()
        self.sums[name] = self.sums[name] + product if name in self.sums else product
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def forget_last(self) -> None:
        """Let go of the tensor that the last module read."""
        self._last = None


def input_moments(context: "Context", modules: Mapping[str, nn.Module]) -> Moments:
    """The second moments of what these modules read in one pass over `context.task.data`, over all tokens.

    In the deterministic view and with the adapter as it is. Products of a batch are in float32, their sum is in
    float64. Modules that no batch reached are left out. Memory: d^2 values in float64 per module.
    """
    tally = _Tally()
    with torch.no_grad(), ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(partial(tally.note, name))
            stack.callback(handle.remove)
        for batch in context.passes.batches(context.task.data):
            tally.inputs = batch.inputs
            context.model.encode(batch)
            tally.forget_last()
    return Moments({name: total / max(tally.counts[name], 1) for name, total in tally.sums.items()}, tally.leaders)
