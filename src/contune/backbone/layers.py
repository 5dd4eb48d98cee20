"""The transformer layers of a stock model, and how to start, stop or add tokens at one of them.

Everything here works from the outside, with hooks and for the length of a `with` block; no model code is changed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contune.errors import ConfigError


@dataclass(frozen=True)
class Anatomy:
    """What one probing forward pass found.

    `attention` is empty where the model does not call its attention through the seam. `side_outputs`: layers return
    more than states, and later layers need it (T5 hands its position bias from layer to layer).
    """

    layers: nn.ModuleList
    attention: tuple[nn.Module, ...]
    key_widths: tuple[int, ...]
    value_widths: tuple[int, ...]
    side_outputs: bool


def find_layers(model: nn.Module, count: int, name: str) -> nn.ModuleList:
    """The list of `count` modules of one class that holds the most parameters.

    Raises `ConfigError` where there is none, as in models with stages or with layers shared between depths.
    """
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(layer) for layer in module}) == 1
    ]
    if not lists:
        raise ConfigError(
            f"{name} has no plain list of {count} equal transformer layers; contune works with encoders and decoders "
            "built as one such list (BERT, ViT, Llama and their relatives)"
        )
    return max(lists, key=lambda one: sum(parameter.numel() for parameter in one.parameters()))


class _ReachedError(Exception):
    """Carries a layer's input out of a forward pass that need not go on."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def input_of(layer: nn.Module, forward: Callable[[], object]) -> Tensor:
    """The states (B, L, d) that `layer` receives while `forward` runs; nothing from that layer on is computed."""

    def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError(_states(args, kwargs))

    handle = layer.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        forward()
    except _ReachedError as reached:
        return reached.states
    finally:
        handle.remove()
    raise ConfigError(f"{type(layer).__name__} was not reached in a forward pass; its input cannot be read")


@contextmanager
def changed_input(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, `layer` receives `change(states)` instead of its states (B, L, d)."""

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = change(_states(args, kwargs))
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    handle = layer.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def started_at(anatomy: Anatomy, layer: int, states: Tensor) -> Iterator[None]:
    """While the block runs, layers below `layer` do nothing and `layer` receives `states` (B, L, d)."""
    with ExitStack() as stack:
        side: list[Any] = []
        for index, module in enumerate(anatomy.layers[:layer]):
            stack.enter_context(_replaced_forward(module, _skip(module, index == 0 and anatomy.side_outputs, side)))
        stack.enter_context(changed_input(anatomy.layers[layer], lambda _: states))
        yield


def _skip(module: nn.Module, runs: bool, side: list[Any]) -> Callable[..., Any]:
    """A forward that hands its input on; where `runs`, what the real layer returns beside states is kept in `side`."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if runs:
            with torch.no_grad():
                side[:] = original(*args, **kwargs)[1:]
        states = _states(args, kwargs)
        return (states, *side) if side else states

    return forward


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    # An instance attribute hides the class's forward; one may be there already, put there by another library.
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _states(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    states = args[0] if args else kwargs["hidden_states"]
    assert isinstance(states, Tensor)
    return states


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm or an RMS norm, by whatever name its model gives it."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.lower().endswith(("rmsnorm", "layernorm"))
