"""A pool of low-rank increments with keys: each example is answered with those nearest to it (SLM, arXiv 2404.07470)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.adapter.bottleneck.sublayers import find_sublayers
from contune.adapter.prompt.components import orthonormal_rows
from contune.adapter.task_sets import TaskSets
from contune.backbone.backbone import Backbone
from contune.backbone.linear import sizes_of
from contune.backbone.targets import resolve_layers, target_modules
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers, Rank
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import derived_seed, torch_generator
from contune.contract.state import State
from contune.errors import CombinationError, ConfigError

KEY_BATCH = 16  # queries in a step of key training, as released
KEY_DECAY, KEY_CLIP = 0.01, 0.1  # of key training, as released
FALLS = 3  # the rate of key training is a tenth lower in each third, as released after each epoch


def split_groups(rows: Tensor, groups: int) -> Tensor:
    """Rows (n, d) in `groups` pieces of like width (groups, n, ceil(d / groups)); zeros fill what is missing.

    >>> split_groups(torch.tensor([[1.0, 2.0, 3.0]]), 2).tolist()
    [[[1.0, 2.0]], [[3.0, 0.0]]]
    """
    width = -(-rows.shape[1] // groups)
    filled = functional.pad(rows, (0, groups * width - rows.shape[1]))
    return filled.view(len(rows), groups, width).transpose(0, 1)


def group_cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine (B, groups, P) of each query (B, d) to each key (groups, P, d / groups), piece by piece."""
    pieces = functional.normalize(split_groups(queries, len(keys)), dim=2)
    return torch.bmm(pieces, functional.normalize(keys, dim=2).transpose(1, 2)).transpose(0, 1)


def key_shares(similarity: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """For each row of similarities (B, P) the `top` nearest keys (B, k) and their weights (B, k), which sum to 1.

    A key with a similarity of 0 or less has no weight; where all are so, nothing is added.

    >>> [found.tolist() for found in key_shares(torch.tensor([[0.75, -0.5, 0.25], [-0.1, -0.2, -0.3]]), 2)]
    [[[0, 2], [0, 1]], [[0.75, 0.25], [0.0, 0.0]]]
    """
    values, chosen = similarity.topk(min(top, similarity.shape[1]), dim=1)
    kept = values.clamp(min=0)
    return chosen, kept / kept.sum(dim=1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)


def low_rank_sum(states: Tensor, down: Tensor, up: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What the chosen increments add for states (B, ..., d_in): sum over i of w_i a_i^T b_i x, (B, ..., d_out).

    `down` b (P, r, d_in), `up` a (P, r, d_out), `chosen` and `weights` (B, k).
    """
    rows = states.flatten(1, -2) if states.dim() > 2 else states.unsqueeze(1)
    inner = torch.einsum("bld,bkrd->blkr", rows, down[chosen])
    added = torch.einsum("blkr,bkro->blo", inner * weights[:, None, :, None], up[chosen])
    return added.view(*states.shape[:-1], up.shape[2])


def key_loss(queries: Tensor, keys: Tensor, top: int, dropped: Tensor | None = None) -> Tensor:
    """Minus the mean similarity of each query piece to its `top` nearest keys among those not dropped (B, groups, P).

    >>> key_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), 1).item()
    -1.0
    """
    similarity = group_cosines(queries, keys)
    seen = similarity.detach() if dropped is None else similarity.detach().masked_fill(dropped, -100.0)
    chosen = seen.topk(top, dim=2).indices
    return -similarity.gather(2, chosen).mean()


def trained_keys(
    queries: Tensor, start: Tensor, *, top: int, dropout: float, steps: int, lr: float, seed: int
) -> Tensor:
    """Keys (groups, P, d / groups) drawn to the queries (n, d) they are nearest to, by AdamW on `key_loss`.

    All draws follow from the seed.
    """
    keys = nn.Parameter(start.detach().clone())
    optimizer = torch.optim.AdamW([keys], lr=lr, weight_decay=KEY_DECAY)
    generator = torch.Generator().manual_seed(seed)
    shape = (min(KEY_BATCH, len(queries)), len(start), start.shape[1])
    for step in range(steps):
        rows = torch.randint(len(queries), (shape[0],), generator=generator)
        dropped = (torch.rand(shape, generator=generator) <= dropout).to(keys.device) if dropout else None
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.1 ** (step * FALLS // steps)
        optimizer.zero_grad(set_to_none=True)
        key_loss(queries[rows].to(keys.device), keys, top, dropped).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([keys], KEY_CLIP)
        optimizer.step()
    return keys.detach()


@final
class RetrievedIncrements(Adapter):
    """Each task adds `keys_per_task` low-rank increments with keys; an example is answered with the `top` nearest to it.

    h = W x + sum over i of w_i a_i^T b_i x with the weights of `key_shares`: cosines of the frozen model's own feature
    of the example to the keys, piece by piece in `groups` pieces and then averaged, and scaled to sum 1. b starts
    normal and a at zero, so that the output is the base's to the bit until a step is taken; earlier increments keep
    every bit. Training and answering choose among all keys so far, and each example for itself, where the released code
    averages similarities over the batch and an answer depends on its neighbours.

    A task's keys are trained before its increments on its examples alone, and never change again. They start
    orthonormal. Where the adapter learns in the first task only, later tasks add nothing. A document is asked nothing,
    so that all documents choose alike.

    Memory: rank (d_in + d_out) per increment and wrapped matrix, d per key; `top` increments of each example are in
    memory at once.
    Compute: a pass of the frozen model over every example, kept, and in each forward pass `top` low-rank products.
    """

    name: ClassVar[str] = "retrieved-increments"
    supports_packing: ClassVar[bool] = False
    lifetime = Lifetime.PER_TASK
    needs_queries: ClassVar[bool] = True

    def __init__(
        self,
        *,
        keys_per_task: Annotated[int, "increments, each with a key, that a task adds", "released for BERT"] = 4,
        top: Annotated[int, "increments with the nearest keys that answer", "released for BERT"] = 4,
        groups: Annotated[int, "pieces in which feature and key are compared", "released for BERT"] = 6,
        rank: Annotated[Rank, "released for BERT"] = 12,
        key_top: Annotated[int, "keys that a feature draws to itself while keys are trained, 1 to keys_per_task"] = 2,
        key_dropout: Annotated[float, "share of keys that a training step leaves out, 0 to 1", "released code"] = 0.25,
        key_steps: Annotated[int, "steps of key training, before the increments; 0: keys as drawn"] = 300,
        key_lr: Annotated[float, "learning rate of the keys, above 0"] = 1e-2,
        targets: Annotated[str | list[str], "attention-output, or targets as of lora", "paper"] = "attention-output",
        layers: Layers = "all",
    ) -> None:
        if min(keys_per_task, top, groups, rank, key_lr) <= 0 or key_steps < 0:
            raise ConfigError(
                "keys_per_task, top, groups, rank and key_lr must be above 0 and key_steps at least 0; given are "
                f"{keys_per_task}, {top}, {groups}, {rank}, {key_lr} and {key_steps}"
            )
        if not 1 <= key_top <= keys_per_task:
            raise ConfigError(f"key_top is {key_top}; give 1 to keys_per_task, which is {keys_per_task}")
        if not 0 <= key_dropout < 1:
            raise ConfigError(f"key_dropout is {key_dropout}; give a share from 0 to below 1")
        self.keys_per_task, self.top, self.groups, self.rank = keys_per_task, top, groups, rank
        self.key_top, self.key_dropout, self.key_steps, self.key_lr = key_top, key_dropout, key_steps, key_lr
        self.targets, self.layers = targets, layers
        self._seed = 0
        self._places: Mapping[str, nn.Module] = {}
        self._increments = TaskSets()
        self._keys = torch.zeros(0)

    def attach(self, backbone: Backbone, seed: int) -> None:
        if self.groups > backbone.feature_size:
            raise CombinationError(
                f"groups is {self.groups} but features of {backbone.config.path} have width {backbone.feature_size}; give "
                "at most as many groups"
            )
        self._seed = seed
        self._places = target_places(backbone, self.targets, self.layers)
        width = -(-backbone.feature_size // self.groups)
        self._keys = torch.zeros(self.groups, 0, width, device=backbone.device)

    def begin_task(self, context: Context) -> None:
        if len(self._increments) and not context.model.adapter_trainable:
            return
        task = len(self._increments)
        self._keys = torch.cat([self._keys, self._new_keys(context, task).to(self._keys)], dim=1)
        self._increments.append(self._new_increments(task), context.model.backbone.device, context.task.index)

    def _new_keys(self, context: Context, task: int) -> Tensor:
        """Keys (groups, keys_per_task, d / groups) of the task's examples, on the CPU."""
        empty = torch.zeros(0, self._keys.shape[2])
        generator = torch_generator(self._seed, "increment keys", task)
        start = torch.stack([orthonormal_rows(empty, self.keys_per_task, generator) for _ in range(self.groups)])
        return trained_keys(
            context.passes.base_features(context.task.data),
            start,
            top=self.key_top,
            dropout=self.key_dropout,
            steps=self.key_steps,
            lr=self.key_lr,
            seed=derived_seed(self._seed, "increment keys in training", task),
        )

    def _new_increments(self, task: int) -> dict[str, Tensor]:
        """b normal (keys, r, d_in) and a zero (keys, r, d_out) for every place."""
        found = {}
        for name, module in self._places.items():
            wide, high = sizes_of(module)
            generator = torch_generator(self._seed, "increments", name, task)
            found[f"{name}.b"] = torch.randn(self.keys_per_task, self.rank, wide, generator=generator)
            found[f"{name}.a"] = torch.zeros(self.keys_per_task, self.rank, high)
        return found

    def end_task(self, context: Context) -> None:
        del context
        self._increments.finish()

    def trained(self) -> Parameters:
        return self._increments.trained()

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def retrieved(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The increments (B, k) chosen for these queries (B, d), and their weights (B, k)."""
        # float64: in float32 the last bits depend on what else is in the batch, and may decide between close keys
        similarity = group_cosines(queries.double(), self._keys.double()).mean(dim=1)
        chosen, weights = key_shares(similarity, self.top)
        return chosen, weights.to(queries.dtype)

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not len(self._increments):
            return backbone.features(batch.inputs, resume=batch.resume), None
        assert batch.queries is not None
        with self._added(*self.retrieved(batch.queries)):
            return backbone.features(batch.inputs, resume=batch.resume), None

    @contextmanager
    def _added(self, chosen: Tensor, weights: Tensor) -> Iterator[None]:
        """While the block runs, every place adds the chosen increments of each row to its output."""
        with ExitStack() as stack:
            for name, module in self._places.items():
                b, a = (self._pool(f"{name}.{which}") for which in "ba")
                handle = module.register_forward_hook(adding(b, a, chosen, weights))
                stack.callback(handle.remove)
            yield

    def _pool(self, name: str) -> Tensor:
        """A tensor of the increments of all tasks, one below the other."""
        return torch.cat([self._increments[task][name] for task in range(len(self._increments))])

    def state(self) -> State:
        return State.nested({"increments": self._increments.state(), "keys": State({"keys": self._keys})})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        self._increments.load_state(state.inner("increments"), device)
        self._keys = state.inner("keys").tensors["keys"].clone().to(device)


def adding(
    down: Tensor, up: Tensor, chosen: Tensor, weights: Tensor
) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    """A forward hook that adds the chosen increments of each row to a linear map's output."""

    def add(module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        del module
        return output + low_rank_sum(given[0], down, up, chosen, weights).to(output.dtype)

    return add


def target_places(
    backbone: Backbone, targets: str | Sequence[str], layers: str | Sequence[int]
) -> Mapping[str, nn.Module]:
    """The linear maps to add to, by name: the outputs of the attention, or what `target_modules` names."""
    if targets != "attention-output":
        return {name: backbone.model.get_submodule(name) for name in target_modules(backbone, targets, layers)}
    names = {id(module): name for name, module in backbone.model.named_modules()}
    outputs = [each.attention_output for each in find_sublayers(backbone, resolve_layers(layers, backbone.depth))]
    return {names[id(module)]: module for module in outputs}
