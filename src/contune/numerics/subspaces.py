"""What goes into linear layers: second moments of their inputs, and subspaces that grow to hold most of their energy.

The memory of gradient projection (GPM, arXiv 2103.09762, section 5) in the two-sided form of InfLoRA (arXiv 2404.00228,
section 3.3): the basis of old inputs, or, once that is larger, the basis of what is left. d is the width of the inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

ROUNDING = 1e-12  # share of the energy that sums in float64 may miss


def token_rows(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs (B, L, d) or (B, d) as rows (n, d); positions where the mask (B, L) is false, padding, are left out.

    >>> token_rows(torch.tensor([[[1.0], [9.0]]]), torch.tensor([[True, False]])).tolist()
    [[1.0]]
    """
    if mask is None:
        return inputs.reshape(-1, inputs.shape[-1])
    return inputs[mask].reshape(-1, inputs.shape[-1])


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """(1/n) sum x x^T (d, d) of the inputs of linear modules, in float64.

    Modules that read one and the same tensor, such as queries, keys and values, share one: `leaders` says whose.
    """

    tensors: Mapping[str, Tensor]
    leaders: Mapping[str, str]


def complement(basis: Tensor) -> Tensor:
    """Orthonormal columns (d, d - k) of everything orthogonal to orthonormal columns (d, k).

    >>> complement(torch.tensor([[1.0], [0.0]])).abs().tolist()
    [[0.0], [1.0]]
    """
    whole: Tensor = torch.linalg.qr(basis, mode="complete")[0]
    return whole[:, basis.shape[1] :]


def directions(energy: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions (d, m) of an energy matrix (d, d) inside the span of orthonormal columns (d, m).

    Strongest first, with their energies (m,).

    >>> found, energies = directions(torch.diag(torch.tensor([1.0, 4.0])), torch.eye(2))
    >>> found.abs().tolist(), energies.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [4.0, 1.0])
    """
    values, vectors = torch.linalg.eigh(within.T @ energy @ within)
    return within @ vectors.flip(1), values.flip(0).clamp(min=0)


def count_to_reach(energies: Tensor, covered: Tensor, total: Tensor, threshold: float) -> int:
    """How many of the energies (m,), in order, must join the `covered` energy to reach `threshold` of the total.

    The smallest such number (GPM, equations 5 and 9).

    >>> energies = torch.tensor([4.0, 3.0, 1.0])
    >>> [count_to_reach(energies, torch.tensor(2.0), torch.tensor(10.0), t) for t in (0.2, 0.5, 0.9, 1.0)]
    [0, 1, 2, 3]
    """
    sums = covered + torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    short = int((sums < (threshold - ROUNDING) * total).sum())
    return min(short, len(energies))


def closing_threshold(threshold: float, growth: float, task: int) -> float:
    """1 - (1 - threshold) (1 - growth)^task: every task closes the share `growth` of what is left to 1.

    Never reaches 1, so that any number of tasks leaves something to learn with.

    >>> closing_threshold(0.9, 0.5, 0), closing_threshold(0.9, 0.5, 1)
    (0.9, 0.95)
    """
    return 1 - (1 - threshold) * (1 - growth) ** task


@final
@dataclass(frozen=True, eq=False)
class Subspace:
    """A subspace of R^d: by an orthonormal basis of its own (`remove`), or of all that is orthogonal to it (`retain`).

    `columns` (d, k) are kept in float32; computations are in float64.
    """

    columns: Tensor
    kind: Literal["remove", "retain"]

    def basis(self) -> Tensor:
        """Orthonormal columns of the subspace, in float64."""
        own = self.columns.double()
        return own if self.kind == "remove" else complement(own)

    def free(self) -> Tensor:
        """Orthonormal columns of what is orthogonal to the subspace, in float64."""
        own = self.columns.double()
        return own if self.kind == "retain" else complement(own)

    def size(self) -> int:
        """Dimensions of the subspace."""
        width, count = self.columns.shape
        return count if self.kind == "remove" else width - count


def empty_subspace(width: int, device: torch.device) -> Subspace:
    """The subspace {0} of R^width."""
    return Subspace(torch.zeros(width, 0, device=device), "remove")


def extended(space: Subspace, energy: Tensor, threshold: float) -> Subspace:
    """The subspace with the fewest more directions that holds `threshold` of an energy matrix (d, d) (GPM, equation 9).

    Kept as its basis up to d / 2 dimensions, then as the basis of the rest, from which directions are taken away
    (InfLoRA, section 3.3): the same subspace either way.

    >>> grown = extended(empty_subspace(2, torch.device("cpu")), torch.diag(torch.tensor([8.0, 2.0])).double(), 0.9)
    >>> grown.size(), grown.kind
    (2, 'retain')
    """
    found, energies = directions(energy, space.free())
    total = energy.trace()
    count = count_to_reach(energies, total - energies.sum(), total, threshold)
    if count == 0:
        return space
    width = len(energy)
    if space.kind == "remove" and 2 * (space.size() + count) <= width:
        return Subspace(torch.cat([space.columns, found[:, :count].float()], dim=1), "remove")
    return Subspace(found[:, count:].float(), "retain")


def project_out(rows: Tensor, space: Subspace) -> Tensor:
    """Rows (n, d) less their parts inside the subspace: what may be added to a weight (d_out, d) (GPM, equation 6).

    >>> project_out(torch.tensor([[3.0, 4.0]]), Subspace(torch.tensor([[1.0], [0.0]]), "remove")).tolist()
    [[0.0, 4.0]]
    """
    columns = space.columns.to(rows.dtype)
    inside = rows @ columns @ columns.T
    return rows - inside if space.kind == "remove" else inside
