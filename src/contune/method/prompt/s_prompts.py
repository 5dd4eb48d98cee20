"""S-Prompts: a prompt and a head per domain, and centres of frozen features to choose among them (arXiv 2207.12819)."""

from typing import Annotated, Any, Literal

from contune.adapter.prompt.per_task import PromptPerTask
from contune.head.linear_per_task import LinearPerTask
from contune.method.method import Method
from contune.router.centroids import Centroids

# The official code's gradient loop of the image form (10 epochs on CDDB-Hard); it starts anew in every domain.
LOOP: dict[str, Any] = {
    "epochs": 10,
    "lr": 0.01,
    "batch_size": 128,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "schedule": "cosine",
    "clip": None,
}


def s_prompts(
    *,
    length: Annotated[int, PromptPerTask] = 10,
    count: Annotated[int, Centroids] = 5,
    distance: Annotated[Literal["l1", "euclidean"], Centroids] = "l1",
) -> Method:
    """Learn every domain on its own: a prompt at the input and a linear head; the nearest of all centres chooses.

    This is the form of one frozen encoder, of images (S-iPrompts) or of texts; the form with CLIP and language prompts
    (S-liPrompts) is not here. Tasks share nothing trained, so all forgetting is a wrong choice of the module.

    Use it for streams whose tasks show the same classes in new domains; with new classes it works as well. Where the
    test set is of domains that training never showed, such as CORe50, every choice is wrong by construction, and the
    score measures transfer.

    Memory: length x d, the head and count x d centres per task.
    Compute: a full backward pass; an answer takes a pass of the frozen model and one with the prompt.
    Defaults: length 10, 5 centres, L1 distance, SGD as in the official code, whose first domain has a weight decay of
    5e-4.
    Differs:
    - Centres come from images in the deterministic view.
    - The learning rate falls with every step, there with every epoch.
    - The number of domains need not be known.

    >>> s_prompts().router.name
    'centroids'
    """
    router = Centroids(count=count, distance=distance)
    return Method(PromptPerTask(length=length), LinearPerTask(), router=router, train=LOOP)
