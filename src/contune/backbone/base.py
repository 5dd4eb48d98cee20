"""The frozen base weights, by their original names, and their hash."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers by name: the tensor objects themselves, not copies."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                tensors[name] = buffer
    return tensors


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 over name, type, shape and bytes of every tensor, in the order of their names.

    >>> tensors_hash({"a": torch.zeros(2)}) == tensors_hash({"a": torch.zeros(2)})
    True
    >>> tensors_hash({"a": torch.zeros(2)}) == tensors_hash({"a": torch.zeros(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
