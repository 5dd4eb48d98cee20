"""Low-rank updates together with the base model's norms, biases and class token (SLCA++, arXiv 2408.08295)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from contune.adapter.lora.peft_adapter import lora
from contune.adapter.weights.subset import ParameterSubset
from contune.backbone.backbone import Backbone
from contune.backbone.layers import is_norm
from contune.backbone.linear import matrix_of
from contune.contract.capability import LinearWeights, require
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Rank, Targets
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State


def top_right_vectors(weight: Tensor, count: int) -> Tensor:
    """The first `count` right singular vectors (count, d_in) of a weight (d_out, d_in), by the smaller Gram matrix.

    >>> top_right_vectors(torch.diag(torch.tensor([1.0, 3.0])), 1).abs().tolist()
    [[0.0, 1.0]]
    """
    matrix = weight.double()
    wide = matrix.shape[1] > matrix.shape[0]
    _, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    top = vectors.flip(1)[:, :count].T
    rows = nn.functional.normalize(top @ matrix, dim=1) if wide else top
    return rows.to(weight.dtype)


def is_light(name: str, module: nn.Module) -> bool:
    """Whether a parameter is a norm's, a bias or the class token."""
    return is_norm(module) or name.endswith(("bias", "cls_token", "class_embedding"))


@final
class LoraNormBias(Adapter):
    """W + scale B A in every linear layer, A starting at the top right singular vectors of W and B at zero.

    All norms, biases and the class token of the base model are trained as well, so the base is changed.

    Memory: rank (d_in + d_out) per linear layer, and norms and biases: about a percent of the model.
    Compute: a full backward pass.
    """

    name: ClassVar[str] = "lora-norm-bias"

    def __init__(
        self,
        *,
        rank: Annotated[Rank, "released code"] = 4,
        scale: Annotated[float, "factor of the low-rank update B A", "released code"] = 0.8,
        targets: Targets = "all-linear",
        lr_scale: Annotated[
            float, "learning rate of all of it, as a multiple of train.lr", "released, from task 2"
        ] = 0.1,
    ) -> None:
        self.rank, self.lr_scale = rank, lr_scale
        self._lora = lora(rank=rank, alpha=scale * rank, targets=targets)
        self._light = ParameterSubset("norm-bias", is_light, "all", lr_scale, matrices="none")

    def attach(self, backbone: Backbone, seed: int) -> None:
        from peft.tuners.lora import LoraLayer

        self._lora.attach(backbone, seed)
        self._light.attach(backbone, seed)  # after the LoRA, which freezes the base
        for module in backbone.model.modules():
            if isinstance(module, LoraLayer):
                base = module.get_base_layer()
                rows = top_right_vectors(matrix_of(base).detach(), self.rank)
                module.lora_A["default"].weight.data[: len(rows)] = rows

    def trained(self) -> Parameters:
        both = {f"lora.{name}": value for name, value in self._lora.trained().items()}
        return both | {f"base.{name}": value for name, value in self._light.trained().items()}

    def linear(self) -> Mapping[str, nn.Module]:
        """The factors' layers, by the trained names of their weights."""
        return {f"lora.{name}": module for name, module in require(self._lora, LinearWeights).linear().items()}

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self._light.encode(backbone, batch)

    def disabled(self) -> AbstractContextManager[None]:
        return self._lora.disabled()

    def state(self) -> State:
        return State.nested({"lora": self._lora.state(), "base": self._light.state()})

    def load_state(self, state: State, context: Context) -> None:
        self._lora.load_state(state.inner("lora"), context)
        self._light.load_state(state.inner("base"), context)
