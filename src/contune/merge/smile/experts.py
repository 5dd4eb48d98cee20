"""Fine-tuned models and adapters as experts of a SMILE mixture, and the tensors that the mixture stores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import torch
from torch import Tensor

from contune.errors import DataError
from contune.merge.adapters.compatibility import require_fit, require_same_base
from contune.merge.adapters.folder import AdapterFolder, oriented
from contune.merge.adapters.low_rank import Terms, terms_of, terms_of_product
from contune.merge.adapters.result import padded
from contune.merge.files import Spec
from contune.merge.models.compatibility import Checkpoint, require_together
from contune.merge.tensors import wide


@final
@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of the base: its weight's name in the folder, (out, in), and whether it is stored (in, out)."""

    name: str
    shape: tuple[int, int]
    transposed: bool

    @property
    def bias_name(self) -> str:
        """The name of its bias in the folder, where it has one."""
        return self.name.removesuffix("weight") + "bias"


class Expert(Protocol):
    """What a mixture asks of a model; layers go by their weight's name in the base."""

    folder: Path

    def touches(self, name: str) -> bool:
        """Whether the model changes the weight."""

    def terms(self, layer: LinearLayer) -> Terms:
        """The change of the weight, decomposed."""

    def size(self, layer: LinearLayer) -> int:
        """The most terms that the change can have."""

    def bias(self, layer: LinearLayer) -> Tensor | None:
        """The change of the bias."""

    def changed(self) -> Iterable[str]:
        """What the model brings, where that is known without reading it whole."""


@final
class FullExpert:
    """A full model as an expert."""

    def __init__(self, model: Checkpoint, base: Checkpoint) -> None:
        self.folder, self.model, self.base = model.folder, model, base

    def touches(self, name: str) -> bool:
        return bool(self._change(name).any())

    def terms(self, layer: LinearLayer) -> Terms:
        return terms_of(oriented(self._change(layer.name), layer.shape, layer.transposed))

    def size(self, layer: LinearLayer) -> int:
        return min(layer.shape)

    def bias(self, layer: LinearLayer) -> Tensor | None:
        return self._change(layer.bias_name) if layer.bias_name in self.base.specs else None

    def changed(self) -> Iterable[str]:
        return ()

    def _change(self, name: str) -> Tensor:
        return wide(self.model.tensors[name]) - wide(self.base.tensors[name])


@final
class AdapterExpert:
    """A LoRA adapter as an expert."""

    def __init__(self, adapter: AdapterFolder, base: Checkpoint) -> None:
        self.folder, self.adapter, self.base = adapter.folder, adapter, base
        self.modules = {base.find(f"{m}.weight"): m for m in adapter.modules}

    def touches(self, name: str) -> bool:
        module = self.modules.get(name)
        if module is None:
            return False
        return self.adapter.is_dora(module) or all(bool(factor.any()) for factor in self.adapter.factors(module))

    def terms(self, layer: LinearLayer) -> Terms:
        module = self.modules.get(layer.name)
        if module is None:
            return terms_of_product(torch.zeros(layer.shape[0], 1), torch.zeros(1, layer.shape[1]))
        if not self.adapter.is_dora(module):
            return terms_of_product(*self.adapter.factors(module))
        weight = oriented(self.base.tensors[layer.name], layer.shape, layer.transposed)
        return terms_of(self.adapter.change(module, weight))

    def size(self, layer: LinearLayer) -> int:
        module = self.modules.get(layer.name)
        if module is None:
            return 1
        return min(layer.shape) if self.adapter.is_dora(module) else min(self.adapter.rank(module), *layer.shape)

    def bias(self, layer: LinearLayer) -> Tensor | None:
        module = self.modules.get(layer.name)
        if not self.adapter.has_bias():
            return None
        return torch.zeros(layer.shape[0]) if module is None else self.adapter.bias_change(module)

    def changed(self) -> Iterable[str]:
        return [*self.modules, *self.adapter.wholes]


def open_experts(paths: Sequence[str | Path], base: Checkpoint) -> list[Expert]:
    """Open full models or adapters, all of one kind, that fit the base."""
    are_adapters = [(Path(path) / "adapter_config.json").is_file() for path in paths]
    if all(are_adapters):
        adapters = [AdapterFolder(path) for path in paths]
        require_same_base(adapters, given=True)
        require_fit(adapters, base)
        return [AdapterExpert(one, base) for one in adapters]
    if any(are_adapters):
        raise DataError(f"{paths[are_adapters.index(True)]} is an adapter and others are full models; give one kind")
    models = [Checkpoint(path) for path in paths]
    require_together(models, (), base)
    return [FullExpert(model, base) for model in models]


def not_mixed(experts: Sequence[Expert], layers: Mapping[str, LinearLayer]) -> list[str]:
    """What adapters bring that is not in the mixture: layers outside blocks, embeddings, heads."""
    inside = {layer.name for layer in layers.values()}
    return sorted({name for one in experts for name in one.changed() if name not in inside and one_counts(one, name)})


def one_counts(expert: Expert, name: str) -> bool:
    """Whether an expert changes what a name stands for: a whole tensor, or a layer with a change that is not zero."""
    return not isinstance(expert, AdapterExpert) or name not in expert.modules or expert.touches(name)


@final
class Plan:
    """The tensors of a mixture: for each layer `up`, `down`, `gates` and, where biases change, `bias`, expert by expert."""

    def __init__(
        self,
        base: Checkpoint,
        experts: Sequence[Expert],
        layers: Mapping[str, LinearLayer],
        rank: int,
        gate_rank: int,
    ) -> None:
        self.experts, self.layers = experts, layers
        self.specs: dict[str, Spec] = {}
        self._latest: tuple[str, dict[str, Tensor]] | None = None
        for module, layer in layers.items():
            size = max(expert.size(layer) for expert in experts)
            terms = min(size, rank) if rank else size
            rows, columns = layer.shape
            shapes: dict[str, tuple[int, ...]] = {
                "up": (rows, terms),
                "down": (terms, columns),
                "gates": (min(size, gate_rank), columns),
            }
            if any(expert.bias(layer) is not None for expert in experts):
                shapes["bias"] = (rows,)
            dtype = base.specs[layer.name].dtype
            self.specs |= {f"{module}.{part}": Spec(dtype, (len(experts), *s)) for part, s in shapes.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor, computed now; those of the latest layer are kept."""
        module, _, part = name.rpartition(".")
        if self._latest is None or self._latest[0] != module:
            self._latest = (module, self._layer(module))
        return self._latest[1][part]

    def _layer(self, module: str) -> dict[str, Tensor]:
        layer = self.layers[module]
        rank, gates = self.specs[f"{module}.up"].shape[2], self.specs[f"{module}.gates"].shape[1]
        parts: dict[str, list[Tensor]] = {"up": [], "down": [], "gates": [], "bias": []}
        for expert in self.experts:
            terms = expert.terms(layer)
            directions = padded(terms.cut(gates).directions(), gates)
            terms = terms.cut(rank).balanced()
            bias = expert.bias(layer)
            parts["up"].append(padded(terms.up.T, rank).T)
            parts["down"].append(padded(terms.down, rank))
            parts["gates"].append(directions)
            parts["bias"].append(torch.zeros(layer.shape[0]) if bias is None else bias)
        return {part: torch.stack([value.double() for value in values]) for part, values in parts.items()}
