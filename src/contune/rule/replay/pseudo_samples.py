"""Pseudo-samples: what a model writes when it is asked for an example of a task it has learned (LAMOL, LFPT5).

An example `prompt` -> `answer` is written as one text, `prompt SEPARATOR answer`, after the task's name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final, get_args

import numpy as np
import torch

from contune.backbone.backbone import Backbone
from contune.backbone.reader.language import PreparedConversations
from contune.backbone.reader.sampling import Sampling
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.randomness import derived_seed
from contune.errors import DataError
from contune.stream.conversation import Conversation, Measure, Message, language_examples

SEPARATOR = "__ans__"
Fate = Literal["kept", "bad separator", "bad answer", "surplus"]


@final
@dataclass(frozen=True)
class TaskForm:
    """What is remembered of a task to have examples of it written, and no example itself.

    `options`: what its answers are chosen from, where all its examples have the same. `max_new_tokens` is that of its
    longest example, 0 where none can be written. `documents`: examples are texts without a prompt. `ends`: all answers
    end. `task` is its place in the stream.
    """

    name: str
    task: int
    max_new_tokens: int
    options: tuple[str, ...] = ()
    measure: Measure = "exact-match"
    documents: bool = False
    ends: bool = True

    def values(self) -> dict[str, Any]:
        """This form as plain JSON values."""
        return {**asdict(self), "options": list(self.options)}

    @staticmethod
    def of_values(values: dict[str, Any]) -> "TaskForm":
        """The form that `values` gave.

        >>> one = TaskForm("news", 1, 40, ("sport", "art"))
        >>> TaskForm.of_values(one.values()) == one
        True
        """
        return TaskForm(**{**values, "options": tuple(values["options"])})


def form_of(name: str, task: int, max_new_tokens: int, conversations: Sequence[Conversation]) -> TaskForm:
    """The form of a task with these training examples.

    >>> chosen = Conversation((Message("user", "x"),), ("yes",), ("yes", "no"))
    >>> form_of("news", 0, 9, [chosen]).options, form_of("news", 0, 9, [chosen, replace(chosen, options=())]).options
    (('yes', 'no'), ())
    """
    options = {one.options for one in conversations}
    first = conversations[0]
    return TaskForm(
        name=name,
        task=task,
        max_new_tokens=max_new_tokens,
        options=first.options if len(options) == 1 else (),
        measure=first.measure,
        documents=any(not one.messages for one in conversations),
        ends=all(one.ends for one in conversations),
    )


def asked_for(name: str) -> tuple[Message, ...]:
    """What a model is asked with to write an example of a task: the paper's task token."""
    return (Message("user", f"generate {name}"),)


def as_writing(name: str, conversation: Conversation) -> Conversation:
    """An example turned round: asked for the task, to write prompt and answer.

    >>> as_writing("news", Conversation((Message("user", "A goal."),), ("sport",))).answer
    'A goal. __ans__ sport'
    """
    return Conversation(asked_for(name), (f"{conversation.prompt} {SEPARATOR} {conversation.answer}".strip(),))


def read_back(text: str, form: TaskForm) -> tuple[Conversation | None, Fate]:
    """The example that a written text is, or None and what is wrong with it.

    >>> form = TaskForm("news", 0, 40, ("sport", "art"))
    >>> read_back("A goal. __ans__ sport", form)[0].answer, read_back("A goal. __ans__ football", form)
    ('sport', (None, 'bad answer'))
    >>> read_back("A goal. sport", form)
    (None, 'bad separator')
    """
    pieces = text.split(SEPARATOR)
    if len(pieces) != 2:
        return None, "bad separator"
    prompt, answer = (piece.strip() for piece in pieces)
    if not prompt and not form.documents:
        return None, "bad separator"
    if not answer or (form.options and answer not in form.options):
        return None, "bad answer"
    messages = (Message("user", prompt),) if prompt else ()
    return Conversation(messages, (answer,), form.options, form.measure, form.ends), "kept"


def filtered(
    texts: Sequence[str], form: TaskForm, per_task: int, per_option: int
) -> tuple[list[Conversation], dict[str, int]]:
    """The first valid examples among these texts, and how many texts met which fate.

    At most `per_option` of every option, or `per_task` where the task has none.

    >>> texts = ["a __ans__ yes", "b __ans__ yes", "c __ans__ no", "d __ans__ __ans__ no", "no"]
    >>> found, reasons = filtered(texts, TaskForm("t", 0, 9, ("yes", "no")), 9, 1)
    >>> [one.prompt for one in found], reasons["kept"], reasons["surplus"], reasons["bad separator"]
    (['a', 'c'], 2, 1, 2)
    """
    found: list[Conversation] = []
    reasons = dict.fromkeys(get_args(Fate), 0)
    for text in texts:
        one, fate = read_back(text, form)
        if one is not None:
            alike = sum(other.answer == one.answer for other in found) if form.options else len(found)
            fate = "kept" if alike < (per_option if form.options else per_task) else "surplus"
            found += [one] if fate == "kept" else []
        reasons[fate] += 1
    return found, reasons


def filtering(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """How many texts were written for these tasks together, and how many of them are examples that are kept.

    >>> filtering({"0 news": {"written": 64, "kept": 2, "surplus": 1}, "1 sums": {"written": 64, "kept": 0}})
    {'texts written': 128, 'examples kept': 2}
    """
    if not counts:
        return {}
    return {
        "texts written": sum(each["written"] for each in counts.values()),
        "examples kept": sum(each["kept"] for each in counts.values()),
    }


def fits(conversation: Conversation, backbone: Backbone) -> bool:
    """Whether prompt and answer fit in the model whole."""
    try:
        return backbone.prepare([conversation]).truncated == 0
    except DataError:
        return False


def writings(name: str, conversations: Sequence[Conversation], backbone: Backbone) -> list[Conversation]:
    """These examples turned round; those that hold the separator themselves or do not fit are left out."""
    turned = [as_writing(name, one) for one in conversations if SEPARATOR not in one.prompt + one.answer]
    try:
        whole = backbone.prepare(turned).truncated == 0
    except DataError:
        whole = False
    return turned if whole else [one for one in turned if fits(one, backbone)]


def dataset_of(conversations: Sequence[Conversation], tasks: Sequence[int], backbone: Backbone) -> Dataset:
    """Exchanges as a data set, each with the task it belongs to."""
    examples = language_examples(conversations, range(len(conversations)))
    return Dataset.of(examples, backbone, examples.labels, np.asarray(tasks, dtype=np.int64))


def form_and_writings(context: Context) -> tuple[TaskForm, Dataset | None]:
    """What the context's task looks like, and its own examples turned round, from which a model learns to write them.

    None where no example can be written.
    """
    task, backbone, own = context.task, context.model.backbone, list(context.task.data.examples.inputs)
    turned = writings(task.name, own, backbone)
    if not turned:
        return form_of(task.name, task.index, 0, own), None
    dataset = dataset_of(turned, [task.index] * len(turned), backbone)
    assert isinstance(dataset.prepared, PreparedConversations)
    return form_of(task.name, task.index, dataset.prepared.longest_answer, own), dataset


def written_samples(context: Context, form: TaskForm, attempts: int, top: int, penalty: float) -> list[str]:
    """As many texts as `attempts`, drawn from the model as it stands after the task's name.

    Each depends on the seed, the tasks and its own number alone.
    """
    if not form.max_new_tokens or not attempts:
        return []
    backbone, seed = context.model.backbone, context.task.settings.seed
    dataset = dataset_of([Conversation(asked_for(form.name), ("",))] * attempts, [form.task] * attempts, backbone)
    modules = context.model.modules
    routes = None if modules is None else modules.routes(torch.from_numpy(dataset.tasks))
    texts: list[str] = []
    for start in range(0, attempts, context.passes.batch_size):
        rows = np.arange(start, min(start + context.passes.batch_size, attempts))
        seeds = [derived_seed(seed, "pseudo-sample", context.task.index, form.task, row) for row in rows.tolist()]
        batch = context.passes.encoding_batch(dataset, rows, routes, max_new_tokens=form.max_new_tokens)
        inputs = replace(batch.inputs, sampling=Sampling(tuple(seeds), top, penalty))
        context.passes.ledger.examples_forward += len(rows)
        with torch.no_grad():
            tokens = context.model.encode(replace(batch, inputs=inputs))[0].cpu().numpy()
        texts += [backbone.language.reader.text(row) for row in tokens]
    return texts
