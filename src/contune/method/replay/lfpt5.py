"""LFPT5: one soft prompt that solves tasks and writes examples of earlier ones to itself (arXiv 2110.07298)."""

from contune.adapter.prompt.prefix import Prompt
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.pseudo_replay import PseudoReplay


def lfpt5(
    *,
    length: int = 50,
    writing: float = 0.25,
    distillation: float = 0.01,
    attempts: int = 64,
    per_task: int = 16,
    per_option: int = 2,
    top: int = 64,
    repetition_penalty: float = 2.5,
) -> Method:
    """Train one prompt to answer and to write the task's examples; later tasks replay what it writes of earlier ones.

    For streams of kind language alone; those of classes are refused. Nothing real is kept, and the model stays as it is.
    Memory: length x d, twice in a task, the tasks' names and options, and the written examples of the task. Compute: a
    step has about twice the rows, once solved and once written; before each task `attempts` texts per earlier one.
    Writing well takes a prompt that was trained for long: with few steps nearly all texts are invalid, which the rule's
    `counts` says, and learning then goes on without replay.

    Differs: the prompt comes before the input, there after it; it starts from small random values, there from embeddings
    of the labels and of frequent words; 50 tokens, there 300. Optimizer AdamW with the loop's clipping, there Adafactor
    with rate 0.5, for up to 1280 epochs on 16 examples a class; the last step counts, there the best on validation data,
    so that all written examples train, 2 an option, where the paper trains on 2 and validates on 2. Examples are written
    from the task's name alone; the released code takes lines of the old tasks' test files as carriers of that name. A
    text is drawn from its own seed. KL has one factor for all batch sizes, see the rule.

    >>> lfpt5().rules[0].name
    'pseudo-replay'
    """
    rule = PseudoReplay(
        writing=writing,
        distillation=distillation,
        attempts=attempts,
        per_task=per_task,
        per_option=per_option,
        top=top,
        repetition_penalty=repetition_penalty,
    )
    train = {"lr": 2e-2, "epochs": 20, "batch_size": 8, "weight_decay": 1e-5, "warmup": 0.01, "clip": 1.0}
    return Method(Prompt(length=length), Linear(), (rule,), train=train)
