"""What a candidate must show before it answers: a section of the configuration."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GateRules(BaseModel):
    """When a candidate is promoted.

    Defaults are ours, found by simulation: with ten suites of 200 examples they promote 97 of 100 harmless updates and none
    that has lost ten points of one suite.

    >>> GateRules().margin
    0.02
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin: float = Field(0.02, gt=0, lt=1, description="most that the mean over earlier suites may lose, as a share")
    suite_margin: float = Field(
        0.05, gt=0, le=1, description="most that one suite may seem to lose; more asks for further examples"
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="chance of a false alarm, over all suites and slices together")
    floor: float = Field(0.5, ge=0, le=1, description="share of the new suite that must be answered rightly")
    gain: bool = Field(
        True,
        description="the new suite must be answered better than before, where so many were wrong that it could show",
    )
    slices: Literal["none", "classes"] = Field(
        "none", description="classes: harm is looked for in every class of every suite as well"
    )
    churn: float = Field(
        0.05, gt=0, lt=1, description="share of examples expected to flip for no reason; for what is said of power"
    )
    resamples: int = Field(2000, ge=100, description="resamples of the bootstrap")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
