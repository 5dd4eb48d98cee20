"""How examples arrive where there are no tasks: a section of the configuration."""

from pydantic import BaseModel, ConfigDict, Field


class Online(BaseModel):
    """One pass in small chunks, without a word about where a task ends.

    >>> Online(chunk=1).evaluate_every
    100
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk: int = Field(10, ge=1, description="examples that arrive together; 1 for one by one")
    updates_per_example: float = Field(
        1.0, gt=0, description="gradient steps an example brings; fractions are carried to the next chunk"
    )
    evaluate_every: int = Field(100, ge=1, description="examples between two evaluations over all classes so far")
