"""APER: adapt to the first task, then keep class means of the model before and after (arXiv 2303.07338)."""

from typing import Annotated, Any, Literal

from contune.adapter.around.with_base import WithBase
from contune.adapter.bottleneck.single import Bottleneck
from contune.adapter.bottleneck.ssf import Ssf
from contune.adapter.prompt.deep import DeepPrompt
from contune.adapter.prompt.prefix import Prompt
from contune.contract.options import Layers
from contune.contract.parts import Adapter
from contune.head.solved.class_means import ClassMeans
from contune.method.method import Method

Form = Literal["adapter", "ssf", "vpt-shallow", "vpt-deep"]
# The released code's gradient loop on CIFAR-100, 5 classes a task.
LOOP: dict[str, Any] = {
    "epochs": 20,
    "lr": 0.01,
    "batch_size": 48,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "clip": None,
    "min_steps": 500,
}
DEEP_LOOP = LOOP | {"epochs": 5, "lr": 0.05, "batch_size": 16}


def aper(
    *,
    form: Annotated[Form, "adapter of the first task: bottleneck, scale and shift, or prompts", "paper"] = "adapter",
    size: Annotated[int, Bottleneck] = 64,
    scale: Annotated[float, "factor of what a bottleneck adds, in form adapter", "released code"] = 0.1,
    dropout: Annotated[float, Bottleneck, "released code"] = 0.1,
    length: Annotated[int, "prompt tokens of the two vpt forms, from 1", "released code"] = 5,
    layers: Layers = "all",
) -> Method:
    """Train an adapter on the first task alone, and answer by the nearest class mean of [f_0(x); f_adapted(x)].

    Formerly called ADAM. The joint vector is normalised as a whole, so the branch with the longer features weighs more,
    as in the paper. `size`, `scale` and `dropout` are those of form adapter, `length` of the two vpt forms, `layers` of
    adapter and ssf.

    Use it where the first task is large: how much it gains over nmc depends on how many classes the first task has.

    Memory: the adapter (1.19 million weights in ViT-B/16) and classes x 2d sums.
    Compute: gradient steps on the first task, then one pass of each of the two models over every example; two forward
    passes to answer.
    Defaults: the released code's for CIFAR-100, where images are cropped and flipped too (set train.augment). On 2,500
    images that makes 1,060 steps; as with a tenth of that hardly anything is gained over nmc, the first task has 500 steps
    at least (`train.min_steps`, ours), whatever the number of epochs.
    Differs:
    - Its forms that fine-tune the whole backbone or re-estimate batch norms are left out.
    - Prompts start as VPT starts them and not at zero, where all tokens of a layer would stay equal.

    >>> aper(form="ssf").adapter.modules(), aper().adapt
    (2, 'first-task')
    """
    inner = first_task_adapter(form, size=size, scale=scale, dropout=dropout, length=length, layers=layers)
    head = ClassMeans(metric="cosine", auxiliary="cosine")
    train = DEEP_LOOP if form == "vpt-deep" else LOOP
    return Method(WithBase(inner), head, adapt="first-task", train=train)


def first_task_adapter(
    form: Form, *, size: int, scale: float, dropout: float, length: int, layers: str | list[int]
) -> Adapter:
    """The adapter of one of the paper's forms."""
    if form == "adapter":
        return Bottleneck(size=size, scale=scale, dropout=dropout, layers=layers)
    if form == "ssf":
        return Ssf(layers=layers)
    return Prompt(length=length) if form == "vpt-shallow" else DeepPrompt(length=length)
