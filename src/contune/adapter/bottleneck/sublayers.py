"""Where the parts of a transformer layer are, found by watching one forward pass, and changing what they give.

Nothing here knows an architecture: the linear map that runs after the attention gives its output, the last one that of
the MLP, and whether the layer ends in a norm tells post-norm models (BERT) from pre-norm ones (ViT).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from contune.backbone.attention.interface import Call, watch
from contune.backbone.backbone import Backbone
from contune.backbone.layers import is_norm
from contune.backbone.linear import is_linear
from contune.backbone.reader.inputs import ModelInputs
from contune.errors import CombinationError
from contune.stream.modality import find_modality

Change = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Sublayers:
    """The places of one layer.

    `attention_output` and `mlp_output` are the linear maps whose outputs are added to the residual stream.
    `mlp_source` is the module whose input is the residual stream that the MLP's branch leaves, and `mlp_sink` the one
    whose output has the MLP's branch in it: the layer itself, or, where a norm comes after the addition, `mlp_output`.
    """

    layer: nn.Module
    attention_output: nn.Module
    mlp_output: nn.Module
    mlp_source: nn.Module
    mlp_sink: nn.Module


@final
@dataclass(frozen=True, eq=False)
class Event:
    """One module that ran: what it read and gave, and how many attentions had run before."""

    module: nn.Module
    given: Tensor
    output: Tensor
    attentions: int


def find_sublayers(backbone: Backbone, layers: Sequence[int]) -> list[Sublayers]:
    """The places of each of these layers; raises `CombinationError` where a layer is built in another way."""
    events: dict[int, list[Event]] = {}
    with ExitStack() as stack:
        calls = stack.enter_context(watch())
        for index in layers:
            events[index] = []
            stack.enter_context(recorded(backbone.layers[index], events[index], calls))
        with torch.no_grad():
            backbone.features(probe_inputs(backbone))
    return [places_of(backbone.layers[index], events[index], backbone.config.path) for index in layers]


def probe_inputs(backbone: Backbone) -> ModelInputs:
    """One example to look into the model with: a black image, or a word."""
    example = "a" if backbone.reads_tokens else find_modality(backbone.modality).example()
    return backbone.collate([(backbone.prepare([example]), np.zeros(1, np.int64))])


@contextmanager
def recorded(layer: nn.Module, events: list[Event], calls: Sequence[Call]) -> Iterator[None]:
    """While the block runs, note every linear map, every norm and at last the layer itself, in the order they end."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        events.append(Event(module, given, first_of(output), len(calls)))

    watched = [module for module in layer.modules() if is_linear(module) or is_norm(module)]
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in (*watched, layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def places_of(layer: nn.Module, events: Sequence[Event], name: str) -> Sublayers:
    """The places of a layer from what was noted while it ran."""
    start = events[0].attentions if events else 0
    after = [event for event in events if is_linear(event.module) and event.attentions > start]
    if len(after) < 3:
        raise CombinationError(
            f"the layers of {name} do not show an attention followed by an MLP of two linear maps, so a bottleneck has "
            "no place there; use lora or another adapter on this model"
        )
    attention, first, last = after[0].module, after[1], after[-1].module
    norms = [event for event in events if is_norm(event.module)]
    if any(same(event.output, events[-1].output) for event in norms):
        return Sublayers(layer, attention, last, mlp_source=first.module, mlp_sink=last)
    before = [event.module for event in norms if same(event.output, first.given)]
    source = before[0] if before else first.module
    return Sublayers(layer, attention, last, mlp_source=source, mlp_sink=layer)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two live tensors are the same memory: a dropout that is off gives back what it got."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def first_of(output: Any) -> Tensor:
    """The states of a module's output, which may have more beside them."""
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor)
    return states


@contextmanager
def changed_output(module: nn.Module, change: Change) -> Iterator[None]:
    """While the block runs, `module` gives `change(states)` instead of its states (B, L, d)."""

    def replace(_: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        states = change(first_of(output))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def branch(source: nn.Module, sink: nn.Module, change: Change) -> Iterator[None]:
    """While the block runs, `change(input of source)` is added to the output of `sink`, which ends later."""
    held: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> None:
        held[:] = [args[0]]

    handle = source.register_forward_pre_hook(take)
    try:
        with changed_output(sink, lambda states: states + change(held.pop())):
            yield
    finally:
        handle.remove()
