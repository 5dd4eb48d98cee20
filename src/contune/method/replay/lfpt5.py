"""LFPT5: one soft prompt that solves tasks and writes examples of earlier ones to itself (arXiv 2110.07298)."""

from typing import Annotated

from contune.adapter.prompt.prefix import Prompt
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.pseudo_replay import PseudoReplay


def lfpt5(
    *,
    length: Annotated[int, Prompt, "ours; paper: 300"] = 50,
    writing: Annotated[float, PseudoReplay] = 0.25,
    distillation: Annotated[float, PseudoReplay] = 0.01,
    attempts: Annotated[int, PseudoReplay] = 64,
    per_task: Annotated[int, PseudoReplay] = 16,
    per_option: Annotated[int, PseudoReplay] = 2,
    top: Annotated[int, PseudoReplay] = 64,
    repetition_penalty: Annotated[float, PseudoReplay] = 2.5,
) -> Method:
    """Train one prompt to answer and to write the task's examples; later tasks replay what it writes of earlier ones.

    Nothing real is kept, and the model stays as it is.

    Use it where answers are written alone, classes are refused, and train for long: with few steps nearly
    all texts are invalid, which the rule's `counts` says, and learning then goes on without replay.

    Memory: length x d, twice in a task, the tasks' names and options, and the written examples of the task.
    Compute: a step has about twice the rows, once solved and once written; before each task `attempts` texts per
    earlier one.
    Defaults: weights, `top` and penalty of the released code; 50 tokens where the paper has 300.
    Differs:
    - The prompt comes before the input, there after it; it starts from small random values, there from embeddings of
      the labels and of frequent words.
    - Optimizer AdamW with the loop's clipping, there Adafactor with rate 0.5, for up to 1280 epochs on 16 examples a
      class.
    - The last step counts, there the best on validation data, so that all written examples train, 2 an option, where
      the paper trains on 2 and validates on 2.
    - Examples are written from the task's name alone; the released code takes lines of the old tasks' test files as
      carriers of that name. A text is drawn from its own seed.
    - KL has one factor for all batch sizes, see rule pseudo-replay.

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
