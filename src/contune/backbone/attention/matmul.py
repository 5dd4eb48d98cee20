"""Attention by two matrix products and a softmax between them, for bf16 on a CPU.

There PyTorch's fused kernels take two to three times as long, and the plain attention of the stock model files copies
the scores to float32 and back. What is computed here is what the fused kernels compute.

Shapes: B rows, H heads, G key/value heads (a divisor of H), h head width, q queries, k keys.
"""

import torch
from torch import Tensor
from torch.nn import functional

# From this many keys on, the softmax of bf16 scores is faster than copies to float32 and back. It computes in float32
# inside, and is as exact. It takes keys by blocks of 32 and what is left over one by one, which is slower than a full block.
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
    from transformers.integrations.sdpa_attention import repeat_kv

    batch, heads, queries, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    rows = query.reshape(batch * heads, queries, width)
    keys, values = (repeat_kv(states, heads // states.shape[1]).flatten(0, 1) for states in (key, value))
    count, added = key.shape[2], filling(key.shape[2]) if mask is None else 0
    if added:
        keys, values = (functional.pad(states, (0, 0, 0, added)) for states in (keys, values))
    scores = torch.baddbmm(rows.new_zeros(1, 1, 1), rows, keys.transpose(1, 2), beta=0, alpha=scale)
    if added:
        scores[:, :, count:] = -torch.inf
    if mask is not None:
        scores = (scores.view(batch, heads, queries, count) + mask).flatten(0, 1)
    weights = scores.softmax(2) if count >= LONG else scores.softmax(2, dtype=torch.float32)
    mixed = torch.bmm(weights.to(values.dtype), values)
    return mixed.view(batch, heads, queries, -1).transpose(1, 2).contiguous()


def filling(keys: int) -> int:
    """Keys of no weight to add, so that the last block of a long row is full; none where little is left over.

    >>> filling(197), filling(222), filling(224), filling(50)
    (0, 2, 0, 0)
    """
    left = keys % BLOCK
    return BLOCK - left if keys >= LONG and left >= BLOCK // 2 else 0
