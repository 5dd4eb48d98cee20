"""Only output units that a task lights up may move (MIGU, arXiv 2406.17245)."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from contune.backbone.linear import is_transposed
from contune.backbone.reader.inputs import ModelInputs
from contune.contract.capability import LinearWeights, Need
from contune.contract.context import Context
from contune.contract.data import Batch, Outputs, Selection
from contune.contract.parts import Phase, Rule, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State, on_device
from contune.numerics.masks import held_updates, masked_gradients, most_active, require_share, rows_of, sampled
from contune.numerics.subspaces import token_rows
from contune.rule.linear import linear_modules, require_watched


@final
class ActivationMask(Rule):
    """In every task after the first, only those rows of a linear weight move whose output is among the largest (MIGU).

    arXiv 2406.17245. The magnitude of a unit is the sum over tokens of |h_j|, h = W x; padding does not count. Rows
    whose magnitude reaches the `masked` quantile of their layer move. A LoRA is two linear layers, A with rank rows and
    B with d_out: of 8 rows of A 3 move at the default. The normalisation of the paper does not change who is largest,
    and is left out. Magnitudes of the whole task so far make a mask that settles; those of the step's own rows are what
    the paper writes.

    Units in a tie at the quantile all move: so does all of B while it is zero. Biases, norms and embeddings that the
    adapter trains, and the head, are not masked, as in the released code. Replayed rows count like the task's own;
    what other rules pass through the model in their losses is not counted.

    Memory: one number per output unit.
    Compute: a sum over each layer's output.
    Differs:
    - Gradients of masked rows are zero, and so are their moves: the released code masks gradients alone, and Adam's
      momentum and weight decay move its masked rows.
    """

    name: ClassVar[str] = "activation-mask"
    phase: ClassVar[Phase] = Phase.WATCHES
    needs: ClassVar[tuple[Need, ...]] = (LinearWeights,)

    def __init__(
        self,
        *,
        masked: Annotated[float, "share of each layer's outputs that stay, 0 to 1", "released scripts"] = 0.7,
        window: Annotated[Literal["task", "batch"], "where outputs are measured", "released code"] = "task",
        choice: Annotated[Literal["activation", "random"], "which outputs move; random is a control"] = "activation",
    ) -> None:
        require_share("masked", masked)
        self.masked, self.window, self.choice = masked, window, choice
        self._sums: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._masks: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._step = 0

    def begin_task(self, context: Context) -> None:
        require_watched(context, self.name)
        self._sums, self._masks = {}, {}

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._step = step
        return {}

    def before_step(self, context: Context, batch: Batch | None) -> None:
        self._unhook()
        if not self.masked or context.task.index == 0:
            return
        modules = linear_modules(context)
        self._seen = {
            name: torch.zeros(outputs_of(module), dtype=torch.float64, device=context.model.backbone.device)
            for name, module in modules.items()
        }
        if batch is not None and self.choice == "activation":
            note = partial(self._note, batch.inputs)
            self._hooks = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]

    def _note(self, inputs: ModelInputs, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        del module, args
        self._seen[name] += token_rows(output.detach(), inputs.tokens(output)).float().abs().sum(dim=0)

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        self._unhook()  # the step's forward pass is over; other rules may begin theirs
        return None

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        self._unhook()
        if not self._seen:
            return gradients
        context.passes.processes.sum_(list(self._seen.values()))
        earlier = self._sums if self.window == "task" else {}
        self._sums = {name: seen + earlier.get(name, 0.0) for name, seen in self._seen.items()}
        turned = {name: is_transposed(module) for name, module in linear_modules(context).items()}
        self._masks = {name: rows_of(self._rows(context, name), transposed=turned[name]) for name in self._sums}
        self._seen = {}
        return masked_gradients(gradients, self._masks)

    def _rows(self, context: Context, name: str) -> Tensor:
        sums = self._sums[name]
        if self.choice == "activation":
            return most_active(sums, self.masked)
        count = int(most_active(torch.arange(len(sums)), self.masked).sum())
        generator = torch_generator(context.task.settings.seed, "activation mask", context.task.index, self._step, name)
        return sampled(len(sums), count, generator).to(sums.device)

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        return held_updates(updates, self._masks)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def end_task(self, context: Context) -> None:
        self._unhook()
        self._sums, self._masks = {}, {}

    def state(self) -> State:
        return State(dict(self._sums))

    def load_state(self, state: State, context: Context) -> None:
        self._sums = on_device(state.tensors, context.model.backbone.device)


def outputs_of(module: nn.Module) -> int:
    """How many output units a linear layer has."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if is_transposed(module) else 0]
