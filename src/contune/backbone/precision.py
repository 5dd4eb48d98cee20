"""Numbers of half the size: bf16 where frozen matrices are multiplied, float32 for all that is trained or summed up.

The weights of frozen linear maps and convolutions are stored in bf16, and the model runs under autocast: products take
bf16, while the residual stream, norms, softmax, biases and embeddings stay in float32. Trained tensors are stored in
float32 and cast where they are multiplied, so adapters of any kind (`peft`, hooks, prompts, prefixes) need not know.
A model that is bf16 throughout would refuse float32 adapters, and round each small step away.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from contune.backbone.config import Precision
from contune.backbone.linear import is_linear


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that a model multiplies its states by: linear maps (GPT-2's Conv1D among them) and convolutions."""
    kinds = (nn.Conv1d, nn.Conv2d)
    found = [m.weight for m in model.modules() if isinstance(m, kinds) or is_linear(m)]
    return [weight for weight in found if isinstance(weight, nn.Parameter)]


def cast_frozen(model: nn.Module, frozen: Collection[nn.Parameter]) -> None:
    """Store those matrices of the model that are among `frozen` in bf16.

    >>> both = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> cast_frozen(both, list(both[0].parameters()))
    >>> both[0].weight.dtype, both[0].bias.dtype, both[1].weight.dtype
    (torch.bfloat16, torch.float32, torch.float32)
    """
    chosen = {id(parameter) for parameter in frozen}
    for weight in matrices(model):
        if id(weight) in chosen:
            weight.data = weight.data.to(torch.bfloat16)


def emulated(device: torch.device) -> bool:
    """Whether bf16 is slower than float32 there: on a processor of the x86 kind without instructions for it."""
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


@contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """The block computes in this precision.

    Casts are not kept for the block: a part may put other values into a trained tensor within it.
    """
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        yield
