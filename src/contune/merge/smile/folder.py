"""Write a SMILE mixture of fine-tuned models or adapters, and load it again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contune._files import fresh_folder, write_json
from contune.errors import ConfigError, DataError
from contune.merge.files import (
    StoredTensors,
    existing_folder,
    read_json,
    weight_files,
    write_tensors,
)
from contune.merge.models.compatibility import Checkpoint
from contune.merge.models.lines_scaling import block_of
from contune.merge.module_names import hollow_model, model_class_of, stored_names
from contune.merge.progress import progress
from contune.merge.smile.experts import LinearLayer, Plan, not_mixed, open_experts
from contune.merge.smile.smile import SmileLinear

FILE, STEM = "smile.json", "smile"


def make_smile(
    experts: Sequence[str | Path],
    base: str | Path,
    out: str | Path,
    *,
    rank: int = 32,
    gate_rank: int = 16,
    top: int = 1,
    show: bool = False,
) -> dict[str, Any]:
    """Write a zero-shot low-rank mixture of `experts` on `base`, for `load_smile` (SMILE, arXiv 2408.10174).

    Experts are full models or LoRA adapters (DoRA too). Each linear layer within the numbered blocks gets one expert for
    each model, the `rank` largest terms of its change (all of them for 0), and a router from its `gate_rank` first input
    directions; the `top` best answer for each token. Everything else (embeddings, norms, heads) is the base's. Layers that
    no model changes are left as they are. Nothing is trained, and no data are needed.

    The folder holds the experts and names the base, whose weights `load_smile` compares by checksum. Memory: one layer of
    every model. Differs: layers outside blocks, such as a head, are never
    mixed; an expert of lower rank than the router has fewer directions and so lower scores, as in the released code.
    """
    require_sizes(len(experts), rank, gate_rank, top)
    anchor = Checkpoint(base, "base")
    sources = open_experts(experts, anchor)
    every = linear_layers(anchor)
    layers = {module: layer for module, layer in every.items() if any(one.touches(layer.name) for one in sources)}
    if not layers:
        raise DataError(f"no expert changes a linear layer in the blocks of {anchor.folder}; there is nothing to mix")
    plan = Plan(anchor, sources, layers, rank, gate_rank)
    record: dict[str, Any] = {"format": 1, "base": str(base), "experts": [str(one.folder) for one in sources]}
    record |= {"top": top, "rank": rank, "gate_rank": gate_rank, "not_mixed": not_mixed(sources, layers)}
    with fresh_folder(Path(out)) as folder:
        write_tensors(folder, STEM, plan.specs, plan.tensor, watch=progress("mixing", show))
        record["layers"] = {m: fingerprint(anchor.tensors[layer.name]) for m, layer in layers.items()}
        write_json(folder / FILE, record)
    return record


def require_sizes(experts: int, rank: int, gate_rank: int, top: int) -> None:
    """Refuse numbers of which no mixture can be made."""
    if rank < 0 or gate_rank < 1 or not 1 <= top <= experts:
        raise ConfigError(
            f"rank is {rank}, gate_rank {gate_rank} and top {top} for {experts} experts; give a rank of at least 0 (0 "
            "keeps all), a gate_rank of at least 1, and at least 1 and at most all experts"
        )


def load_smile(folder: str | Path, base: str | Path | None = None, model_class: Any = None) -> nn.Module:
    """The mixture of a folder that `make_smile` wrote, on its base, in evaluation mode.

    `base` says where the base is now, if it has moved; its weights must be those the experts were made for. `model_class`
    is a class of transformers; by default the one that the base's configuration names.
    """
    home = existing_folder(folder, "mixture")
    record = read_json(home / FILE)
    anchor = Checkpoint(base or record["base"], "base")
    names = linear_layers(anchor)
    for module, digest in record["layers"].items():
        if module not in names or fingerprint(anchor.tensors[names[module].name]) != digest:
            raise DataError(
                f"{module} of base {anchor.folder} is not what {home} was made for; give the same base weights"
            )
    tensors = StoredTensors(weight_files(home, STEM))
    model = (model_class or model_class_of(anchor.folder, anchor.config)).from_pretrained(anchor.folder).eval()
    for module in record["layers"]:
        layer = model.get_submodule(module)
        parts = {part: tensors.get(f"{module}.{part}") for part in ("up", "down", "gates", "bias")}
        cast = {part: value.to(layer.weight.dtype) for part, value in parts.items() if value is not None}
        pieces = (cast["up"], cast["down"], cast["gates"], cast.get("bias"))
        model.set_submodule(module, SmileLinear(layer, *pieces, top=record["top"]))
    loaded: nn.Module = model.requires_grad_(False)
    return loaded


def linear_layers(base: Checkpoint) -> dict[str, LinearLayer]:
    """The linear layers within the blocks of a model, by module name.

    The model is built without memory for its weights, because names alone do not tell a linear layer from a table.
    """
    from transformers.pytorch_utils import Conv1D

    model = hollow_model(base.folder, base.config)
    names = stored_names(base.specs, model)
    found = {}
    for module, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and block_of(f"{module}.weight") and f"{module}.weight" in names:
            rows, columns = layer.weight.shape
            turned = isinstance(layer, Conv1D)
            found[module] = LinearLayer(
                names[f"{module}.weight"], (columns, rows) if turned else (rows, columns), turned
            )
    return found


def fingerprint(tensor: Tensor) -> str:
    """Checksum of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
