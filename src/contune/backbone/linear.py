"""Linear maps of a model: those of torch, and GPT-2's own, whose matrix lies the other way."""

from collections.abc import Mapping

from torch import Tensor, nn


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
