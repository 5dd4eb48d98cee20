"""RanPAC: adapt to the first task, then ridge regression on random features of what has become of it (arXiv 2307.02251)."""

from typing import Annotated, Literal

from contune.adapter.none import NoAdapter
from contune.contract.options import Layers
from contune.head.solved.ridge import Ridge
from contune.method.closed_form.aper import DEEP_LOOP, LOOP, aper, first_task_adapter
from contune.method.method import Method

Form = Literal["adapter", "ssf", "vpt-shallow", "vpt-deep", "small"]
MANY, FEW = 10_000, 2_000  # random features: of the paper, and of form small


def ranpac(
    *,
    form: Annotated[
        Form, "adapter of the first task; small: none, and 2,000 random features, which trains nothing", "paper"
    ] = "adapter",
    random_features: Annotated[
        int | None,
        "random ReLU features to regress on; 0: none, the features alone; null: 10,000, in form small 2,000",
        "paper",
    ] = None,
    strength: Annotated[float | None, Ridge] = None,
    size: Annotated[int, aper] = 64,
    scale: Annotated[float, aper] = 0.1,
    dropout: Annotated[float, aper] = 0.1,
    length: Annotated[int, aper] = 5,
    layers: Layers = "all",
) -> Method:
    """Train an adapter on the first task alone, then sum products of relu(f(x) W) over all tasks and solve for the head.

    `form: small` leaves the model as it is: quick, exact, and nothing in it is trained, so that `Learner.forget` takes all
    of an example out again; in the other forms what the adapter learned of the first task stays. With a number as
    `strength` what comes after the first task is independent of the order of tasks. `size`, `scale` and `dropout` are
    those of form adapter, `length` of the two vpt forms, `layers` of adapter and ssf.

    Use it where features of the frozen model are good and class means too simple for them; form small first, and the
    others where the first task is large.

    Memory: M x M + M x classes in float64 for M random features, 0.8 GB for 10,000 and three times that while it
    solves; 32 MB for 2,000. The adapter, 1.19 million weights in ViT-B/16.
    Compute: gradient steps on the first task, then one forward pass over every example and one Cholesky a task: with
    10,000 random features 10 to 20 seconds of one core.
    Defaults: the paper's 10,000 random features and the released code's adapter and loop for CIFAR-100, which are those
    of `aper`, with its least number of steps; the paper takes AdaptFormer (`adapter`), SSF (`ssf`) or VPT
    (`vpt-shallow`, `vpt-deep`) by data set, and images are cropped and flipped there too (set train.augment). The
    strength is searched among the paper's 17 powers of ten on a seeded fifth of each task's training features, where
    the released code takes the last fifth in the loader's order.
    Differs:
    - Classes grow as they come, where the released code must know their number.
    - Float64 throughout, the released code's sums are in float32.
    - Prompts start as VPT starts them, as in `aper`.

    >>> ranpac().adapt, ranpac(form="small").adapter.name, ranpac(form="small").train["epochs"]
    ('first-task', 'none', 0)
    """
    small = form == "small"
    count = (FEW if small else MANY) if random_features is None else random_features
    head = Ridge(random_features=count, strength=strength, auxiliary="cosine")
    if form == "small":
        return Method(NoAdapter(), head, adapt="first-task", train={"epochs": 0})
    adapter = first_task_adapter(form, size=size, scale=scale, dropout=dropout, length=length, layers=layers)
    return Method(adapter, head, adapt="first-task", train=DEEP_LOOP if form == "vpt-deep" else LOOP)
