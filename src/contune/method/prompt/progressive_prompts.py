"""Progressive Prompts: a prompt per task in front of those before it, all old ones frozen (arXiv 2301.12314)."""

from typing import Annotated, Literal

from contune.adapter.prompt.progressive import ProgressivePrompts
from contune.contract.parts import Router
from contune.head.linear import Linear
from contune.head.linear_per_task import LinearPerTask
from contune.method.method import Method
from contune.router.centroids import Centroids
from contune.router.keys import Keys
from contune.router.mahalanobis import Mahalanobis


def progressive_prompts(
    *,
    length: Annotated[int, ProgressivePrompts] = 10,
    bottleneck: Annotated[int, ProgressivePrompts] = 0,
    router: Annotated[
        Literal["centroids", "keys", "mahalanobis", "none"], "what finds the task where nobody names it"
    ] = "centroids",
    own_heads: Annotated[bool, "a head for every task; false: one over all classes", "paper, T5"] = False,
) -> Method:
    """Answer task t with the prompts of tasks 1 to t in front of the input; only the newest is trained.

    Head rows of new classes are trained over the task's own classes, so those of other tasks rest; where tasks share
    classes they share rows too, and `own_heads` gives every task its own.

    Use it where the task is named, in a task-incremental stream, in which it forgets nothing and `router: none` spares
    what a router costs. In all other streams the router must find the task, so that all forgetting is a wrong choice;
    with `none` the surest module answers, and language streams refuse it.

    Memory: length x d per task (10 thousand numbers at d = 1024), the head, and what the router keeps.
    Compute: a full backward pass through an input that is `length` tokens longer with every task.
    Defaults: 10 tokens and no network, as in the released script. Adam at 5e-3 for 5 epochs is ours; the paper has 0.3
    and 10 epochs for T5-large and far less for BERT.
    Differs:
    - The paper is told the task at test, so scores without its name cannot be compared with the paper's.
    - The paper's residual network (`bottleneck` 800) has here a ReLU and no layer norm.
    - The released script trains BERT's word embeddings too and gives every task its own head.
    - The last prompt is kept, there the best on validation data.
    - Weight decay is off, since it would move resting head rows.
    - Inputs are refused, never cut, where they do not fit.

    >>> progressive_prompts().adapter.name, progressive_prompts(router="none").router
    ('progressive-prompts', None)
    """
    routers: dict[str, Router | None] = {
        "centroids": Centroids(),
        "keys": Keys(),
        "mahalanobis": Mahalanobis(),
        "none": None,
    }
    head = LinearPerTask() if own_heads else Linear(loss_over="own-task")
    train = {"optimizer": "adam", "lr": 5e-3, "epochs": 5, "weight_decay": 0.0}
    return Method(ProgressivePrompts(length=length, bottleneck=bottleneck), head, router=routers[router], train=train)
