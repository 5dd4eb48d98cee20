"""How training runs: the settings of the gradient loop and of the cache."""

from typing import Any, Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contune.backbone.config import Precision


@final
class TrainSettings(BaseModel):
    """The gradient loop. A recipe brings its own recommended values; what the user sets wins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(5, ge=0, description="passes over the data of each task; methods bring their own number")
    min_steps: int = Field(
        0, ge=0, description="fewest steps of a task that trains: passes are added until there are as many; 0: none"
    )
    batch_size: int = Field(32, ge=1, description="examples of the task in one step, over all processes together")
    batches: int | None = Field(
        None, ge=1, description="steps of an epoch in every task, whatever its size; null: every example once an epoch"
    )
    lr: float = Field(
        1e-3, gt=0, description="learning rate, of which a part takes a multiple where it has an lr_scale"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="how a step follows from the gradients; its moments start anew in every task"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd alone: share of the last step that the next one keeps")
    weight_decay: float = Field(0.0, ge=0, description="how strongly a step pulls what is trained towards 0")
    schedule: Literal["constant", "cosine", "quarter-cosine", "infinite"] = Field(
        "constant",
        description="learning rate in a task; cosine: half of one, or its first quarter; infinite: one fall in task 1",
    )
    floor: float = Field(0.0, ge=0, lt=1, description="lowest share of lr, where a cosine ends and infinite stays")
    cooldown: float = Field(0.3, gt=0, le=1, description="infinite: share of the first task's steps in which lr falls")
    anneal_task: int | None = Field(
        None,
        ge=1,
        description="infinite: the task, counted from 1, at whose end lr falls to a tenth of floor; null: none",
    )
    annealing: float = Field(0.1, gt=0, le=1, description="infinite: share of anneal_task's steps in which lr falls so")
    warmup: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each task's steps with a linearly rising learning rate; infinite: of the first task's",
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    augment: bool = Field(
        False, description="images: random resized crop and flip; without views it turns caches off in training"
    )
    views: int | None = Field(
        None, ge=1, description="with augment: every image has this many fixed augmented views, epoch e takes e % views"
    )
    group_by_length: bool = Field(True, description="texts: batches of similar length, in an order that stays random")
    packing: bool = Field(
        False, description="language: short texts share a row and do not see each other; less padding is computed"
    )
    precision: Precision = Field(
        "fp32",
        description="bf16: frozen matrices and products in bf16, the trained in float32; where the processor has bf16",
    )
    seed: int = Field(0, description="seed of start values, order of examples and all draws of the method")
    checkpoint_seconds: float = Field(60.0, ge=0, description="longest time inside a task without a checkpoint")
    checkpoint_steps: int | None = Field(None, ge=1, description="also checkpoint after this many steps")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule == "infinite" and not self.floor:
            raise ValueError(
                "schedule is infinite and floor 0, so later tasks would learn nothing; give floor, such as 0.1"
            )
        if self.anneal_task is not None and self.schedule != "infinite":
            raise ValueError(
                f"anneal_task is {self.anneal_task}, but schedule {self.schedule} has no level to fall from; set schedule: "
                "infinite, or leave anneal_task out"
            )
        return self

    @property
    def fresh_views(self) -> bool:
        """Whether every epoch draws new augmented views, of which nothing can be kept."""
        return self.augment and self.views is None

    def view_of(self, epoch: int) -> int | None:
        """The fixed augmented view of an epoch; None where there is none.

        >>> [TrainSettings(augment=True, views=2).view_of(epoch) for epoch in range(3)]
        [0, 1, 0]
        """
        return epoch % self.views if self.augment and self.views else None

    def steps_over(self, examples: int) -> int:
        """Gradient steps of one pass over so many examples: `batches`, or as many as see each of them once."""
        return self.batches or -(-examples // self.batch_size)

    def epochs_over(self, examples: int) -> int:
        """Passes over a task of so many examples: `epochs`, and more until they come to `min_steps`; 0 stays 0.

        >>> [TrainSettings(epochs=2, batch_size=10, min_steps=50).epochs_over(examples) for examples in (100, 1000)]
        [5, 2]
        """
        fewest = -(-self.min_steps // max(1, self.steps_over(examples)))
        return max(self.epochs, fewest) if self.epochs else 0

    def with_changes(self, changes: dict[str, Any]) -> "TrainSettings":
        """These settings with some of them replaced, checked again."""
        return TrainSettings.model_validate(self.model_dump() | changes)


@final
class CacheSettings(BaseModel):
    """Where results of the frozen model are kept, and how much of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: bool = Field(True, description="keep features and queries of frozen models")
    hidden: bool = Field(True, description="keep hidden states below the lowest trained layer")
    memory_mb: int = Field(
        2048, ge=0, description="most megabytes kept in memory; those used longest ago are dropped first"
    )
    folder: str | None = Field(None, description="keep on disk in this folder too, shared between runs")
    batch_size: int = Field(
        32, ge=1, description="examples in one forward pass without gradients; on a GPU 128 and more are faster"
    )
