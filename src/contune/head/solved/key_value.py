"""A discrete key-value bottleneck: frozen random keys, and values that learn only where they are found (DKVB)."""

from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.contract.capability import Lifetime, Need
from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.head.options import HeadLrScale, LossOver

MOST_POINTS = 4096  # of the first task, that k-means looks at
ROUNDS = 10  # of k-means after its start
CHUNK = 256  # rows whose distances to all keys are held at once


def nearest_keys(points: Tensor, keys: Tensor) -> Tensor:
    """The nearest key (B, H) by Euclidean distance in each of H codebooks: points (H, B, k), keys (H, K, k).

    >>> nearest_keys(torch.tensor([[[0.9], [0.1]]]), torch.tensor([[[0.0], [1.0]]])).tolist()
    [[1], [0]]
    """
    chosen = []
    for rows in torch.split(points, CHUNK, dim=1):
        similar = rows @ keys.transpose(1, 2) - keys.square().sum(dim=2).unsqueeze(1) / 2
        chosen.append(similar.argmax(dim=2).T)
    return torch.cat(chosen)


def pooled_values(values: Tensor, places: Tensor) -> Tensor:
    """The mean (B, C) over codebooks of the values found: values (H K, C), places (B, H) within each codebook.

    >>> pooled_values(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[0, 1]])).tolist()
    [[2.5]]
    """
    books = places.shape[1]
    rows = places + torch.arange(books, device=places.device) * (len(values) // books)
    return functional.embedding_bag(rows, values, mode="mean")


def spread_start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the points (H, n, k) per codebook, far from each other: the start of k-means++ (H, count, k)."""
    books, total, _ = points.shape
    every = torch.arange(books)
    chosen = points[every, torch.randint(total, (books,), generator=generator)].unsqueeze(1)
    distance = (points - chosen).square().sum(dim=2)
    while chosen.shape[1] < count:
        # the small floor keeps the draw defined where all points coincide
        place = torch.multinomial(distance + 1e-12, 1, generator=generator).squeeze(1)
        new = points[every, place].unsqueeze(1)
        chosen = torch.cat([chosen, new], dim=1)
        distance = torch.minimum(distance, (points - new).square().sum(dim=2))
    return chosen


def k_means(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres (H, count, k) of the points (H, n, k) of each codebook; a centre that loses all points stays."""
    centres = spread_start(points, count, generator)
    for _ in range(ROUNDS):
        member = functional.one_hot(nearest_keys(points, centres).T, count).to(points.dtype)
        sizes = member.sum(dim=1).unsqueeze(2)
        means = member.transpose(1, 2) @ points / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
    return centres


@final
class KeyValue(Head):
    """Each codebook finds the nearest of its keys and gives that key's value; scores are the mean (arXiv 2207.11240).

    A codebook sees a fixed random projection of the frozen feature to `key_size` numbers, standardised by the first
    task. Values (one number per class) start at zero and are all that is trained: a step changes at most batch x books
    of them, so take plain SGD without momentum and weight decay. Keys never change after the first task began:
    `gaussian` ones are drawn from a standard normal, which leaves room for later tasks; `k-means` ones are centres of
    the first task's own features (as many as it has, the rest normal), and later tasks may fall onto few of them.

    Memory: books x pairs x (key_size + classes).
    Compute: books x pairs x key_size products per example.
    """

    name: ClassVar[str] = "key-value"
    needs: ClassVar[tuple[Need, ...]] = (Lifetime.NOTHING,)

    def __init__(
        self,
        *,
        books: Annotated[int, "codebooks, each with its own random view of the feature; paper: 256"] = 64,
        pairs: Annotated[int, "keys, each with a value, in every codebook; paper: 4096"] = 512,
        key_size: Annotated[int, "numbers that a codebook sees of a feature, from 1"] = 8,
        keys: Annotated[
            Literal["gaussian", "k-means"], "drawn at random, or centres of the first task's features"
        ] = "gaussian",
        loss_over: LossOver = "seen",
        lr_scale: HeadLrScale = 1.0,
    ) -> None:
        if min(books, pairs, key_size) < 1:
            raise ConfigError(f"books is {books}, pairs {pairs} and key_size {key_size}; give at least 1 of each")
        self.books, self.pairs, self.key_size, self.keys = books, pairs, key_size, keys
        self.loss_over, self.lr_scale = loss_over, lr_scale
        self._projection = torch.zeros(0)
        self._frozen: dict[str, Tensor] = {}
        self._values: nn.Parameter | None = None

    def begin_task(self, context: Context) -> None:
        if not self._frozen:
            self._project(context)
            self._draw_keys(context)
        device = context.model.backbone.device
        values = torch.zeros(self.books * self.pairs, context.task.seen, device=device)
        if self._values is not None:
            values[:, : self._values.shape[1]] = self._values.detach()
        self._values = nn.Parameter(values)

    def _project(self, context: Context) -> None:
        width = context.model.adapter.feature_size(context.model.backbone)
        generator = torch_generator(context.task.settings.seed, "key-value projection")
        drawn = torch.randn(self.books, width, self.key_size, generator=generator, dtype=torch.float64)
        self._projection = (drawn / width**0.5).to(context.model.backbone.device)

    def _draw_keys(self, context: Context) -> None:
        generator = torch_generator(context.task.settings.seed, "keys")
        features = context.passes.features(context.task.data).double().to(self._projection.device)
        points = features @ self._projection
        mean, deviation = points.mean(dim=1, keepdim=True), points.std(dim=1, keepdim=True, correction=0)
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        keys = torch.randn(self.books, self.pairs, self.key_size, generator=generator, dtype=torch.float64)
        if self.keys == "k-means":
            order = torch.randperm(len(features), generator=generator)[:MOST_POINTS]
            standard = ((points - mean) / deviation).cpu()[:, order]
            count = min(self.pairs, len(order))
            keys[:, :count] = k_means(standard, count, generator)
        self._frozen = {"mean": mean, "deviation": deviation, "keys": keys.to(points.device)}

    def places(self, features: Tensor) -> Tensor:
        """The key (B, books) that every feature finds, in float64 so that no batch decides a near tie."""
        points = features.double() @ self._projection
        standard = (points - self._frozen["mean"]) / self._frozen["deviation"]
        return nearest_keys(standard, self._frozen["keys"])

    def trained(self) -> Parameters:
        return {} if self._values is None else {"values": self._values}

    def logits(self, features: Tensor) -> Tensor:
        assert self._values is not None
        return pooled_values(self._values, self.places(features))

    def state(self) -> State:
        values = {} if self._values is None else {"values": self._values.detach()}
        return State({**self._frozen, **values})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        self._project(context)
        self._frozen = {name: state.tensors[name].to(device) for name in ("mean", "deviation", "keys")}
        self._values = nn.Parameter(state.tensors["values"].to(device))
