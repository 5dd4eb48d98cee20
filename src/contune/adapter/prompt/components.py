"""Prompts as weighted sums of components, more of them with every task (CODA-Prompt, arXiv 2211.13218)."""

from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.backbone import Backbone
from contune.backbone.targets import resolve_layers
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import LowLayers
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError

KINDS = ("components", "keys", "attention")


def component_weights(queries: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """alpha (B, M) = cos(q * A_m, K_m), the element-wise product weighing the query's dimensions (equation 5)."""
    weighed = functional.normalize(queries.unsqueeze(1) * attention, dim=2)
    return (weighed * functional.normalize(keys, dim=1)).sum(dim=2)


def orthonormal_rows(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` new unit rows, orthogonal to each other and to the span of the `old` rows (n, d) while there is room.

    After d rows there is none: what does not fit are random unit rows.
    """
    width = old.shape[1]
    fresh = functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1).T
    fits = min(count, max(0, width - len(old)))
    if fits:
        basis = torch.linalg.qr(old.double().T).Q if len(old) else old.double().T
        free = fresh[:, :fits]
        for _ in range(2):  # once more, because the first pass leaves rounding
            free = torch.linalg.qr(free - basis @ (basis.T @ free)).Q
        fresh = torch.cat([free, fresh[:, fits:]], dim=1)
    return fresh.T.float()


def orthogonality(rows: Tensor) -> Tensor:
    """Mean squared entry of R R^T - I (n, n)."""
    return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().mean()


@final
class PromptComponents(Adapter):
    """Each task adds `components_per_task` components with keys and attention vectors; earlier ones are frozen.

    Per chosen layer p = sum over m of cos(q * A_m, K_m) P_m, whose first half of rows are keys and the second half values in
    front of that layer's own. New slices start orthonormal to all earlier ones, as released, while the width has room.

    Memory: tasks x components_per_task x (length + 2) x d per layer.
    Compute: a backward pass down to the lowest chosen layer; the query is computed once per example and kept.
    Differs: the pool grows with the tasks, where the official code divides a fixed pool by their number, known in
    advance.
    """

    name: ClassVar[str] = "prompt-components"
    supports_packing: ClassVar[bool] = False
    lifetime = Lifetime.PER_TASK
    needs_queries: ClassVar[bool] = True

    def __init__(
        self,
        *,
        components_per_task: Annotated[int, "prompt components that each task adds", "paper, ten tasks"] = 10,
        length: Annotated[int, "rows of a prompt: half are keys, half values", "released code"] = 8,
        layers: Annotated[LowLayers, "released code"] = "lowest-five",
        orthogonality: Annotated[float, "weight of the penalty for orthogonality, from 0", "released code"] = 0.0,
    ) -> None:
        if length < 2 or length % 2:
            raise ConfigError(
                f"length is {length}; half of a prompt's rows are keys and half are values, so give an even number of at "
                f"least 2, such as {max(2, length + 1)}"
            )
        self.components_per_task, self.length, self.layers = components_per_task, length, layers
        self.orthogonality = orthogonality
        self._old: dict[str, Tensor] = {}
        self._new: dict[str, nn.Parameter] = {}
        self._seed = 0

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed
        for layer in self._layers(backbone):
            width, device = backbone.kv_width(layer), backbone.device
            self._old[f"components.{layer}"] = torch.zeros(0, self.length * width, device=device)
            for kind in KINDS[1:]:
                self._old[f"{kind}.{layer}"] = torch.zeros(0, backbone.feature_size, device=device)

    def begin_task(self, context: Context) -> None:
        for name, value in self._new.items():
            self._old[name] = torch.cat([self._old[name], value.detach()])
        for name, old in self._old.items():
            generator = torch_generator(self._seed, name, context.task.index)
            rows = orthonormal_rows(old.cpu(), self.components_per_task, generator)
            self._new[name] = nn.Parameter(rows.to(old.device))

    def trained(self) -> Parameters:
        finished = len(next(iter(self._old.values()))) // self.components_per_task if self._new else 0
        return {f"task{finished}.{name}": value for name, value in self._new.items()}

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(self._layers(backbone))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert batch.queries is not None
        pairs, terms, half = {}, [], self.length // 2
        for layer in self._layers(backbone):
            whole = {kind: self._whole(f"{kind}.{layer}") for kind in KINDS}
            alpha = component_weights(batch.queries, whole["attention"], whole["keys"])
            prompt = (alpha @ whole["components"]).view(len(alpha), self.length, -1)
            pairs[layer] = (prompt[:, :half], prompt[:, half:])
            terms += [orthogonality(rows) for rows in whole.values()] if self.orthogonality else []
        with backbone.prefixes(pairs):
            features = backbone.features(batch.inputs, resume=batch.resume)
        share = len(batch) / (sum(batch.counts.values()) or len(batch))
        return features, self.orthogonality * share * torch.stack(terms).sum() if terms else None

    def state(self) -> State:
        new = {f"new/{name}": value.detach() for name, value in self._new.items()}
        return State({**{f"old/{name}": value for name, value in self._old.items()}, **new})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        for label, value in state.tensors.items():
            part, name = label.split("/", 1)
            if part == "old":
                self._old[name] = value.to(device)
            else:
                self._new[name] = nn.Parameter(value.to(device))

    def _layers(self, backbone: Backbone) -> list[int]:
        if self.layers == "lowest-five":
            return list(range(min(5, backbone.depth)))
        return resolve_layers(self.layers, backbone.depth)

    def _whole(self, name: str) -> Tensor:
        return torch.cat([self._old[name], self._new[name]])
