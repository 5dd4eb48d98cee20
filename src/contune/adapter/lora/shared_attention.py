"""A LoRA per task, all of them mixed by attention to the input, in training as in answering (SAPT, arXiv 2401.08295)."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.backbone import Backbone
from contune.backbone.linear import sizes_of
from contune.backbone.reader.inputs import ModelInputs
from contune.backbone.targets import target_modules
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State, on_device
from contune.errors import CombinationError, ConfigError

QUERY = ("down", "up", "scale", "shift")


def question_mask(inputs: ModelInputs) -> Tensor:
    """Where (B, L) tokens are known before the answer: no padding, and no token that is to be predicted."""
    assert inputs.mask is not None
    if inputs.targets is None or inputs.answers is not None:
        return inputs.mask
    return inputs.mask.logical_and(inputs.targets.logical_not())


def largest(states: Tensor, mask: Tensor | None) -> Tensor:
    """Largest value (B, d) over the positions of states (B, L, d) where `mask` (B, L) is true.

    >>> largest(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[3.0]]
    """
    return (states if mask is None else states.masked_fill(~mask.unsqueeze(-1), float("-inf"))).amax(dim=1)


def input_summary(backbone: Backbone, inputs: ModelInputs) -> Tensor:
    """Largest value (B, d) over positions of what enters the first layer of an image, or of the words of a question.

    Words come without positions, patches with them and without class token. Nothing of it is ever trained.
    """
    with torch.no_grad():
        if not backbone.reads_tokens:
            return largest(backbone.hidden(inputs, 0)[:, backbone.parts.leading :], None)
        words: Tensor = backbone.model.get_input_embeddings()(inputs.ids)
        return largest(words.float(), question_mask(inputs))


def shared_weights(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """softmax(q K^T / (temperature sqrt(d))) (B, n) of queries (B, d) and keys (n, d).

    >>> shared_weights(torch.zeros(1, 4), torch.ones(2, 4), 1.0).tolist()
    [[0.5, 0.5]]
    """
    scores: Tensor = queries @ keys.T / (temperature * keys.shape[1] ** 0.5)
    return scores.softmax(dim=1)


def mixed_blocks(states: Tensor, down: Tensor, up: Tensor, weights: Tensor) -> Tensor:
    """sum over i of a_i B_i A_i x (B, L, d_out) for states x (B, L, d_in) and weights a (B, n).

    A (n r, d_in) has the blocks below one another, B (d_out, n r) side by side.

    >>> down, up = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0, 10.0]])
    >>> mixed_blocks(torch.ones(2, 1, 1), down, up, torch.tensor([[1.0, 0.0], [0.5, 0.5]])).flatten().tolist()
    [2.0, 6.0]
    """
    each = weights.repeat_interleave(down.shape[0] // weights.shape[1], dim=1).unsqueeze(1)
    return functional.linear(functional.linear(states, down) * each, up)


@contextmanager
def branched(module: nn.Module, down: Tensor, up: Tensor, weights: Tensor) -> Iterator[None]:
    """While the block runs, the mixed blocks are added to what `module` gives."""

    def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if args[0].dim() != 3 or len(args[0]) != len(weights):
            raise CombinationError(
                f"a {type(module).__name__} was given states of shape {tuple(args[0].shape)} for {len(weights)} rows, so "
                "that it cannot be told which row a state belongs to; choose other targets or another adapter"
            )
        return output + mixed_blocks(args[0], down, up, weights).to(output.dtype)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@final
class SharedAttention(Adapter):
    """h = W x + (alpha / rank) sum over tasks i of a_i B_i A_i x, with a = softmax(K q / (temperature sqrt(d))).

    The query q (d) of an example is LayerNorm(SiLU(U D e)) with D (hidden, d) and U (d, hidden), where e is the largest
    value over positions of its input embeddings; padding and the tokens of answers do not count, as a question has none
    (the released code takes padding in). Every example has one a for all layers, in training as in answering. Trained are
    the task's own A_i, B_i and key and the query network; earlier blocks and keys stay as they are to the bit. With one
    block a is 1 and only the block is trained. Keys start uniform in [-1, 1), B_i at zero.

    Differs: gradients go through earlier blocks to the states below them, where the released code cuts them off. A new
    block takes its share of the attention from its first step on, when it gives nothing yet, as there. Memory:
    rank (d_in + d_out) per wrapped matrix and d per task. Compute: two products of rank times tasks per wrapped matrix;
    lower layers cannot be kept, since the weights come from the input.
    """

    name: ClassVar[str] = "shared-attention"
    supports_packing: ClassVar[bool] = False
    lifetime = Lifetime.PER_TASK | Lifetime.LASTING  # the query network lasts

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "T5 on SuperNI"] = 4,
        alpha: Annotated[Alpha, "T5 on SuperNI"] = 32.0,
        hidden: Annotated[int, "width of the network that makes queries, from 1", "released code"] = 100,
        temperature: Annotated[float, "softens the attention over tasks, above 0", "T5 on SuperNI"] = 1.0,
        targets: Targets = "query-value",
        layers: Layers = "all",
    ) -> None:
        if rank < 1 or hidden < 1 or temperature <= 0:
            raise ConfigError(
                f"rank is {rank}, hidden {hidden} and temperature {temperature}; give at least 1, and a temperature above 0"
            )
        self.rank, self.alpha, self.hidden, self.temperature = rank, alpha, hidden, temperature
        self.targets, self.layers = targets, layers
        self._places: dict[str, nn.Module] = {}
        self._past: dict[str, Tensor] = {}
        self._new: dict[str, nn.Parameter] = {}
        self._query: dict[str, nn.Parameter] = {}
        self._seed = 0

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        named = dict(backbone.model.named_modules())
        self._places = {name: named[name] for name in target_modules(backbone, self.targets, self.layers)}
        width = backbone.parts.prompt_width
        starts = {
            "down": self._uniform((self.hidden, width), width**-0.5, "down"),
            "up": self._uniform((width, self.hidden), self.hidden**-0.5, "up"),
            "scale": torch.ones(width),
            "shift": torch.zeros(width),
        }
        self._query = {name: nn.Parameter(value.to(backbone.device)) for name, value in starts.items()}

    def _uniform(self, shape: tuple[int, ...], reach: float, *purpose: str | int) -> Tensor:
        generator = torch_generator(self._seed, "shared-attention", *purpose)
        return (torch.rand(shape, generator=generator) * 2 - 1) * reach

    def summary(self, backbone: Backbone, inputs: ModelInputs) -> Tensor:
        """What the attention reads (B, d) of inputs."""
        return input_summary(backbone, inputs)

    @property
    def blocks(self) -> int:
        """How many blocks there are, the one in training among them."""
        return len(self.keys)

    @property
    def keys(self) -> Tensor:
        """The keys (n, d) of all blocks, the newest last."""
        if "key" not in self._new:
            return torch.zeros(0, 0)
        return torch.cat([self._past["key"], self._new["key"]]) if self._past else self._new["key"]

    def begin_task(self, context: Context) -> None:
        if self._new and not context.model.adapter_trainable:
            return
        if self._new:
            self._past = {name: self._joined(name).detach().clone() for name in self._new}
        task, width, device = self.blocks, context.model.backbone.parts.prompt_width, context.model.backbone.device
        starts = {"key": self._uniform((1, width), 1.0, "key", task)}
        for name, module in self._places.items():
            wide, out = sizes_of(module)
            starts[f"A.{name}"] = self._uniform((self.rank, wide), wide**-0.5, "A", name, task)
            starts[f"B.{name}"] = torch.zeros(out, self.rank)
        self._new = {name: nn.Parameter(value.to(device)) for name, value in starts.items()}

    def _joined(self, name: str) -> Tensor:
        """What all blocks have under this name: A and keys below one another, B side by side."""
        if not self._past:
            return self._new[name]
        return torch.cat([self._past[name], self._new[name]], dim=1 if name.startswith("B.") else 0)

    def trained(self) -> Parameters:
        if not self._new:
            return {}
        names = [name for name in self._new if self._past or name != "key"]
        own = {f"task{self.blocks - 1}.{name}": self._new[name] for name in names}
        return {**own, **({f"query.{name}": self._query[name] for name in QUERY} if self._past else {})}

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0

    def weights(self, summary: Tensor) -> Tensor:
        """Weights (B, n) of all blocks for inputs with these summaries (B, d)."""
        hidden = functional.linear(functional.linear(summary, self._query["down"]), self._query["up"])
        scale, shift = self._query["scale"], self._query["shift"]
        queries = functional.layer_norm(functional.silu(hidden), scale.shape, scale, shift)
        return shared_weights(queries, self.keys, self.temperature)

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        weights = self.weights(self.summary(backbone, batch.inputs))
        with self.mixed(weights):
            return backbone.features(batch.inputs), None

    @contextmanager
    def mixed(self, weights: Tensor) -> Iterator[None]:
        """While the block runs, the model has all blocks with these weights (B, n), the same in every layer."""
        with ExitStack() as stack:
            for name, module in self._places.items():
                up = self._joined(f"B.{name}") * (self.alpha / self.rank)
                stack.enter_context(branched(module, self._joined(f"A.{name}"), up, weights))
            yield

    def state(self) -> State:
        groups: dict[str, Mapping[str, Tensor]] = {"past": self._past, "new": self._new, "query": self._query}
        return State.nested(
            {group: State({name: value.detach() for name, value in held.items()}) for group, held in groups.items()}
        )

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        self._past = on_device(state.inner("past").tensors, device)
        new = state.inner("new").tensors
        self._new = {name: nn.Parameter(value.clone().to(device)) for name, value in new.items()}
        for name, value in state.inner("query").tensors.items():
            self._query[name].data.copy_(value)
