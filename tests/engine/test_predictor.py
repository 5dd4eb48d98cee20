"""A learner at work: saved and loaded, asked by several threads, and keeping nothing of what it was asked."""

import threading
from pathlib import Path

import numpy as np
import pytest

from contune.checks.run import digit_tasks, tiny_model
from contune.engine.learner import Learner
from contune.errors import ConfigError, RunDirectoryError
from contune.method.catalog import build_method


def learned(method: str = "lora", **options: object) -> Learner:
    learner = Learner(tiny_model(), method, train={"epochs": 2}, **options)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    return learner


def images(count: int = 12) -> list:
    return [image for task in digit_tasks()[:2] for image in task.test.inputs[: count // 2]]


@pytest.mark.parametrize("method", ["lora", "er", "ease", "ranpac"])
def test_a_saved_learner_gives_the_same_answers_and_goes_on_to_the_same_bits(method: str, tmp_path: Path) -> None:
    options = {"form": "small", "random_features": 32} if method == "ranpac" else {}
    learner = learned(method, **options)
    folder = learner.save(tmp_path / "kept")
    again = Learner.load(folder)
    found, expected = again.predict(images()), learner.predict(images())
    assert [(one, one.score) for one in found] == [(one, one.score) for one in expected]
    for each in (learner, again):
        each.learn(digit_tasks()[2])
    assert again.predict(images()) == learner.predict(images())
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        learner.save(folder)


def test_a_damaged_learner_names_itself_and_one_of_a_method_of_its_own_asks_for_it(tmp_path: Path) -> None:
    learner = Learner(tiny_model(), build_method("nmc", {}))
    learner.learn(digit_tasks()[0])
    folder = learner.save(tmp_path / "own")
    with pytest.raises(ConfigError, match="give that as method="):
        Learner.load(folder)
    assert Learner.load(folder, method=build_method("nmc", {})).predict(images(2)) == learner.predict(images(2))
    tensors = folder / "state.safetensors"
    damaged = bytearray(tensors.read_bytes())
    damaged[-1] ^= 1
    tensors.write_bytes(damaged)
    with pytest.raises(RunDirectoryError, match="does not match its checksum"):
        Learner.load(folder, method=build_method("nmc", {}))


@pytest.mark.parametrize("method", ["lora", "ease", "l2p"])
def test_threads_that_ask_at_once_get_the_answers_of_one_after_the_other(method: str) -> None:
    predictor = learned(method).predictor()
    alone = [predictor.predict([image])[0] for image in images()]
    found: dict[int, list] = {}

    def ask(number: int) -> None:
        found[number] = [predictor.predict([image])[0] for image in images()]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(answers == alone for answers in found.values())
    assert len(found) == 3


def test_nothing_is_kept_of_what_was_asked() -> None:
    learner = learned("nmc")
    learner.predict(images(2))
    before = learner.feature_cache.memory_cache.nbytes()
    generator = np.random.default_rng(0)
    for _ in range(30):
        learner.predict([generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)])
    assert learner.feature_cache.memory_cache.nbytes() == before
    data = learner.test_dataset(digit_tasks()[0])
    learner.judge(data)  # what measures a run is kept: it is asked again after every task
    assert learner.feature_cache.memory_cache.nbytes() > before


def test_scores_and_learners_say_what_they_are() -> None:
    learner = learned("nmc")
    scores = learner.evaluate(digit_tasks()[:2])
    assert list(scores.values) == [task.name for task in digit_tasks()[:2]]
    assert repr(scores).startswith("Accuracy 0.")
    assert "'nmc', classify: " in repr(learner)
    assert "2 tasks" in repr(learner)
    (answer,) = learner.predict(images(2)[:1])
    assert answer.scores[str(answer)] == max(answer.scores.values())
    assert 0 <= answer.unknown <= 1
