"""k-FPF: plain training, interrupted by short fine-tuning of what forgets most (arXiv 2304.04158)."""

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.forgetting_prioritised import ForgettingPrioritised


def k_fpf(
    *,
    phases: int = 3,
    iterations: int = 20,
    size: int = 500,
    batch_size: int = 32,
    phase_lr: float = 0.05,
    distil: float = 0.0,
    lr_scale: float = 0.01,
) -> Method:
    """Train every weight without replay; `phases` times a task fine-tune head and layer norms alone on a buffer.

    With `distil` above 0 the phases also match stored logits (k-FPF-KD). Memory: `size` examples, and the whole model,
    which replaces the base. Compute: as plain fine-tuning, plus phases x iterations x batch_size examples a task.
    Differs: phases are counted per task, as the length of the stream is not known; layer norms stand for batch norms;
    the buffer is balanced by class. Numbers of phases and iterations are our choice, the paper's are not known to us.

    >>> k_fpf().rules[0].name
    'forgetting-prioritised'
    """
    rule = ForgettingPrioritised(
        phases=phases, iterations=iterations, size=size, batch_size=batch_size, lr=phase_lr, distil=distil
    )
    return Method(full(lr_scale=lr_scale), Linear(), (rule,), train={"lr": 1e-2, "epochs": 5})
