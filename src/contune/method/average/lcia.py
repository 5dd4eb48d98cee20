"""LCIA: an average of LoRAs whose step follows drift and gradients, and sets of LoRAs by instruction (arXiv 2410.10868)."""

from typing import Annotated, Literal

from contune.adapter.lora.experts import LoraExperts
from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Dropout, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.router.instructions import Instructions, Line
from contune.rule.average.adaptive_ema import AdaptiveEma


def lcia(
    *,
    routing: Annotated[
        Literal["auto", "instructions", "none"], "sets by instructions, one for all, or what fits"
    ] = "auto",
    threshold: Annotated[float, Instructions] = 0.3,
    line: Annotated[Line, Instructions] = "first",
    keep: Annotated[int, Instructions] = 100,
    fallback: Annotated[float, AdaptiveEma] = 0.01,
    share: Annotated[float | None, AdaptiveEma] = None,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    targets: Targets = "all-linear",
    layers: Layers = "all",
) -> Method:
    """Begin a set of LoRAs where instructions are new; where they are known, average the set that learns and answer with it.

    A task whose instructions are at least `threshold` like a set's goes on with it, and then the mean of the trained
    values over the steps, with a weight from drift and gradients, takes their place. Examples are answered through the
    set whose instructions are most like theirs. `routing` `none` has one LoRA for all tasks, averaged from the second
    on; `auto` comes to that in streams of classes, where nothing is instructed and `instructions` is refused.

    Use it for language models whose tasks are told apart by their instructions, some of them coming back.

    Memory: a LoRA and up to `keep` texts for every kind of instruction, and two copies of a LoRA in training.
    Compute: as lora.
    Defaults: threshold and fallback as released; rank 128 and rate 2e-4 there, for models of 7B, are 8 and 1e-3 here,
    with 5 epochs; `keep` and the routing are ours.
    Differs:
    - The weight really is computed from gradients, where the released code, as it is run, seems to find none and takes
      0.99 and 0.01; how often it falls back to `fallback` is remembered by the rule.
    - Where a set goes on is decided as tasks come, which the released scripts have written down by hand.
    - Instructions are a `line` of a prompt, likeness is measured against all of them at once, and each example is
      routed by itself.
    - No projector is trained, and a head of classes is averaged with the LoRA.

    >>> lcia().rules[0].name, lcia(routing="none").router is None
    ('adaptive-ema', True)
    """
    rule = AdaptiveEma(fallback=fallback, share=share)
    train = {"lr": 1e-3, "epochs": 5, "schedule": "cosine", "warmup": 0.03}
    if routing == "none":
        adapter = lora_adapter(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
        return Method(adapter, Linear(), (rule,), train=train)
    router = Instructions(threshold=threshold, line=line, keep=keep, strict=routing == "instructions")
    sets = LoraExperts(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    return Method(sets, Linear(), (rule,), router, train=train)
