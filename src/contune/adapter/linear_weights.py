"""The matrices of the base model's linear layers, trained as they are: what methods that project steps need."""

from torch import nn

from contune.adapter.selected import SelectedParameters
from contune.contract.parts import Adapter


def is_matrix(module: nn.Module) -> bool:
    """Whether a module is a linear layer, of torch or of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_weights(*, layers: str | list[int] = "all", lr_scale: float = 0.01) -> Adapter:
    """The weight matrices of linear layers; biases, norms, embeddings and convolutions stay as they are.

    At a hundredth of the head's learning rate (SLCA, arXiv 2303.05118, section 3.2). Memory: the model in place of the
    base, and the optimizer's two copies of these matrices.
    """
    return SelectedParameters(
        "linear-weights", lambda name, module: name.endswith("weight") and is_matrix(module), layers, lr_scale
    )
