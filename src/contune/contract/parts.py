"""The contract: what an adapter, a head and a rule are. Every part is one of these, and concrete parts are final.

What a part remembers between steps is in `state()` and nowhere else. A part never keeps the context it is handed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.contract.data import Batch, Outputs, Selection
from contune.contract.state import State

if TYPE_CHECKING:
    from contune.contract.context import Context

Parameters = Mapping[str, nn.Parameter]


class Part(ABC):  # noqa: B024  every hook of a part is optional; the rooms below name what is not
    """What all parts share: a name in the configuration, and a state."""

    name: ClassVar[str] = ""

    def state(self) -> State:
        """What this part remembers."""
        return State()

    def load_state(self, state: State, context: "Context") -> None:
        """Take back what `state` gave, into a part that was attached but has seen no task."""


class Adapter(Part):
    """What is trained inside the frozen backbone, and how it grows."""

    needs_queries: ClassVar[bool] = False
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

    def lowest_layer(self, backbone: Backbone) -> int:
        """The first layer whose output depends on what is trained; the depth where nothing inside is."""
        return backbone.depth

    def feature_size(self, backbone: Backbone) -> int:
        """Width of the features."""
        return backbone.feature_size

    @abstractmethod
    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Features (B, d) of a batch and the adapter's own penalty, if it has one."""

    def absent(self) -> AbstractContextManager[None]:
        """The block sees the frozen model without what the adapter put into it."""
        return nullcontext()

    def train_mode(self, training: bool) -> None:
        """Turn the adapter's own dropout on for gradient steps and off again; the frozen model never drops anything."""
        del training

    def export(self, folder: Path) -> bool:
        """Write the adapter of the task just learned as a plain `peft` folder; false where peft has no such form."""
        del folder
        return False


class Head(Part):
    """How features become answers: one score per seen class."""

    closed_form: ClassVar[bool] = False
    loss_over: Literal["seen", "own-task"] = "seen"
    lr_scale: float = 1.0

    @abstractmethod
    def begin_task(self, context: "Context") -> None:
        """Grow to the columns of the task that begins."""

    def trained(self) -> Parameters:
        """What is trained by gradient, by stable names."""
        return {}

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Scores (B, seen)."""

    def training_logits(self, features: Tensor) -> Tensor:
        """Scores (B, seen) that the gradient loop trains; a closed-form head may lend the adapter another head."""
        return self.logits(features)

    def fit(self, context: "Context") -> None:
        """Closed form: learn the task in one pass over its features."""

    def end_task(self, context: "Context") -> None:
        """Consolidate."""


class Rule(Part):
    """What protects the past: before, inside and after each step."""

    def refuses(self, adapter: Adapter, head: Head) -> str | None:
        """Why this rule makes no sense with these parts, or None."""
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

    def penalty(self, context: "Context") -> Tensor | None:
        """A term that depends on weights alone."""
        del context
        return None

    def end_task(self, context: "Context") -> None:
        """Consolidate what the task taught, with its data still at hand."""
