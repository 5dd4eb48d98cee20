"""Many classes of few examples cost what few classes of many do, and are the same class means."""

import numpy as np
import pytest
import torch

from contune.checks.settings.texts import text_model
from contune.contract.objective import Ranked
from contune.engine.learner import Learner
from contune.objective.classify import predictions_of
from contune.stream.task import Examples, Task

COUNT = 300


def task_of(classes: int) -> Task:
    texts, labels = [f"text {number:03d}" for number in range(COUNT)], np.arange(COUNT) % classes
    examples = Examples(texts, labels, np.arange(COUNT), "text")
    return Task("many", tuple(f"class {number}" for number in range(classes)), examples, examples)


def learned(classes: int) -> tuple[Learner, int]:
    learner, passes = Learner(text_model(), "nmc"), []
    learner.backbone.model.register_forward_hook(lambda *_: passes.append(1))
    learner.learn(task_of(classes))
    return learner, len(passes)


def test_classes_of_one_example_share_forward_passes() -> None:
    _, few = learned(3)
    many, passes = learned(COUNT)
    assert passes <= few + 3  # 300 before classes of few examples shared them
    answers = many.predict(task_of(COUNT).train.inputs)
    assert np.mean([answer == f"class {number}" for number, answer in enumerate(answers)]) == 1.0


def test_their_means_are_their_features() -> None:
    learner, _ = learned(COUNT)
    data = learner.test_dataset(task_of(COUNT))
    alone = torch.cat(
        [learner.backbone.features(learner.backbone.collate([(data.prepared, np.array([row]))])) for row in range(5)]
    )
    assert torch.allclose(learner.method.head.state().tensors["sums"][:5].float(), alone, atol=1e-5)


def test_scores_are_listed_best_first_ties_in_order() -> None:
    scores = Ranked(["a", "b", "c"], np.array([0.25, 0.5, 0.25]))
    assert list(scores.items()) == [("b", 0.5), ("a", 0.25), ("c", 0.25)]
    assert list(scores) == ["b", "a", "c"]
    assert scores == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert (scores["c"], len(scores), "d" in scores) == (0.25, 3, False)
    with pytest.raises(KeyError, match="d"):
        scores["d"]


def test_closed_columns_score_nothing_and_the_first_of_equals_answers() -> None:
    (one,) = predictions_of(torch.tensor([[0.0, 0.0, float("-inf")]]), ["a", "b", "c"])
    assert (one, one.score, one.scores["c"], one.unknown) == ("a", 0.5, 0.0, 0.5)
