"""A merged change as the files of a plain LoRA: factors of the wanted rank, with scaling 1."""

from collections import Counter
from typing import Any, Literal, final

import torch
from torch import Tensor

from contune.errors import ConfigError
from contune.merge.adapters.changes import Changes
from contune.merge.adapters.folder import BIAS, DOWN, PREFIX, TABLE_DOWN, TABLE_UP, UP
from contune.merge.adapters.low_rank import Terms
from contune.merge.files import Spec, file_order
from contune.merge.models.compatibility import Checkpoint
from contune.merge.tensors import wide


@final
class AdapterResult:
    """The tensors and the configuration of a merged adapter; `onto` is the base that whole tensors are put on."""

    def __init__(
        self, changes: Changes, rank: int | Literal["full"] | None, onto: Checkpoint | None, base_name: str | None
    ) -> None:
        if isinstance(rank, int) and rank < 1:
            raise ConfigError(f"rank is {rank}; give at least 1, or full")
        self.changes, self.rank, self.onto = changes, rank, onto
        self.base_name = base_name or changes.adapters[0].base_name()
        self.ranks = {module: self._rank(module) for module in changes.modules}
        self.tables = {m for one in changes.adapters for m in one.modules if one.is_table(m)}
        if self.tables and changes.has_bias:
            raise ConfigError(
                "one adapter adapts an embedding and another has LoRA biases, which peft cannot hold in one adapter; "
                "merge them into full models first"
            )
        self.parts: dict[str, tuple[str, str]] = {}
        self.specs = file_order(self._specs())
        self._kept: dict[str, float] = {}
        self._latest: tuple[str, Terms] | None = None

    def tensor(self, key: str) -> Tensor:
        """One tensor of the file, computed now; the decomposition of the latest layer is kept for its second factor."""
        part, kind = self.parts[key]
        if kind == "whole":
            return self._whole(part)
        if kind == "bias":
            return self.changes.bias(part)
        if self._latest is None or self._latest[0] != part:
            terms = self.changes.terms(part)
            self._kept[part] = terms.kept(self.ranks[part])
            self._latest = (part, terms.cut(self.ranks[part]).balanced())
        terms = self._latest[1]
        return padded(terms.up.T, self.ranks[part]).T if kind == "up" else padded(terms.down, self.ranks[part])

    def least_kept(self) -> dict[str, Any]:
        """The layer that lost most to the rank, and the share of the squared norm of its change that is kept."""
        module = min(self._kept, key=lambda name: self._kept[name])
        return {"share": self._kept[module], "layer": module}

    def config(self) -> dict[str, Any]:
        """The adapter_config.json: that of the first adapter, for the merged layers and ranks."""
        common = Counter(self.ranks.values()).most_common(1)[0][0]
        # Longer names first: peft takes the first pattern that a layer's name ends with.
        own = {m: r for m, r in sorted(self.ranks.items(), key=lambda item: -len(item[0])) if r != common}
        saved = sorted({m for one in self.changes.adapters for m in one.config.get("modules_to_save") or []})
        return self.changes.adapters[0].config | {
            "r": common,
            "lora_alpha": common,
            "rank_pattern": own,
            "alpha_pattern": dict(own),
            "use_rslora": False,
            "use_dora": False,
            "lora_bias": self.changes.has_bias,
            "init_lora_weights": True,
            "eva_config": None,
            "target_modules": list(self.changes.modules),
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
            "modules_to_save": saved or None,
            "base_model_name_or_path": self.base_name,
            "inference_mode": True,
        }

    def _rank(self, module: str) -> int:
        most = min(self.changes.shapes[module])
        if self.rank == "full":
            return most
        total = sum(one.rank(module) for one in self.changes.adapters if module in one.modules)
        return min(most, total if self.rank is None else self.rank)

    def _specs(self) -> dict[str, Spec]:
        dtype = self.changes.adapters[0].dtype()
        for one in self.changes.adapters[1:]:
            dtype = torch.promote_types(dtype, one.dtype())
        specs = {}
        for module, (rows, columns) in self.changes.shapes.items():
            table = module in self.tables
            rank = self.ranks[module]
            pieces: list[tuple[str, str, tuple[int, ...]]] = [
                ("down", TABLE_DOWN if table else DOWN, (rank, columns)),
                ("up", TABLE_UP if table else UP, (rows, rank)),
            ]
            if self.changes.has_bias:
                pieces.append(("bias", BIAS, (rows,)))
            for kind, end, shape in pieces:
                self.parts[PREFIX + module + end] = (module, kind)
                specs[PREFIX + module + end] = Spec(dtype, shape)
        for name in self.changes.wholes:
            key = self._whole_key(name)
            found = next(one.tensors.specs[one.wholes[name]] for one in self.changes.adapters if name in one.wholes)
            self.parts[key] = (name, "whole")
            specs[key] = found
        return specs

    def _whole_key(self, name: str) -> str:
        """The name in the file: inside a layer that LoRA wraps, the original lies one level deeper."""
        module, _, leaf = name.rpartition(".")
        return PREFIX + (f"{module}.base_layer.{leaf}" if module in self.changes.shapes else name)

    def _whole(self, name: str) -> Tensor:
        value = self.changes.whole(name)
        if not self.changes.is_relative(name):
            return value
        assert self.onto is not None
        found = self.onto.find(name)
        return wide(self.onto.tensors[found]) + wide(value)


def padded(rows: Tensor, count: int) -> Tensor:
    """The rows with rows of zeros added, where a change has fewer terms than the rank.

    >>> padded(torch.ones(1, 2), 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])]) if len(rows) < count else rows
