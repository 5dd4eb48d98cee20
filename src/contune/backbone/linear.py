"""The matrices of a model: linear maps of torch, GPT-2's own, whose matrix lies the other way, and tensors of experts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from contune.backbone.layers import is_norm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear map, whose weight is (d_in, d_out)."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, of torch or of GPT-2."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def matrix_of(module: nn.Module) -> Tensor:
    """The matrix (d_out, d_in) of a linear map.

    >>> matrix_of(nn.Linear(3, 2)).shape
    torch.Size([2, 3])
    """
    weight = module.get_parameter("weight")
    return weight.T if is_transposed(module) else weight


def sizes_of(module: nn.Module) -> tuple[int, int]:
    """Width of what a linear map reads and of what it gives.

    >>> sizes_of(nn.Linear(3, 2))
    (3, 2)
    """
    high, wide = matrix_of(module).shape
    return wide, high


@final
@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix by which a model multiplies its states.

    `weight` is (o, i) or (i, o); of a layer whose experts are kept in one tensor (experts, o, i) or (experts, i, o).
    `module` holds it.
    """

    weight: nn.Parameter
    module: nn.Module

    @property
    def is_layer(self) -> bool:
        """Whether it is all of a linear map, whose inputs and outputs can be watched."""
        return is_linear(self.module)


def tables_of(model: nn.Module) -> set[int]:
    """The identities of the tensors that a model looks tokens or positions up in, whatever else shares them.

    >>> words, head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    >>> head.weight = words.weight
    >>> tables_of(nn.Sequential(words, head)) == {id(head.weight)}
    True
    """
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}


def find_matrices(model: nn.Module, layers: Iterable[nn.Module], head: Iterable[Tensor] = ()) -> list[Matrix]:
    """The matrices of a model in the order of its modules; embeddings, also where they are tied, and `head` are none.

    All linear maps; and inside the `layers` matrices that stand in no linear map: routers, and experts as one tensor of
    three dimensions. Convolutions and norms are no matrices.

    >>> [tuple(one.weight.shape) for one in find_matrices(nn.Sequential(nn.Linear(3, 2), nn.Embedding(5, 2)), [])]
    [(2, 3)]
    """
    none = tables_of(model) | {id(tensor) for tensor in head}
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [
        Matrix(value, module)
        for module in model.modules()
        for name, value in module.named_parameters(recurse=False)
        if id(value) not in none
        and (name == "weight" if is_linear(module) else id(module) in inside and _stands_alone(module, name, value))
    ]


def _stands_alone(module: nn.Module, name: str, value: Tensor) -> bool:
    """Whether a tensor of a module that is no linear map is a matrix, or one for each expert."""
    if isinstance(module, CONVOLUTIONS) or is_norm(module):
        return False
    experts = value.dim() == 3 and min(value.shape[1:]) > 1
    return experts or (value.dim() == 2 and name == "weight")


def linear_layers(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The linear maps inside a model whose matrix is one of these tensors, by that tensor's name.

    >>> layer = nn.Linear(3, 2)
    >>> list(linear_layers(nn.Sequential(layer), {"first": layer.weight, "bias": layer.bias}))
    ['first']
    """
    names = {id(value): name for name, value in weights.items()}
    found = {}
    for module in model.modules():
        if is_linear(module) and id(module.weight) in names:
            found[names[id(module.weight)]] = module
    return found
