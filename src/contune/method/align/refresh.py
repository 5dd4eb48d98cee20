"""Refresh learning on a replay method: unlearn each batch a little, then learn it (arXiv 2403.13249)."""

from typing import Annotated, Literal

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.contract.parts import Rule
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.align.refresh import Refresh
from contune.rule.replay.der import DarkExperience
from contune.rule.replay.replay import Replay


def refresh(
    *,
    delta: Annotated[float, Refresh] = 1e-5,
    noise: Annotated[float, Refresh] = 1e-3,
    decay: Annotated[float, Refresh] = 1e-5,
    examples: Annotated[int, Refresh] = 200,
    host: Annotated[Literal["der++", "er"], "the replay that it is added to", "paper"] = "der++",
    size: Annotated[int, DarkExperience] = 500,
    batch_size: Annotated[int, DarkExperience] = 32,
    alpha: Annotated[float, DarkExperience] = 0.1,
    beta: Annotated[float, DarkExperience] = 0.5,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    loss_over: Annotated[LossOver, "released code, on mammoth"] = "seen",
    layers: Layers = "all",
) -> Method:
    """Before every step of DER++ (or ER) move what is trained up the loss of the batch, by a tiny share of its norm.

    Unlearning a little first is meant to keep the model from memorising more of a batch than it needs.

    Use it on top of a replay method that forgets still; without old examples there is nothing to add it to.

    Memory: as the host, plus one value per trained entry.
    Compute: one more forward and backward pass a step, and `examples` passes a task.
    Defaults: of the move the released code's (its present version moves before the step, as the paper and as here; its
    first one moved after it), of the replay those of method der++, of the loop ours. The loss is over all classes seen,
    as there.
    Differs:
    - The Fisher information is measured on `examples` examples of a task, in the released code on all of them.
    - What is trained is the LoRA of method lora.

    >>> [rule.name for rule in refresh().rules]
    ['refresh', 'der++']
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    replay: Rule = (
        DarkExperience(size=size, batch_size=batch_size, alpha=alpha, beta=beta)
        if host == "der++"
        else Replay(size=size, batch_size=batch_size)
    )
    rule = Refresh(delta=delta, noise=noise, decay=decay, examples=examples)
    return Method(adapter, Linear(loss_over=loss_over), (rule, replay), train={"lr": 2e-3, "epochs": 5})
