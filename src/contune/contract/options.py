"""Options that many adapters share, with what they mean; a source of a default is added where one adapter has one."""

from typing import Annotated

from contune.backbone.targets import Stack

Rank = Annotated[int, "rank of every low-rank update, from 1: rank x (d_in + d_out) numbers for each matrix"]
Alpha = Annotated[float, "size of the low-rank updates: what they add is multiplied by alpha / rank"]
Dropout = Annotated[float, "share of what enters a low-rank update that is dropped in training, from 0 to below 1"]
Targets = Annotated[str | list[str], "linear layers to adapt: query-value, all-linear, or last names of modules"]
KeyValueTargets = Annotated[str | list[str], "linear layers to adapt: key-value, or targets as of lora"]
Layers = Annotated[
    str | list[int], "layers to train: all, top-half, top-quarter, or numbers from 0; negative: from the top"
]
Stacks = Annotated[Stack, "where a decoder reads an encoder, whose layers are adapted: both, encoder or decoder"]
LowLayers = Annotated[str | list[int], "layers to train: lowest-five, all, top-half, top-quarter, or numbers from 0"]
PrefixLayers = Annotated[str | list[int], "layers of the prefix: first-two, third-to-fifth, all, or numbers from 0"]
LrScale = Annotated[float, "learning rate of the model's own weights, as a multiple of train.lr"]
