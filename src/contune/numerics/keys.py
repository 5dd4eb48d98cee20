"""Queries and keys: which keys lie nearest to a query."""

from torch import Tensor
from torch.nn import functional


def nearest_keys(queries: Tensor, keys: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Indices (B, top) of the keys (M, d) with the highest cosine to each query (B, d), and those cosines (B, top).

    >>> import torch
    >>> nearest_keys(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]]), 1)[0].tolist()
    [[1]]
    """
    similarity = functional.normalize(queries, dim=1) @ functional.normalize(keys, dim=1).T
    values, indices = similarity.topk(top, dim=1)
    return indices, values
