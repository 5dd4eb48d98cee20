"""What parts can do, as other parts ask for it: abilities in place of names and classes.

An ability is a runtime-checkable protocol, and its first sentence says in plain words what a part that has it does; refusals
are made of these words. A part has an ability because it has its members, whoever wrote it. `find` asks for one.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from enum import Flag, auto
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.linear import Matrix
from contune.backbone.reader.inputs import ModelInputs
from contune.contract.state import State


class Lifetime(Flag):
    """How long the tensors live that an adapter trains; an adapter with several kinds of tensors has several of these.

    `RESTARTED`: the same tensors start anew in every task, and something of each task is kept. `REDRAWN`: every task trains
    another part of the tensors. `PER_TASK`: every task trains tensors of its own beside the old ones, so that old examples
    are answered through both. `PER_MODULE`: every task trains a module of its own, through which no old example goes;
    `BY_KIND`: so does each kind of task, and tasks of one kind share a module.
    """

    NOTHING = auto()
    LASTING = auto()
    RESTARTED = auto()
    REDRAWN = auto()
    PER_TASK = auto()
    PER_MODULE = auto()
    BY_KIND = auto()


ANY_TRAINED = ~Lifetime.NOTHING
THROUGH_TASKS = Lifetime.NOTHING | Lifetime.LASTING | Lifetime.RESTARTED | Lifetime.REDRAWN


@runtime_checkable
class Modules(Protocol):
    """Has several modules to answer with.

    One for each task, or several views of the model; `encode` goes through the one that `batch.route` names. With a router
    each example is answered through the module chosen for it; without, by the features of all modules side by side.
    """

    def modules(self) -> int:
        """How many modules there are to answer with."""

    def routes(self, tasks: Tensor) -> Tensor:
        """The module (B,) that learns rows of these tasks (B,)."""

    def module_state(self, module: int) -> State | None:
        """What a module that will not change any more depends on, beside the base; None where it may still change."""


@runtime_checkable
class TaskModules(Modules, Protocol):
    """Adds modules for tasks and leaves those of other tasks as they are.

    `expands`: tasks add modules, which is so wherever this is declared.
    """

    expands: bool


@runtime_checkable
class LinearWeights(Protocol):
    """Trains weights of linear layers that run inside the model."""

    def linear(self) -> Mapping[str, nn.Module]:
        """The linear layers whose weights are trained now, by the trained names of these weights."""


@runtime_checkable
class BaseMatrices(Protocol):
    """Trains matrices of the model itself.

    `matrices_only`: it trains these weights and nothing else.
    """

    matrices_only: bool

    def matrices(self) -> Mapping[str, Matrix]:
        """The model's matrices that are trained now, those of experts among them, by the trained names of their weights."""


@runtime_checkable
class TaskFactors(Protocol):
    """Trains the second factor at least of a low-rank update of its own for every task and keeps those of earlier tasks."""

    scale: float

    def factors(self, *, finished: bool = False) -> Mapping[str, tuple[Tensor, Tensor]]:
        """A (rank, d_in) and B (d_out, rank) of the task by wrapped layer; the task adds `scale` B A to its weight.

        `finished`: those of all finished tasks, A below one another and B side by side, in the order of tasks.
        """


@runtime_checkable
class InputFactors(Protocol):
    """Trains the first factor of a low-rank update of its own for every task and keeps those of earlier tasks."""

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """For every wrapped layer: all finished A (rank x tasks, d_in), frozen, and the trained A (rank, d_in)."""


@runtime_checkable
class Freezable(Protocol):
    """Trains the model's own weights and lets whole tensors of them rest when asked to."""

    @property
    def frozen(self) -> list[str]:
        """Names of the tensors that rest."""

    def whole(self) -> Mapping[str, nn.Parameter]:
        """What may be trained, whether it rests or not."""

    def freeze(self, names: Collection[str]) -> None:
        """From now on let these tensors rest, and no others."""


@runtime_checkable
class AttentionMixing(Protocol):
    """Mixes the blocks of all tasks by attention to the input."""

    @property
    def blocks(self) -> int:
        """How many blocks there are, the one in training among them."""

    def summary(self, backbone: Backbone, inputs: ModelInputs) -> Tensor:
        """What the attention reads (B, d) of inputs; nothing of it is ever trained."""

    def weights(self, summary: Tensor) -> Tensor:
        """Weights (B, n) of all blocks for inputs with these summaries (B, d)."""


@runtime_checkable
class MergedLater(Protocol):
    """Merges what a task trained into the model once the task has ended."""

    def merged(self) -> AbstractContextManager[None]:
        """The block sees the model as it will be once the task in progress is merged into it."""


@runtime_checkable
class ReservedRows(Protocol):
    """Has rows ahead for classes to come."""

    reserved_rows: int

    def reserved_logits(self, features: Tensor) -> Tensor:
        """Scores (B, spare) of the rows that stand for no class yet."""


Need = type | Lifetime
"""What a part asks of an adapter or a head: an ability, or that tensors of one of these lifetimes are trained."""

Ability = TypeVar("Ability", covariant=True)


class Offering(Protocol):
    """A part, as `find` asks it."""

    def offers(self, ability: type) -> object | None:
        """Who has this ability: the part itself, an adapter inside it, or nobody."""


def find(part: Offering, ability: type[Ability]) -> Ability | None:
    """The part, or the adapter inside it, that has an ability; None where there is none."""
    found = part.offers(ability)
    assert found is None or isinstance(found, ability)
    return found


def require(part: Offering, ability: type[Ability]) -> Ability:
    """As `find`, for a part whose `needs` say that there is one."""
    found = find(part, ability)
    assert found is not None, f"{type(part).__name__} was composed with a part that needs one that {words_of(ability)}"
    return found


def words_of(ability: type) -> str:
    """What a part with this ability does, as the middle of a sentence.

    >>> words_of(ReservedRows)
    'has rows ahead for classes to come'
    """
    first = (ability.__doc__ or ability.__name__).strip().split("\n")[0].rstrip(".")
    return first[:1].lower() + first[1:]
