"""The matrices of the base model, trained as they are: what methods that project or mask steps need."""

from typing import Annotated

from contune.adapter.weights.subset import ParameterSubset
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Adapter


def linear_layers(
    *,
    layers: Layers = "all",
    lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
) -> Adapter:
    """The weight matrices of linear layers, routers and experts; biases, norms, embeddings and convolutions stay.

    So does the language head, whether tied to the embeddings or not. At a hundredth of the head's learning rate (SLCA,
    arXiv 2303.05118, section 3.2). Memory: the model in place of the base, and the optimizer's two copies of these matrices.

    Compute: a backward pass down to the lowest chosen layer.
    """
    return ParameterSubset(
        "linear-layers",
        lambda _name, _module: True,
        layers,
        lr_scale,
        matrices="only",
        tables=False,
    )
