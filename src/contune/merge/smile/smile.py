"""SMILE: fine-tuned models as low-rank experts beside one frozen base, with routers from their singular vectors."""

from typing import final

import torch
from torch import Tensor, nn


def gate_scores(inputs: Tensor, gates: Tensor) -> Tensor:
    """r_i(x) = ||V_i^T x||, the length of x in each expert's input subspace (arXiv 2408.10174).

    `inputs` are (n, in), `gates` (experts, directions, in) with unit rows; gives (n, experts).

    >>> gate_scores(torch.tensor([[3.0, 4.0]]), torch.eye(2).unsqueeze(1)).tolist()
    [[3.0, 4.0]]
    """
    lengths: Tensor = torch.linalg.vector_norm(torch.einsum("tgi,ni->ntg", gates, inputs), dim=2)
    return lengths


def chosen_experts(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` experts of each row and their softmax weights, which are made to sum to 1 again.

    >>> weights, experts = chosen_experts(torch.tensor([[0.0, 2.0, 1.0]]), top=1)
    >>> weights.tolist(), experts.tolist()
    ([[1.0]], [[1]])
    """
    weights, experts = scores.softmax(dim=1).topk(top, dim=1)
    return weights / weights.sum(dim=1, keepdim=True), experts


@final
class SmileLinear(nn.Module):
    """A frozen linear layer and low-rank experts: W0 x + b0 + sum over the chosen p_i (U_i S_i V_i^T x + db_i).

    Every row (a token) chooses for itself, so that an answer does not depend on the rest of the batch. `base` may be
    GPT-2's transposed layer. Differs: the released code computes scores in the model's type, here at least in float32.

    >>> base = nn.Linear(2, 1, bias=False)
    >>> up, down = torch.tensor([[[1.0]]]), torch.tensor([[[0.0, 2.0]]])
    >>> layer = SmileLinear(base, up, down, gates=down / 2, bias=None, top=1)
    >>> x = torch.tensor([[0.0, 3.0]])
    >>> (layer(x) - base(x)).item()
    6.0
    """

    def __init__(self, base: nn.Module, up: Tensor, down: Tensor, gates: Tensor, bias: Tensor | None, top: int) -> None:
        super().__init__()
        self.base = base
        self.top = min(top, len(up))
        self.up, self.down, self.gates = (nn.Parameter(value, requires_grad=False) for value in (up, down, gates))
        self.expert_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The base's weight: some models look at its type."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        result: Tensor = self.base(inputs)
        extra = torch.zeros(len(rows), result.shape[-1], dtype=result.dtype, device=result.device)
        scores = gate_scores(rows.float() if rows.dtype.itemsize < 4 else rows, self.gates.to(_at_least_float(rows)))
        weights, experts = chosen_experts(scores, self.top)
        for expert in range(len(self.up)):
            places, slots = (experts == expert).nonzero(as_tuple=True)
            if len(places):
                answer = rows[places] @ self.down[expert].T @ self.up[expert].T
                if self.expert_bias is not None:
                    answer = answer + self.expert_bias[expert]
                extra = extra.index_add(0, places, answer * weights[places, slots].unsqueeze(1).to(answer.dtype))
        return result + extra.reshape(result.shape)


def _at_least_float(rows: Tensor) -> torch.dtype:
    return torch.float32 if rows.dtype.itemsize < 4 else rows.dtype
