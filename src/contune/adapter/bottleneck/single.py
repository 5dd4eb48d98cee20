"""Bottleneck adapters: a small down-and-up map beside or behind parts of each layer (arXiv 2205.13535, 1902.00751)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.adapter.bottleneck.sublayers import Sublayers, branch, changed_output, find_sublayers
from contune.backbone.backbone import Backbone
from contune.backbone.targets import resolve_layers
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers
from contune.contract.parts import Adapter, Parameters, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError

Form = Literal["parallel", "houlsby", "pfeiffer"]
SHARES: Mapping[Form, float] = {"parallel": 0.1, "houlsby": 1.0, "pfeiffer": 1.0}


def bottleneck(states: Tensor, weights: Tensors, *, scale: float = 1.0, dropout: float = 0.0) -> Tensor:
    """scale (W_up relu(W_down x + b_down) + b_up) for states x (..., d); `dropout` thins the hidden units.

    `weights`: `down` (size, d), `down_bias` (size,), `up` (d, size), `up_bias` (d,).

    >>> one = torch.ones(1, 1)
    >>> weights = {"down": one, "down_bias": -one[0], "up": 2 * one, "up_bias": one[0]}
    >>> found = bottleneck(torch.tensor([[4.0], [0.0]]), weights, scale=0.1)
    >>> [round(value, 6) for value in found.flatten().tolist()]
    [0.7, 0.1]
    """
    hidden = functional.relu(functional.linear(states, weights["down"], weights["down_bias"]))
    if dropout:
        hidden = functional.dropout(hidden, dropout)
    return functional.linear(hidden, weights["up"], weights["up_bias"]) * scale


def fresh_bottleneck(width: int, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Start values: `down` Kaiming-uniform with a = sqrt 5, all else zero, so that the bottleneck gives zero."""
    down = torch.zeros(size, width)
    nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
    rest = {"down_bias": torch.zeros(size), "up": torch.zeros(width, size), "up_bias": torch.zeros(width)}
    return {"down": down, **rest}


@final
class Bottlenecks:
    """Where bottlenecks sit in one model, and how they are put in for a forward pass; it holds no weights.

    `parallel` (AdaptFormer, arXiv 2205.13535, section 3.2): the branch reads the residual stream that the MLP's own
    branch leaves, and its output is added to the same sum; no layer norm of its own, as in the released configuration.
    `houlsby` (arXiv 1902.00751, section 2): y + b(y) on the output of attention and of MLP, before each joins the
    residual stream. `pfeiffer` (as arXiv 2110.04366, section 2.2, describes it): y + b(y) on what leaves the layer,
    after its last addition and norm.
    """

    def __init__(self, backbone: Backbone, form: Form, layers: str | Sequence[int]) -> None:
        indices = resolve_layers(layers, backbone.depth)
        self.width = backbone.parts.prompt_width
        self.form = form
        self.lowest = indices[0]
        self._places = dict(zip(indices, find_sublayers(backbone, indices), strict=True))
        sides = ("attention", "mlp") if form == "houlsby" else ("mlp",)
        self.names = tuple(f"{index}.{side}" for index in indices for side in sides)

    def fresh(self, size: int, seed: int, task: int) -> dict[str, Tensor]:
        """Start values of a whole set, by `layer.place.tensor`; they depend on seed, task and name alone."""
        return {
            f"{name}.{tensor}": value
            for name in self.names
            for tensor, value in fresh_bottleneck(
                self.width, size, torch_generator(seed, "bottleneck", task, name)
            ).items()
        }

    @contextmanager
    def active(self, weights: Tensors, scale: float, dropout: float) -> Iterator[None]:
        """While the block runs, the model has these bottlenecks in it."""
        with ExitStack() as stack:
            for name in self.names:
                index, side = name.split(".")
                own = {tensor: weights[f"{name}.{tensor}"] for tensor in ("down", "down_bias", "up", "up_bias")}
                put_in(stack, self._places[int(index)], self.form, side, own, scale, dropout)
            yield


def put_in(
    stack: ExitStack, places: Sublayers, form: Form, side: str, weights: Tensors, scale: float, dropout: float
) -> None:
    """Put one bottleneck where its form wants it, until the stack is closed."""
    narrow = partial(bottleneck, weights=weights, scale=scale, dropout=dropout)
    if form == "parallel":
        stack.enter_context(branch(places.mlp_source, places.mlp_sink, narrow))
        return
    behind = places.attention_output if side == "attention" else places.mlp_output
    module = places.layer if form == "pfeiffer" else behind
    stack.enter_context(changed_output(module, lambda states: states + narrow(states)))


def check_bottleneck(size: int, dropout: float) -> None:
    """Refuse sizes and shares that make no sense."""
    if size < 1:
        raise ConfigError(f"size is {size}; give at least 1")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout is {dropout}; give a share of at least 0 and below 1")


@final
class Bottleneck(Adapter):
    """One set of bottlenecks with ReLU for the whole stream, in the chosen layers; it starts as the identity.

    Forms: `parallel` (AdaptFormer, arXiv 2205.13535) beside each MLP, `houlsby` (arXiv 1902.00751) behind attention and
    MLP, `pfeiffer` (arXiv 2110.04366, section 2.2) behind each layer.

    Memory: 2 x size x d + size + d for each place, about 1.19 million for size 64 in ViT-B/16.
    Compute: a backward pass down to the lowest layer that has one.
    Differs:
    - `houlsby` starts exactly at the identity, where the paper starts close to it, and leaves the layer norms frozen,
      which the paper trains.
    """

    name: ClassVar[str] = "bottleneck"

    def __init__(
        self,
        *,
        size: Annotated[int, "hidden units of each bottleneck, from 1", "AdaptFormer as APER and EASE use it"] = 64,
        form: Annotated[Form, "beside the MLP, behind attention and MLP, or behind the layer"] = "parallel",
        scale: Annotated[float | None, "factor of what it adds; null: 0.1 in form parallel, else 1"] = None,
        dropout: Annotated[float, "share of hidden units dropped in training, from 0 to below 1"] = 0.0,
        layers: Layers = "all",
    ) -> None:
        check_bottleneck(size, dropout)
        self.size, self.form, self.layers, self.dropout = size, form, layers, dropout
        self.scale = SHARES[form] if scale is None else scale
        self._training = False
        self._places: Bottlenecks | None = None
        self._weights: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._places = Bottlenecks(backbone, self.form, self.layers)
        start = self._places.fresh(self.size, seed, 0)
        self._weights = {name: nn.Parameter(value.to(backbone.device)) for name, value in start.items()}

    def trained(self) -> Parameters:
        return self._weights

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert self._places is not None
        with self._places.active(self._weights, self.scale, self.dropout if self._training else 0.0):
            return backbone.features(batch.inputs, resume=batch.resume), None

    def train_mode(self, training: bool) -> None:
        self._training = training

    def state(self) -> State:
        return State({name: value.detach() for name, value in self._weights.items()})

    def load_state(self, state: State, context: Context) -> None:
        del context
        for name, value in self._weights.items():
            value.data.copy_(state.tensors[name])
