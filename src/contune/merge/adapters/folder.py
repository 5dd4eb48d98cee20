"""A folder of one `peft` LoRA: what it changes in the base, whichever of LoRA, rsLoRA and DoRA it is."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from contune.errors import DataError
from contune.merge.adapters.low_rank import dora_change, lora_scaling
from contune.merge.files import Spec, StoredTensors, existing_folder, read_json, weight_files
from contune.merge.tensors import wide

PREFIX = "base_model.model."
SAFE_STARTS = (True, False, "gaussian", "orthogonal", "eva", None)
# Kinds of LoRA that compute something else than a fixed change of a weight.
OTHER_KINDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
DOWN, UP, BIAS, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector"
TABLE_DOWN, TABLE_UP = ".lora_embedding_A", ".lora_embedding_B"


@final
class AdapterFolder:
    """One LoRA adapter, opened and not loaded. `modules` are the layers it changes, `wholes` the tensors it replaces."""

    def __init__(self, path: str | Path) -> None:
        self.folder = existing_folder(path, "adapter")
        self.config = read_json(self.folder / "adapter_config.json")
        self._require_lora()
        self.tensors = StoredTensors(weight_files(self.folder, "adapter_model"))
        names = {name.removeprefix(PREFIX): name for name in self.tensors}
        self.modules = sorted(cut for name in names for end in (DOWN, TABLE_DOWN) if (cut := _cut(name, end)))
        self.wholes = {name.replace(".base_layer.", "."): key for name, key in names.items() if "lora_" not in name}
        self._require_known(names)

    def is_table(self, module: str) -> bool:
        """Whether the layer is an embedding."""
        return self._key(module, TABLE_DOWN) in self.tensors

    def shape(self, module: str) -> tuple[int, int]:
        """Output and input width of a layer."""
        return self._spec(module, UP, TABLE_UP).shape[0], self._spec(module, DOWN, TABLE_DOWN).shape[1]

    def rank(self, module: str) -> int:
        """The number of terms of a layer's change."""
        return self._spec(module, DOWN, TABLE_DOWN).shape[0]

    def dtype(self) -> torch.dtype:
        """The type of the factors."""
        return self._spec(self.modules[0], DOWN, TABLE_DOWN).dtype

    def is_dora(self, module: str) -> bool:
        """Whether the layer has magnitudes of its own, so that its change depends on the base weight."""
        return self._key(module, MAGNITUDE) in self.tensors

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """s B and A of a layer, so that (s B) A is its LoRA change in the layout (out, in)."""
        ends = (TABLE_UP, TABLE_DOWN) if self.is_table(module) else (UP, DOWN)
        up, down = (wide(self.tensors[self._key(module, end)]) for end in ends)
        return up * self.scaling(module), down

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r), with the layer's own alpha where the configuration names one."""
        own = self.config.get("alpha_pattern") or {}
        # The first pattern that matches counts, as in peft.
        alpha = next((own[key] for key in own if re.match(rf"(.*\.)?({key})$", module)), self.config["lora_alpha"])
        return lora_scaling(alpha, self.rank(module), bool(self.config.get("use_rslora")))

    def change(self, module: str, weight: Tensor | None) -> Tensor:
        """The true change of a layer's weight in the layout (out, in); `weight` is the base's, needed for DoRA."""
        up, down = self.factors(module)
        if not self.is_dora(module):
            return up @ down
        assert weight is not None
        return dora_change(weight, up @ down, self.tensors[self._key(module, MAGNITUDE)])

    def bias_change(self, module: str) -> Tensor:
        """What LoRA's own bias adds to the layer's bias: it is scaled like the rest."""
        key = self._key(module, BIAS)
        if key not in self.tensors:
            return torch.zeros(self.shape(module)[0], dtype=torch.float64)
        return wide(self.tensors[key]) * self.scaling(module)

    def has_bias(self) -> bool:
        """Whether any layer has a bias of LoRA's own."""
        return any(self._key(module, BIAS) in self.tensors for module in self.modules)

    def whole(self, name: str) -> Tensor:
        """A tensor that the adapter replaces, such as a head."""
        return self.tensors[self.wholes[name]]

    def base_name(self) -> str:
        """The model that the adapter says it was trained on."""
        return str(self.config.get("base_model_name_or_path") or "")

    def _key(self, module: str, end: str) -> str:
        return PREFIX + module + end

    def _spec(self, module: str, end: str, table: str) -> Spec:
        return self.tensors.specs[self._key(module, table if self.is_table(module) else end)]

    def _require_lora(self) -> None:
        kind = self.config.get("peft_type")
        odd = [key for key in OTHER_KINDS if self.config.get(key)]
        if kind != "LORA" or odd:
            what = f"uses {odd[0]}" if kind == "LORA" else f"is of the kind {kind}"
            raise DataError(
                f"adapter {self.folder} {what}; what can be merged are LoRA, rsLoRA and DoRA of linear layers"
            )
        start = self.config.get("init_lora_weights", True)
        if start not in SAFE_STARTS:
            raise DataError(
                f"adapter {self.folder} was started with init_lora_weights={start!r}, which changes the base weights; "
                "save it once more with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            )

    def _require_known(self, names: Iterable[str]) -> None:
        ends = (DOWN, UP, BIAS, MAGNITUDE, TABLE_DOWN, TABLE_UP)
        odd = [name for name in names if "lora_" in name and not name.endswith(ends)]
        conv = [module for module in self.modules if len(self._spec(module, DOWN, TABLE_DOWN).shape) != 2]
        tables = [module for module in self.modules if self.is_table(module) and self.is_dora(module)]
        for found, what in (
            (odd, "has a tensor of another kind"),
            (conv, "adapts a convolution"),
            (tables, "has DoRA on"),
        ):
            if found:
                raise DataError(
                    f"adapter {self.folder} {what} ({found[0]}); what can be merged are LoRA, rsLoRA and DoRA of linear "
                    "layers, and LoRA of embeddings"
                )
        if not self.modules:
            raise DataError(f"adapter {self.folder} holds no LoRA factors; give a folder that save_pretrained wrote")


def _cut(name: str, end: str) -> str | None:
    return name.removesuffix(end) if name.endswith(end) else None


def zero_like(shape: tuple[int, ...]) -> Tensor:
    """What a model that does not touch a layer changes there."""
    return torch.zeros(shape, dtype=torch.float64)


def oriented(weight: Tensor, shape: tuple[int, int], transposed: bool) -> Tensor:
    """A base weight in the layout (out, in); GPT-2 and its kin store (in, out), which `transposed` says for squares.

    >>> oriented(torch.zeros(3, 2), (2, 3), transposed=False).shape
    torch.Size([2, 3])
    """
    turned = transposed if weight.shape[0] == weight.shape[1] else tuple(weight.shape) != shape
    return weight.T if turned else weight
