"""Dynamic ConPET: a LoRA and a head for each task, and a trained selector among them (arXiv 2309.14763)."""

from typing import Annotated

from contune.adapter.lora.experts import LoraExperts
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear_per_task import LinearPerTask
from contune.method.lora.conpet_static import LOOP
from contune.method.method import Method
from contune.router.selector import Selector
from contune.rule.replay.task_replay import TaskReplay


def conpet_dynamic(
    *,
    ratio: Annotated[float, TaskReplay] = 1.0,
    size: Annotated[int | None, TaskReplay] = None,
    rank: Annotated[Rank, "paper"] = 4,
    alpha: Alpha = 8.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Give each task a LoRA and a head of its own, trained on its data alone, and let a trained selector choose one.

    The selector, a LoRA and a linear head over tasks, learns in every step from the task's rows and from old ones,
    drawn from a uniformly chosen old task; the expert learns from the new rows alone. Finished experts keep every bit,
    so all forgetting is a wrong choice, which cannot be mended: classes of other tasks are not scored.

    Use it where tasks are easy to tell apart and their examples may be kept.

    Memory: a LoRA and a head per task, one selector, and the examples of finished tasks, all of them as in the paper or
    `size`.
    Compute: a step of the expert over the new rows, a pass forward over the old ones, and a step of the selector over
    both, the same number in every task; an answer takes a pass of the selector and one of the expert.
    Defaults: as conpet-static.
    Differs:
    - One expert answers (m = 1, the paper's default; a router here names one module for each example).
    - Unselected classes have no score at all, where the paper gives them -100, which is the same unless a class scores
      below that.
    - Selector and expert learn in the same steps and not one after the other; they share no tensor. Their gradient norm
      is clipped together.

    >>> conpet_dynamic().router.name
    'selector'
    """
    adapter = LoraExperts(rank=rank, alpha=alpha, targets=targets, layers=layers)
    router = Selector(rank=rank, alpha=alpha, targets=targets, layers=layers)
    rule = TaskReplay(ratio=ratio, size=size, weight=0.0)
    return Method(adapter, LinearPerTask(), (rule,), router=router, train=LOOP)
