"""MIGU: gradient updates where outputs are large (arXiv 2406.17245)."""

from typing import Annotated, Literal

from contune.adapter.lora.peft_adapter import lora
from contune.adapter.lora.per_task import LoraPerTask
from contune.adapter.weights.subset import ParameterSubset
from contune.contract.options import Alpha, Dropout, Layers, LrScale, Rank, Stacks, Targets
from contune.contract.parts import Adapter, Rule
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.orthogonality import Orthogonality
from contune.rule.mask.activation_mask import ActivationMask


def migu(
    *,
    masked: Annotated[float, ActivationMask] = 0.7,
    window: Annotated[Literal["task", "batch"], ActivationMask] = "task",
    choice: Annotated[Literal["activation", "random"], ActivationMask] = "activation",
    carrier: Annotated[
        Literal["lora", "o-lora", "full"], "what is trained: a LoRA, one per task, or all weights"
    ] = "lora",
    rank: Annotated[Rank, "released T5 runs"] = 8,
    alpha: Annotated[Alpha, "released T5 runs"] = 32.0,
    dropout: Dropout = 0.0,
    strength: Annotated[float, Orthogonality] = 0.5,
    targets: Annotated[Targets, "released T5 runs"] = "query-value",
    layers: Layers = "all",
    stacks: Stacks = "both",
    lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
) -> Method:
    """Move, after the first task, only the rows of each weight whose outputs are largest on the task in hand.

    Tasks of different kind light up different units, so they change different rows; nothing is frozen for good, and
    nothing is kept between tasks. What is trained is one LoRA, one LoRA per task with O-LoRA's penalty (`strength`), or
    all weights but embeddings and the language head (`lr_scale`), which models with experts refuse.

    Use it on top of another way to train where neither examples nor task names are at hand. With `masked` 0 the carrier
    is left alone.

    Memory: a number per output unit while a task is learned, beside the carrier's.
    Compute: as the carrier, and a sum over each layer's output.
    Defaults: the released T5 runs' (share 0.7, rank 8, alpha 32, queries and values); their constant 1e-4 and one epoch
    became 1e-3 and five, and dropout 0.
    Differs:
    - Moves are masked and not gradients alone.
    - A classifier in place of a text-to-text model, whose head is not masked.
    - The first task is the first of the stream, and not a flag that the user sets.

    >>> migu().rules[0].name
    'activation-mask'
    """
    rules: tuple[Rule, ...] = (ActivationMask(masked=masked, window=window, choice=choice),) if masked else ()
    if carrier == "o-lora":
        rules = (*rules, Orthogonality(strength=strength))
    adapter: Adapter
    if carrier == "lora":
        adapter = lora(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers, stacks=stacks)
    elif carrier == "o-lora":
        adapter = LoraPerTask(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers, stacks=stacks)
    else:
        adapter = ParameterSubset("full", lambda _name, _owner: True, layers, lr_scale, tables=False)
    return Method(adapter, Linear(), rules, train={"lr": 1e-2 if carrier == "full" else 1e-3, "epochs": 5})
