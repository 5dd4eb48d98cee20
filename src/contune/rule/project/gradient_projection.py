"""Gradient projection: weights move only where the inputs of finished tasks do not reach (GPM, arXiv 2103.09762)."""

from typing import Annotated, ClassVar, final

from contune.backbone.linear import is_transposed
from contune.contract.capability import Lifetime, LinearWeights, Need
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.contract.passes import input_moments
from contune.contract.state import InputMemory, State
from contune.errors import ConfigError
from contune.numerics.subspaces import closing_threshold, project_out
from contune.rule.linear import linear_modules, require_watched, still


def check_shares(**shares: float) -> None:
    """Refuse a threshold or growth outside [0, 1)."""
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}; give at least 0 and less than 1")


@final
class GradientProjection(Rule):
    """Takes out of every step of a linear weight what lies in the input subspace of finished tasks (GPM, arXiv 2103.09762).

    W_new - W_old is orthogonal to the stored inputs, so old inputs are answered as before (section 5). What is
    projected is the move of the weight, not its gradient: Adam's scaling, momentum and weight decay would leave the
    subspace again. At the end of a task the subspace grows until it holds the share `threshold` of the task's input
    energy (equation 9). Tensors of the adapter that are no linear weights, such as norms, biases and embeddings, are
    trained in the first task only, as in the released code. The head is left alone: with a loss over the task's own
    classes and no weight decay its old rows rest.

    Memory: at most d_in^2 / 2 values per linear layer; layers that read one tensor share them.
    Compute: one more pass over each task, and two products with that basis per step.
    """

    name: ClassVar[str] = "gradient-projection"
    needs: ClassVar[tuple[Need, ...]] = (
        LinearWeights,
        Lifetime.LASTING,
    )

    def __init__(
        self,
        *,
        threshold: Annotated[float, "share of old inputs' energy that steps keep off", "paper, CIFAR-100"] = 0.97,
        growth: Annotated[float, "share of its way to 1 that each task raises the threshold, 0 to below 1"] = 0.1,
    ) -> None:
        check_shares(threshold=threshold, growth=growth)
        self.threshold, self.growth = threshold, growth
        self._memory = InputMemory()
        self._transposed: list[str] = []
        self._tasks = 0

    def begin_task(self, context: Context) -> None:
        require_watched(context, self.name)

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        if not self._tasks:
            return updates
        allowed = dict(still(updates, self._memory.leaders))
        for name in self._memory.leaders:
            space = self._memory.space(name)
            if name in allowed and space is not None:
                turned = name in self._transposed
                rows = project_out(allowed[name].T if turned else allowed[name], space)
                allowed[name] = rows.T if turned else rows
        return allowed

    def end_task(self, context: Context) -> None:
        modules = linear_modules(context)
        if modules:
            threshold = closing_threshold(self.threshold, self.growth, self._tasks)
            self._memory.grow(input_moments(context, modules), threshold)
            self._transposed = [name for name, module in modules.items() if is_transposed(module)]
            self._tasks += 1

    def state(self) -> State:
        own = State({}, {"transposed": list(self._transposed), "tasks": self._tasks})
        return State.nested({"memory": self._memory.state(), "own": own})

    def load_state(self, state: State, context: Context) -> None:
        self._memory.load(state.inner("memory"), context.model.backbone.device)
        own = state.inner("own").values
        self._transposed, self._tasks = list(own["transposed"]), int(own["tasks"])
