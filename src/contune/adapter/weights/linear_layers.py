"""The matrices of the base model's linear layers, trained as they are: what methods that project steps need."""

from typing import Annotated

from contune.adapter.weights.subset import ParameterSubset
from contune.backbone.linear import is_linear
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Adapter


def linear_layers(
    *,
    layers: Layers = "all",
    lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
) -> Adapter:
    """The weight matrices of linear layers; biases, norms, embeddings and convolutions stay as they are.

    At a hundredth of the head's learning rate (SLCA, arXiv 2303.05118, section 3.2). Memory: the model in place of the
    base, and the optimizer's two copies of these matrices.

    Compute: a backward pass down to the lowest chosen layer.
    """
    return ParameterSubset(
        "linear-layers",
        lambda name, module: name.endswith("weight") and is_linear(module),
        layers,
        lr_scale,
        matrices="only",
    )
