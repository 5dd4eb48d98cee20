"""k-FPF: plain training, interrupted by short fine-tuning of what forgets most (arXiv 2304.04158)."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method
from contune.method.options import of
from contune.rule.replay.forgetting_prioritised import ForgettingPrioritised


def k_fpf(
    *,
    phases: Annotated[int, ForgettingPrioritised] = 3,
    iterations: Annotated[int, ForgettingPrioritised] = 20,
    size: Annotated[int, ForgettingPrioritised] = 500,
    batch_size: Annotated[int, ForgettingPrioritised] = 32,
    phase_lr: Annotated[float, of(ForgettingPrioritised, "lr")] = 0.05,
    distil: Annotated[float, ForgettingPrioritised] = 0.0,
    lr_scale: Annotated[float, full] = 0.01,
) -> Method:
    """Train every weight without replay; `phases` times a task fine-tune head and layer norms alone on a buffer.

    With `distil` above 0 the phases also match stored logits (k-FPF-KD).

    Use it where replay in every step is too expensive.

    Memory: `size` examples, and the whole model, which replaces the base.
    Compute: as plain fine-tuning, plus phases x iterations x batch_size examples a task.
    Defaults: numbers of phases and iterations, rates and epochs are our choice, the paper's are not known to us.
    Differs:
    - Phases are counted per task, as the length of the stream is not known.
    - Layer norms stand for batch norms.
    - The buffer is balanced by class.

    >>> k_fpf().rules[0].name
    'forgetting-prioritised'
    """
    rule = ForgettingPrioritised(
        phases=phases, iterations=iterations, size=size, batch_size=batch_size, lr=phase_lr, distil=distil
    )
    return Method(full(lr_scale=lr_scale), Linear(), (rule,), train={"lr": 1e-2, "epochs": 5})
