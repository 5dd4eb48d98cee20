"""Written answers: short questions, and a tiny random language model."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from contune.adapter.none import NoAdapter
from contune.checks.setting import SETTINGS, Setting
from contune.checks.tiny_models import save_tiny
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.engine.learner import Learner
from contune.head.linear import Linear
from contune.method.method import Method
from contune.objective.write import read_answers, token_scores
from contune.stream.conversation import Conversation, Message, language_examples
from contune.stream.task import Kind, Task

if TYPE_CHECKING:
    from contune.checks.run import CheckRun

WORDS = ("sun", "dog", "cat", "sea", "ant", "hill", "bee", "moon")
QUESTIONS = (("big", "yes", "no"), ("red", "red", "blue"), ("old", "new", "old"))


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Where this process keeps the tiny model; gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="contune-tiny-writer-")


@cache
def writing_model() -> str:
    """The folder of a tiny random Llama with its language head, made once per process."""
    # Weights small enough that training does not blow up the last bits, which goldens compare on other processors.
    return str(save_tiny("llama-writer", Path(_folder().name) / "llama", initializer_range=0.1))


def question_task(name: str, odd: str, even: str) -> Task:
    """Eight questions with one of two answers; half of the tests are answered in writing, half by the likelier option."""
    asked = [
        Conversation((Message("user", f"Is {word} {name}"),), (odd if at % 2 else even,), (odd, even))
        for at, word in enumerate(WORDS)
    ]
    tests = [replace(one, measure="likelihood") if at % 4 < 2 else one for at, one in enumerate(asked)]
    return Task(name, ("answer",), language_examples(asked, range(8)), language_examples(tests, range(8)))


@cache
def question_tasks() -> tuple[Task, ...]:
    """Three tasks, each of one question about eight things."""
    return tuple(question_task(*question) for question in QUESTIONS)


@cache
def merged_questions() -> tuple[Task, ...]:
    """The third question, then the other two as one task."""
    first, second, third = question_tasks()
    both = language_examples([*second.train.inputs, *first.train.inputs], range(16))
    return third, Task("merged", first.class_names, both, second.test)


def nats_per_token(learner: Learner, task: Task) -> float:
    """What the right answers of a task cost a learner that has met it."""
    data = learner.test_dataset(task)
    reading = read_answers(learner.reading(data), data)
    return float(reading.nats.sum() / reading.tokens.sum())


@cache
def untouched_nats(task: Task) -> float:
    """What they cost the untouched model."""
    learner = SETTING.learner(Method(NoAdapter(), Linear()))
    learner.begin(task)
    return nats_per_token(learner, task)


def not_likelier(learner: Learner, task: Task) -> str | None:
    """What is wrong where the right answers of the task just learned are hardly likelier than before, or None."""
    now, before = nats_per_token(learner, task), untouched_nats(task)
    if now < 0.99 * before:
        return None
    return f"the answers of the last task cost {now:.2f} nats a token, those of the untouched model {before:.2f}"


@final
class Answers(Setting):
    """Answers written by the model's own language head."""

    name: ClassVar[str] = "answers"
    objective: ClassVar[str] = "write"
    kinds: ClassVar[tuple[Kind, ...]] = ("domain-incremental",)
    train: ClassVar[Mapping[str, Any]] = {**SETTINGS, "epochs": 6, "batch_size": 4, "lr": 1e-2}

    def model(self) -> str:
        return writing_model()

    def tasks(self) -> tuple[Task, ...]:
        return question_tasks()

    def pointless(self, learner: Learner) -> str | None:
        if learner.begin(self.tasks()[0]).model.trained():
            return None
        return "nothing of it would be trained, because answers come from the model's own head, which stays as it is"

    def other_orders(self) -> tuple[Task, ...]:
        return merged_questions()

    def not_learned(self, trial: "CheckRun") -> str | None:
        return not_likelier(trial.learner, self.tasks()[-1])

    def not_learned_in_order(self, learner: Learner, scores: Sequence[float]) -> str | None:
        return not_likelier(learner, self.other_orders()[-1])

    def answered(self, task: Task) -> list[int]:
        """Not those where a run asks which of two options is likelier."""
        return [at for at, one in enumerate(task.test.inputs) if one.measure not in ("likelihood", "tokens")]

    def possible(self, learner: Learner, answers: Sequence[Any]) -> bool:
        return all(isinstance(answer, str) for answer in answers)

    def outputs(self, context: Context, dataset: Dataset) -> Mapping[str, Tensor]:
        features, scores = [], []
        for _, batch, found in token_scores(context, dataset):
            with torch.no_grad():
                features.append(context.model.encode(batch)[0])
            scores.append(found)
        return {"features": torch.cat(features), "scores": torch.cat(scores)}


SETTING = Answers()
