"""Attention by two matrix products and a softmax between them, for bf16 on a CPU.

There PyTorch's fused kernels take two to three times as long, and the plain attention of the stock model files copies
the scores to float32 and back. What is computed here is what the fused kernels compute.

Shapes: B rows, H heads, G key/value heads (a divisor of H), h head width, q queries, k keys.
"""

import torch
from torch import Tensor

# From this many keys on, the softmax of bf16 scores is faster than copies to float32 and back, and as exact: inside it
# computes in float32. It takes keys in blocks of 32 and those left over one by one, so that there must not be many.
LONG, BLOCK = 128, 32


def product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None = None
) -> Tensor:
    """softmax(scaling * Q K^T + mask) V as (B, q, H, h); query (B, H, q, h), key and value (B, G, k, h).

    `mask` broadcasts to (B, H, q, k) and is added. `scaling` is 1 / sqrt(h) where nothing is said. Query head i reads
    the key/value head i // (H / G).

    >>> one, two = torch.tensor([[[[1.0]]]]), torch.tensor([[[[0.0], [100.0]]]])
    >>> product_attention(one, two, two, None).tolist()
    [[[[100.0]]]]
    >>> product_attention(one, two, two, torch.tensor([[[[0.0, -1e9]]]])).tolist()
    [[[[0.0]]]]
    """
    batch, heads, queries, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    rows = query.reshape(batch * heads, queries, width)
    keys, values = (_for_every_head(states, heads).flatten(0, 1) for states in (key, value))
    scores = torch.baddbmm(rows.new_zeros(1, 1, 1), rows, keys.transpose(1, 2), beta=0, alpha=scale)
    if mask is not None:
        scores = (scores.view(batch, heads, queries, -1) + mask).flatten(0, 1)
    count = scores.shape[2]
    direct = count >= LONG and count % BLOCK < BLOCK / 2
    weights = scores.softmax(2) if direct else scores.softmax(2, dtype=torch.float32)
    mixed = torch.bmm(weights.to(values.dtype), values)
    return mixed.view(batch, heads, queries, -1).transpose(1, 2).contiguous()


def _for_every_head(states: Tensor, heads: int) -> Tensor:
    groups = states.shape[1]
    if groups == heads:
        return states
    return states.unsqueeze(2).expand(-1, -1, heads // groups, -1, -1).flatten(1, 2)
