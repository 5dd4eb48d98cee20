"""Which layers an adapter sits in, and which linear maps of them it wraps: by shape and role, not by architecture."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from contune.backbone.backbone import Backbone
from contune.backbone.linear import Matrix, find_matrices, is_linear
from contune.errors import ConfigError

Stack = Literal["both", "encoder", "decoder"]

QUERY = ("query", "q_proj", "q_lin", "q", "to_q")
VALUE = ("value", "v_proj", "v_lin", "v", "to_v")
KEY = ("key", "k_proj", "k_lin", "k", "to_k")
FUSED = ("Wqkv", "c_attn", "qkv", "query_key_value", "qkv_proj", "in_proj")  # one matrix for query, key and value


def resolve_layers(layers: str | Sequence[int], depth: int) -> list[int]:
    """Layer indices, from below: all of them, the top half or quarter, or those listed (negative ones from the top).

    >>> resolve_layers("top-quarter", 12), resolve_layers([0, -1], 6)
    ([9, 10, 11], [0, 5])
    """
    named = {"all": depth, "top-half": -(-depth // 2), "top-quarter": -(-depth // 4)}
    if isinstance(layers, str):
        if layers not in named:
            raise ConfigError(f"layers is {layers!r}; give {', '.join(map(repr, named))} or a list of layer numbers")
        return list(range(depth - named[layers], depth))
    chosen = sorted({layer + depth if layer < 0 else layer for layer in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise ConfigError(
            f"layers is {list(layers)}; this model has layers 0 to {depth - 1}, give at least one of them"
        )
    return chosen


def chosen_layers(backbone: Backbone, layers: str | Sequence[int], stacks: Stack = "both") -> list[nn.Module]:
    """The chosen layers themselves. Of an encoder with a decoder those of each that `stacks` names, counted in each.

    A model with one stack has no other to choose.
    """
    there = {"decoder": backbone.layers, "encoder": backbone.encoder_layers}
    names = [name for name in ("decoder", "encoder") if stacks in ("both", name) or not backbone.encoder_layers]
    return [there[name][at] for name in names if there[name] for at in resolve_layers(layers, len(there[name]))]


def head_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """The weights of a model's own language head, tied to its embeddings or not; none where it answers otherwise."""
    head = backbone.stock.get_output_embeddings() if backbone.answers else None
    return [] if head is None else list(head.parameters())


def matrices(backbone: Backbone) -> dict[str, Matrix]:
    """The matrices of a model by the names of its weights, in the order of its modules: what is masked or projected.

    Those of the encoder and of the decoder, and experts that are kept in one tensor of three dimensions. Embeddings are
    no matrices, nor is the language head, whether tied to them or not.
    """
    names = {id(value): name for name, value in backbone.base_parameters().items()}
    every = [*backbone.layers, *backbone.encoder_layers]
    found = find_matrices(backbone.model, every, head_parameters(backbone))
    return {names[id(one.weight)]: one for one in found if id(one.weight) in names}


def require_no_experts(backbone: Backbone, layers: Sequence[nn.Module], linear: Sequence[str]) -> None:
    """Refuse all linear layers where they would silently leave out the experts, most of the layers' weights."""
    sizes = {id(value): value.numel() for layer in layers for value in layer.parameters()}
    every = [one.weight for one in matrices(backbone).values() if one.weight.dim() == 3]
    experts = sum(sizes.get(id(weight), 0) for weight in every)
    if experts:
        last = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"targets is 'all-linear', but {backbone.config.path} keeps {experts / sum(sizes.values()):.0%} of its layers' "
            "weights as experts in tensors of three dimensions, which are no linear layers and would stay as they are; "
            f"name what to adapt, some of {last}, or take lift, osf, hft or finetune, which train experts too"
        )


def target_modules(
    backbone: Backbone, targets: str | Sequence[str], layers: str | Sequence[int], stacks: Stack = "both"
) -> list[str]:
    """Full names of the modules to wrap, in the chosen layers.

    `targets`: `query-value` (LoRA's own choice, arXiv 2106.09685 section 7.1), `all-linear`, or last names of modules.
    """
    names = {id(module): name for name, module in backbone.model.named_modules()}
    chosen = chosen_layers(backbone, layers, stacks)
    linear = [names[id(module)] for layer in chosen for module in layer.modules() if is_linear(module)]
    if targets == "all-linear":
        require_no_experts(backbone, chosen, linear)
        return linear
    wanted = (
        (*QUERY, *VALUE, *FUSED)
        if targets == "query-value"
        else (targets,)
        if isinstance(targets, str)
        else tuple(targets)
    )
    found = [name for name in linear if name.rsplit(".", 1)[-1] in wanted]
    if not found:
        last = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"targets is {targets!r}, which names no linear layer of {backbone.config.path}; "
            f"give 'query-value', 'all-linear' or some of {last}"
        )
    return found


def key_value_modules(backbone: Backbone, layers: str | Sequence[int]) -> list[str]:
    """Full names of the key and value projections in the chosen layers: where IA3 rescales attention."""
    return target_modules(backbone, [*KEY, *VALUE, *FUSED], layers)


def key_value_targets(targets: str | list[str]) -> str | list[str]:
    """`key-value` as the last names of key and value projections; any other targets as they are.

    A projection that makes queries, keys and values in one is wrapped whole.

    >>> key_value_targets("all-linear"), "k_proj" in key_value_targets("key-value")
    ('all-linear', True)
    """
    return [*KEY, *VALUE, *FUSED] if targets == "key-value" else targets
