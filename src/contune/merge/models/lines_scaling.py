"""LiNeS: scale the change of shallow layers down and that of deep layers up (arXiv 2410.17146)."""

import re
from collections.abc import Iterable, Mapping

from contune.merge.tensors import LazyTensors, Tensors, wide

# The first numbered part of a name that has a named module within it, as in encoder.layer.3.output.dense.weight:
# `classifier.0.weight` is a layer of a small head and no block.
_BLOCK = re.compile(r"^(?P<stack>(?:[^.]+\.)*?)(?P<index>\d+)\.[^.]+\..+$")


def block_of(name: str) -> tuple[str, int] | None:
    """The stack of blocks that a tensor lies in and the index of its block there, or None.

    >>> block_of("bert.encoder.layer.3.output.dense.weight"), block_of("h.0.mlp.c_fc.2.weight")
    (('bert.encoder.layer.', 3), ('h.', 0))
    >>> block_of("embeddings.word_embeddings.weight"), block_of("classifier.0.weight")
    (None, None)
    """
    found = _BLOCK.match(name)
    return (found["stack"], int(found["index"])) if found else None


def depths(names: Iterable[str]) -> dict[str, int]:
    """The number of blocks of every stack of two or more.

    >>> depths(["encoder.0.a.w", "encoder.2.a.w", "decoder.1.a.w", "once.0.a.w"])
    {'encoder.': 3, 'decoder.': 2}
    """
    found: dict[str, int] = {}
    for stack, index in filter(None, map(block_of, names)):
        found[stack] = max(found.get(stack, 0), index + 1)
    return {stack: depth for stack, depth in found.items() if depth > 1}


def layer_scales(names: Iterable[str], alpha: float, beta: float) -> dict[str, float]:
    """lambda_l = alpha + beta l / (L - 1) for block l = 0 .. L - 1, and alpha outside blocks.

    `names` are those of the whole model, so that L is right where a change touches some layers alone. Differs: every
    stack (encoder and decoder, the towers of CLIP) counts its own blocks, and an index is the first numbered part of a
    name; the released code takes the first number, from 0 up, that occurs anywhere in it.

    >>> layer_scales(["h.0.a.w", "h.1.a.w", "h.2.a.w", "wte.w"], alpha=0.25, beta=0.5)
    {'h.0.a.w': 0.25, 'h.1.a.w': 0.5, 'h.2.a.w': 0.75, 'wte.w': 0.25}
    """
    every = list(names)
    depth = depths(every)
    scales = {}
    for name in every:
        block = block_of(name)
        inside = block is not None and block[0] in depth
        scales[name] = alpha + (beta * block[1] / (depth[block[0]] - 1) if block and inside else 0.0)
    return scales


def scaled(change: Tensors, scales: Mapping[str, float]) -> LazyTensors:
    """Each tensor times its own number.

    >>> import torch
    >>> scaled({"a": torch.ones(1)}, {"a": 0.5})["a"].item()
    0.5
    """
    return LazyTensors(change, lambda name: wide(change[name]) * scales[name])
