"""The contract: what an adapter, a head, a router and a rule are. Every part is one of them, and concrete parts are final.

What a part remembers between steps is in `state()` and nowhere else. A part never keeps the context it is handed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.contract.capability import Lifetime, Modules, Need
from contune.contract.data import Batch, Dataset, Outputs, Selection
from contune.contract.state import State
from contune.errors import CombinationError

if TYPE_CHECKING:
    from contune.contract.context import Context

Parameters = Mapping[str, nn.Parameter]
Tensors = Mapping[str, Tensor]


@final
class Trait(Enum):
    """What the scores of an objective are like; a part names those that it cannot do without."""

    EXAMPLE_ROWS = "one row of scores for each example"
    COMPETING = "scores of which one is right and the others wrong"
    CLASSES = "answers that are names of classes"
    WRITTEN = "answers that the model writes"


class Part(ABC):  # noqa: B024  every hook of a part is optional; the rooms below name what is not
    """What all parts share: a name in the configuration, and a state."""

    name: ClassVar[str] = ""
    needs_traits: ClassVar[frozenset[Trait]] = frozenset()
    selectable: ClassVar[bool] = True  # whether a configuration may name it

    def state(self) -> State:
        """What this part remembers."""
        return State()

    def load_state(self, state: State, context: "Context") -> None:
        """Take back what `state` gave, into a part that was attached but has seen no task."""

    def begin_task(self, context: "Context") -> None:
        """A task begins: grow for it; the past is still intact."""

    def meet(self, context: "Context") -> None:
        """Grow for classes that are seen for the first time, where no task begins; `context.task.seen` counts them."""

    def diagnostics(self) -> Mapping[str, float]:
        """What it found out in the task just learned, by name: counts and shares for whoever reads the results."""
        return {}

    def offers(self, ability: type) -> object | None:
        """Who has an ability of `contract.capability`: this part, one inside it, or nobody. Ask with `capability.find`.

        A part has what it has the members of. One that is made in several forms says here which of them has what.
        """
        return self if isinstance(self, ability) else None


class Adapter(Part):
    """What is trained inside the frozen backbone, and how it grows.

    `lifetime` says how long the tensors live that it trains. `supports_packing`: texts may share a row of the model, because
    it adds no tokens and does the same to every text. What else it can do, such as answer with several modules, it says by
    the members of `contract.capability`'s protocols.
    """

    needs_queries: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = True
    lifetime: Lifetime = Lifetime.LASTING
    lr_scale: float = 1.0

    def attach(self, backbone: Backbone, seed: int) -> None:
        """Once, before the first task: put the trained parts into or beside the model."""

    def begin_task(self, context: "Context") -> None:
        """Grow for the task that begins; the past is still intact."""

    def end_task(self, context: "Context") -> None:
        """Freeze, merge or put away what this task trained."""

    def trained(self) -> Parameters:
        """What is trained by gradient now, by stable names."""
        return {}

    def rate(self, name: str) -> float:
        """The learning rate of one of its trained tensors, as a multiple of the whole one."""
        del name
        return self.lr_scale

    def lowest_layer(self, backbone: Backbone) -> int:
        """The first layer whose output depends on what is trained; the depth where nothing inside is."""
        return backbone.depth

    def feature_size(self, backbone: Backbone) -> int:
        """Width of the features."""
        return backbone.feature_size

    @abstractmethod
    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Features (B, d) of a batch and the adapter's own penalty, if it has one."""

    def after_step(self, context: "Context") -> None:
        """After every gradient step: running means of what it trains."""

    def disabled(self) -> AbstractContextManager[None]:
        """The block sees the frozen model without what the adapter put into it."""
        return nullcontext()

    def train_mode(self, training: bool) -> None:
        """Turn the adapter's own dropout on for gradient steps and off again; the frozen model never drops anything."""
        del training

    def export(self, folder: Path) -> bool:
        """Write the adapter of the task just learned as a plain `peft` folder; false where peft has no such form."""
        del folder
        return False

    def export_answering(self, folder: Path) -> bool:
        """Write what answers now as one plain `peft` folder, for a learner that learns no more; false where peft cannot."""
        return self.export(folder)

    def merge(self) -> bool:
        """Add what was learned to the model's weights, for good; false where it is no change of weights."""
        return False


class Head(Part):
    """How features become answers: one score per seen class.

    `takes_modules`: whether prediction features (B, m d) of a modular adapter's m modules side by side make sense to it:
    not at all, while their number stays the same, or though it grows. `needs`: what it asks of the adapter; the refusal of
    an adapter that lacks it is made from that. `class_rows` names the trained tensors that have a row for each column of the
    scores, in their order: rows that have no part in a step keep every bit.
    """

    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS, Trait.COMPETING, Trait.CLASSES})
    closed_form: ClassVar[bool] = False
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "one"
    needs: ClassVar[tuple[Need, ...]] = ()
    class_rows: ClassVar[tuple[str, ...]] = ()
    loss_over: Literal["seen", "own-task"] = "seen"
    lr_scale: float = 1.0

    @abstractmethod
    def begin_task(self, context: "Context") -> None:
        """Grow to the columns of the task that begins."""

    def meet(self, context: "Context") -> None:
        """Grow to the columns there are now; as at the beginning of a task, unless that does more."""
        self.begin_task(context)

    def trained(self) -> Parameters:
        """What is trained by gradient, by stable names."""
        return {}

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Scores (B, seen)."""

    def training_logits(self, features: Tensor) -> Tensor:
        """Scores (B, seen) that the gradient loop trains; a closed-form head may lend the adapter another head."""
        return self.logits(features)

    def routed_logits(self, features: Tensor, routes: Tensor, *, training: bool) -> Tensor:
        """Scores (B, seen) where it is known through which module (B,) each row came."""
        del routes
        return self.training_logits(features) if training else self.logits(features)

    def forget(self, context: "Context") -> None:
        """Closed form: take the examples of `context.task.data` out again, as if they had never been learned."""
        del context
        raise CombinationError(
            f"head {self.name!r} cannot take examples out again; unlearning needs a head of sums: ridge or class-means"
        )

    def fit(self, context: "Context") -> None:
        """Closed form: learn the task in one pass over its features."""

    def end_task(self, context: "Context") -> None:
        """Consolidate."""


class Router(Part):
    """Which module of a modular adapter answers an example, where nobody names its task.

    `needs_queries`: it learns from the frozen model's features, which then come with every batch. `needs`: what it asks of
    the adapter.
    """

    needs: ClassVar[tuple[Need, ...]] = (Modules,)
    needs_queries: ClassVar[bool] = False
    lr_scale: float = 1.0

    def matching_module(self, context: "Context") -> int | None:
        """The module that the task which begins may go on with, asked before it begins; None where it is new to all."""
        del context
        return None

    def begin_task(self, context: "Context") -> None:
        """Grow for the task that begins."""

    def trained(self) -> Parameters:
        """What is trained by gradient, by stable names."""
        return {}

    def loss(self, context: "Context", batch: Batch) -> Tensor | None:
        """A term that trains the router: build it with `batch.mean`."""
        del context, batch
        return None

    @abstractmethod
    def route(self, context: "Context", dataset: Dataset) -> Tensor:
        """The module (n,) for every example; depends on no other example."""

    def end_task(self, context: "Context") -> None:
        """Learn where the task's examples lie."""


class Phase(IntEnum):
    """When a rule acts beside other rules, in a task and in each of its steps; a method sorts its rules by it.

    `WATCHES` looks at the step's own forward pass, so it comes before rules that run more of them in their losses.
    `REWRITES` puts other values in place of what is trained when a task begins or ends, so that all others see these.
    `ALIGNS` sets the head right for the features that the rewritten model gives. `PROTECTS` measures the model as it then
    is, and shapes losses, gradients and steps. `VETOES` lets tensors rest, whatever other rules made of their gradients.
    """

    WATCHES = 0
    REWRITES = 1
    ALIGNS = 2
    PROTECTS = 3
    VETOES = 4


class Rule(Part):
    """What protects the past: before, inside and after each step.

    `idle` names the options with which the rule leaves its carrier as it is, to the bit; the checks hold it to that.
    `needs` and `needs_of_head`: what it asks of the adapter and of the head; refusals are made from that.
    """

    phase: ClassVar[Phase] = Phase.PROTECTS
    needs: ClassVar[tuple[Need, ...]] = ()
    needs_of_head: ClassVar[tuple[Need, ...]] = ()
    idle: ClassVar[Mapping[str, object]] = {}

    def refuses(self, adapter: Adapter, head: Head) -> str | None:
        """Why this rule makes no sense with these parts though they have what it needs, or None."""
        del adapter, head
        return None

    def begin_task(self, context: "Context") -> None:
        """Look at the past while it is still intact; adapter and head have grown already."""

    def select(self, context: "Context", epoch: int, step: int) -> Mapping[str, Selection]:
        """More rows for this step, by segment name."""
        del context, epoch, step
        return {}

    def loss(self, context: "Context", batch: Batch, outputs: Outputs) -> Tensor | None:
        """A term that depends on rows: build it with `batch.mean`."""
        del context, batch, outputs
        return None

    def unlabelled_loss(self, context: "Context", batch: Batch, outputs: Outputs) -> Tensor | None:
        """A term for rows whose right answers nobody knows, with which the model adapts to what it has answered."""
        del context, batch, outputs
        return None

    def penalty(self, context: "Context") -> Tensor | None:
        """A term that depends on weights alone."""
        del context
        return None

    def before_step(self, context: "Context", batch: Batch | None) -> None:
        """Before the step's forward pass: perturb the trained tensors (`context.model.write`), on every process alike.

        `batch` is what this process will learn from, None where the step has no row for it.
        """

    def gradients(self, context: "Context", gradients: Tensors) -> Tensors:
        """The gradients, summed over processes, that the optimizer may use; a tensor left out is not stepped."""
        del context
        return gradients

    def updates(self, context: "Context", updates: Tensors) -> Tensors:
        """What the optimizer would add to each trained tensor, as it may be added: masks and projectors of the step."""
        del context
        return updates

    def after_step(self, context: "Context") -> None:
        """After the step: running means of the trained tensors."""

    def after_chunk(self, context: "Context") -> None:
        """After the steps on a chunk of a stream without tasks: take its examples in. Who has it needs no boundary."""

    def end_task(self, context: "Context") -> None:
        """Consolidate what the task taught, with its data still at hand."""
