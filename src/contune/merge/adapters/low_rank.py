"""Low-rank changes of a weight: what LoRA, rsLoRA and DoRA really change, and how it is factorised again."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from contune.merge.tensors import wide


@final
@dataclass(frozen=True)
class Terms:
    """A matrix as a sum of terms up[:, k] down[k], the largest first: its singular value decomposition, or what is left.

    >>> terms_of(torch.tensor([[0.0, 3.0], [1.0, 0.0]])).cut(1).matrix().tolist()
    [[0.0, 3.0], [0.0, 0.0]]
    """

    up: Tensor
    down: Tensor
    sizes: Tensor

    def cut(self, rank: int) -> "Terms":
        """The `rank` largest terms: the nearest matrix of that rank (Eckart and Young)."""
        return Terms(self.up[:, :rank], self.down[:rank], self.sizes[:rank])

    def matrix(self) -> Tensor:
        """The sum of all terms."""
        return self.up @ self.down

    def kept(self, rank: int) -> float:
        """The share of the squared norm that the `rank` largest terms hold; 1 for a matrix of zeros."""
        energy = self.sizes.square()
        total = float(energy.sum())
        return float(energy[:rank].sum()) / total if total > 0 else 1.0

    def balanced(self) -> "Terms":
        """The same terms with equally long factors, so that training can go on from them."""
        up, down = self.up.norm(dim=0), self.down.norm(dim=1)
        live = (up > 0) & (down > 0)
        ratio = torch.where(live, (down / up.clamp(min=1e-300)).sqrt(), torch.ones_like(up))
        return Terms(self.up * ratio, self.down / ratio.unsqueeze(1), self.sizes)

    def directions(self) -> Tensor:
        """The right singular vectors as rows; zeros where a term is zero."""
        return torch.nn.functional.normalize(self.down, dim=1, eps=1e-300)


def terms_of(matrix: Tensor) -> Terms:
    """The singular value decomposition of a dense matrix, in float64, by the eigenvectors of its smaller Gram matrix.

    All terms together give the matrix back to rounding whatever the accuracy of small singular values, because it is
    projected on orthonormal vectors and nothing is divided.

    >>> terms_of(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).sizes.tolist()
    [4.0, 3.0]
    """
    values = matrix.double()
    tall = values.shape[0] >= values.shape[1]
    _, vectors = torch.linalg.eigh(values.T @ values if tall else values @ values.T)
    vectors = vectors.flip(1)
    up, down = (values @ vectors, vectors.T) if tall else (vectors, vectors.T @ values)
    return _sorted(up, down, up.norm(dim=0) if tall else down.norm(dim=1))


def terms_of_product(up: Tensor, down: Tensor) -> Terms:
    """The singular value decomposition of up @ down for thin factors, which is never formed.

    >>> terms_of_product(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 3.0]])).sizes.tolist()
    [6.0]
    """
    left, left_rest = torch.linalg.qr(up.double())
    right, right_rest = torch.linalg.qr(down.double().T)
    u, sizes, v = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    return Terms(left @ u * sizes, v @ right.T, sizes)


def _sorted(up: Tensor, down: Tensor, sizes: Tensor) -> Terms:
    order = sizes.argsort(descending=True, stable=True)
    return Terms(up[:, order], down[order], sizes[order])


def lora_scaling(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """alpha / r (arXiv 2106.09685, section 4.1), or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).

    >>> lora_scaling(8, 4, False), lora_scaling(8, 4, True)
    (2.0, 4.0)
    """
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


def dora_change(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """m (W0 + s B A) / ||W0 + s B A|| - W0 with one norm for each output row (arXiv 2402.09353, equation 5).

    >>> dora_change(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([10.0])).tolist()
    [[3.0, 8.0]]
    """
    start = wide(weight)
    moved = start + wide(change)
    lengths: Tensor = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return wide(magnitude).reshape(-1, 1) * moved / lengths - start
