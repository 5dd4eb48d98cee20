"""The attention seam: one function through which every stock model's attention goes, so that prefixes can attach.

`transformers` looks its attention function up by name. contune registers its own name; the function behind it puts the
active prefixes of the calling module in front of its keys and values, widens mask and position bias to match, and
calls the stock kernel. Without an active prefix it is the stock kernel, bit for bit.

    K <- [P_K; K],  V <- [P_V; V]      (prefix tuning, arXiv 2101.00190, eq. 4 in the form of arXiv 2110.04366)

Prefixes carry no position: they join after the projection and after any rotary embedding, every query sees all of them
(also under a causal or a sliding mask), and a position bias is zero there.

Shapes: B rows, H key/value heads, h head width, q queries, k keys, n prefix length.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.attention.matmul import product_attention
from contune.errors import CombinationError

Kernel = Literal["sdpa", "products", "eager"]
Prefix = tuple[Tensor, Tensor]

SEAM_NAMES: dict[Kernel, str] = {"sdpa": "contune", "products": "contune-products", "eager": "contune-eager"}

_NONE: Mapping[nn.Module, Prefix] = MappingProxyType({})
_active: ContextVar[Mapping[nn.Module, Prefix]] = ContextVar("contune_prefixes", default=_NONE)
_witness: ContextVar[list["Call"] | None] = ContextVar("contune_attention_calls", default=None)


@dataclass(frozen=True)
class Call:
    """One call of the attention function: who called, and the joint width of all its key and of all its value heads."""

    module: nn.Module
    key_width: int
    value_width: int


def register() -> None:
    """Make the seam known to `transformers`; doing it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    AttentionInterface.register(SEAM_NAMES["sdpa"], sdpa_seam)
    AttentionInterface.register(SEAM_NAMES["products"], products_seam)
    AttentionInterface.register(SEAM_NAMES["eager"], eager_seam)
    AttentionMaskInterface.register(SEAM_NAMES["sdpa"], sdpa_mask)
    AttentionMaskInterface.register(SEAM_NAMES["products"], eager_mask)
    AttentionMaskInterface.register(SEAM_NAMES["eager"], eager_mask)


@contextmanager
def attach(prefixes: Mapping[nn.Module, Prefix]) -> Iterator[None]:
    """Give attention modules prefixes while the block runs: keys and values (B, n, H * h) or (n, H * h).

    Blocks nest; a module can have one prefix at a time.
    """
    outer = _active.get()
    if any(module in outer for module in prefixes):
        raise CombinationError("a layer has a prefix already; join the two along their length, or attach one at a time")
    token = _active.set({**outer, **prefixes})
    try:
        yield
    finally:
        _active.reset(token)


def attached() -> frozenset[nn.Module]:
    """The attention modules that have a prefix now."""
    return frozenset(_active.get())


@contextmanager
def watch() -> Iterator[list[Call]]:
    """Record every call of the attention function while the block runs."""
    calls: list[Call] = []
    token = _witness.set(calls)
    try:
        yield calls
    finally:
        _witness.reset(token)


def sdpa_seam(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The seam over PyTorch's scaled dot-product kernels."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _record(module, key, value)
    prefix = _prefix_of(module)
    if prefix is not None:
        if attention_mask is None and _is_causal(module, options) and query.shape[2] > 1:
            # The stock kernel would apply causality by position from the first key on, which prefixes shift.
            attention_mask = causal_mask(query.shape[2], key.shape[2], query.device)
        key, value, attention_mask = _join(prefix, key, value, attention_mask, options)
    result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return result


def products_seam(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The seam over matrix products of our own, for models that PyTorch's scaled dot-product kernels serve.

    The mask is one to add, in which causality is written out, as the plain attention of the model files expects it.
    """
    _record(module, key, value)
    prefix = _prefix_of(module)
    if prefix is not None:
        key, value, attention_mask = _join(prefix, key, value, attention_mask, options)
    bias = options.get("position_bias")
    if bias is not None:
        attention_mask = bias if attention_mask is None else bias + attention_mask
    return product_attention(query, key, value, attention_mask, scaling=options.get("scaling")), None


def eager_seam(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The seam over the plain matrix-multiply attention that every model file defines for itself."""
    _record(module, key, value)
    prefix = _prefix_of(module)
    if prefix is not None:
        key, value, attention_mask = _join(prefix, key, value, attention_mask, options)
    stock = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    result: tuple[Tensor, Tensor | None] = stock(module, query, key, value, attention_mask, **options)
    return result


def prefix_heads(prefix: Tensor, like: Tensor) -> Tensor:
    """A prefix (B, n, H * h) or (n, H * h) as heads (B, H, n, h), in the shape that `like` (B, H, k, h) has."""
    batch, heads, _, width = like.shape
    if prefix.dim() == 2:
        prefix = prefix.unsqueeze(0).expand(batch, -1, -1)
    if prefix.shape[0] != batch or prefix.shape[2] != heads * width:
        raise CombinationError(
            f"a prefix of shape {tuple(prefix.shape)} meets a batch of {batch} rows with {heads} key/value heads of "
            f"width {width}; give (n, {heads * width}) or ({batch}, n, {heads * width})"
        )
    return prefix.reshape(batch, -1, heads, width).transpose(1, 2).to(like.dtype)


def widen_mask(mask: Tensor, length: int) -> Tensor:
    """Let every query see `length` more keys in front: true in a boolean mask, 0 in an additive one.

    >>> widen_mask(torch.tensor([[[[True, False]]]]), 1).tolist()
    [[[[True, True, False]]]]
    """
    return functional.pad(mask, (length, 0), value=1 if mask.dtype == torch.bool else 0.0)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(1, 1, q, k): query i sees keys 0 to i.

    >>> causal_mask(2, 2, torch.device("cpu")).int().tolist()
    [[[[1, 0], [1, 1]]]]
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()[None, None]


def _prefix_of(module: nn.Module) -> Prefix | None:
    # A prefix of length 0 is none at all, so that the stock kernel runs with exactly its own arguments.
    prefix = _active.get().get(module)
    return None if prefix is None or prefix[0].shape[-2] == 0 else prefix


def _join(
    prefix: Prefix, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    keys, values = prefix_heads(prefix[0], key), prefix_heads(prefix[1], value)
    length = keys.shape[2]
    bias = options.get("position_bias")
    if bias is not None:
        options["position_bias"] = functional.pad(bias, (length, 0))
    wide = None if mask is None else widen_mask(mask, length)
    return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2), wide


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    # The same rule as the stock kernel's: an argument wins over the module, and a module that says nothing is causal.
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _record(module: nn.Module, key: Tensor, value: Tensor) -> None:
    calls = _witness.get()
    if calls is not None:
        calls.append(Call(module, key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]))
