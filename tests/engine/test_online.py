"""Streams without tasks: chunks, momentum that lives across them, buffers that fill as data comes, and no labels at all."""

import numpy as np
import pytest
import torch

from contune.checks.run import copied, digit_tasks, same_state, tiny_model
from contune.engine.learner import Learner
from contune.engine.steps.stepper import Stepper
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import compose
from contune.rule.replay.buffer import Buffer, offered
from contune.stream.events import Arrive, Ask, Boundary, events_in_chunks, events_of_tasks, task_of
from contune.stream.task import Stream, Task

STREAM = Stream("digits", "class-incremental", digit_tasks())
SGD = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "clip": None}


def chunks(size: int, ask_every: int = 10**9) -> list[Arrive]:
    return [event for event in events_in_chunks(STREAM, size, ask_every, seed=0) if isinstance(event, Arrive)]


def learner_of(method: str = "lora", **options: object) -> Learner:
    return Learner(tiny_model(), method, train=SGD, **options)


def test_a_stream_of_tasks_is_its_events() -> None:
    kinds = [type(event) for event in events_of_tasks(STREAM)]
    assert kinds == [Arrive, Boundary, Ask] * 3


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_chunks_hold_every_example_once_and_say_nothing_of_tasks(size: int) -> None:
    events = list(events_in_chunks(STREAM, size, 20, seed=3))
    assert not any(isinstance(event, Boundary) for event in events)
    arrived = np.concatenate([event.examples.ids for event in events if isinstance(event, Arrive)])
    assert sorted(arrived) == sorted(np.concatenate([task.train.ids for task in STREAM.tasks]))
    assert all(len(event.examples) <= size for event in events if isinstance(event, Arrive))
    assert isinstance(events[-1], Ask)
    with pytest.raises(ConfigError, match="chunk is 0"):
        list(events_in_chunks(STREAM, 0, 20, seed=0))


def test_steps_of_a_chunk_are_those_of_plain_sgd_with_momentum_across_chunks() -> None:
    """The planted fault is a stepper that starts anew with every chunk."""
    one, fresh = learner_of("linear-probe"), learner_of("linear-probe")
    for learner in (one, fresh):
        for chunk in chunks(5)[:3]:
            if learner is fresh:
                object.__setattr__(learner, "_stepper", learner._stepper and Stepper())
            learner.observe(chunk, steps=1)
    velocity = weight = None
    plain = learner_of("linear-probe")
    for chunk in chunks(5)[:3]:
        plain.observe(chunk, steps=0)
        head = plain.method.head.trained()
        context = plain.context([task_of(chunk, "chunk")], len(plain.class_names))
        outputs = context.model.forward(context.passes.batch([(context.task.data, np.arange(5))]))
        loss = torch.nn.functional.cross_entropy(outputs.logits, torch.from_numpy(context.task.data.labels))
        gradients = torch.autograd.grad(loss, list(head.values()))
        velocity = [
            g if velocity is None else 0.9 * v + g for v, g in zip(velocity or gradients, gradients, strict=True)
        ]
        with torch.no_grad():
            for parameter, v in zip(head.values(), velocity, strict=True):
                parameter -= 0.05 * v
        weight = head["weight"]
    assert weight is not None
    torch.testing.assert_close(one.method.head.trained()["weight"], weight)
    assert not torch.allclose(fresh.method.head.trained()["weight"], weight)


def test_fractions_of_steps_are_carried_over() -> None:
    stepper = Stepper()
    assert [stepper.steps_for(1, 0.3) for _ in range(10)].count(1) == 3
    assert stepper.steps_for(10, 2.5) == 25


@pytest.mark.parametrize("size", [1, 4, 40])
def test_the_law_of_a_reservoir_does_not_depend_on_the_chunks(size: int) -> None:
    """Of 40 examples each is kept with probability 10 / 40; the planted fault offers the last chunk alone."""
    task = digit_tasks()[0]
    from contune.backbone.backbone import Backbone
    from contune.backbone.config import ModelConfig
    from contune.contract.data import Dataset

    backbone = Backbone.load(ModelConfig(path=tiny_model()))
    rows = np.arange(40)
    zeros = np.zeros(40, dtype=np.int64)
    data = Dataset.of(task.train.take(rows), backbone, zeros, zeros)
    counts, last = np.zeros(40), np.zeros(40)
    for seed in range(400):
        buffer = Buffer.empty(backbone.modality)
        for start in range(0, 40, size):
            here = np.arange(start, min(start + size, 40))
            part = Dataset(data.examples.take(here), data.prepared.take(here), zeros[here], zeros[here])
            buffer = offered(buffer, part, 10, "reservoir", np.random.default_rng((seed, start)), None)
            only = offered(Buffer.empty(backbone.modality), part, 10, "reservoir", np.random.default_rng(seed), None)
        place = {number: at for at, number in enumerate(data.examples.ids.tolist())}
        counts[[place[number] for number in buffer.examples.ids.tolist()]] += 1
        last[[place[number] for number in only.examples.ids.tolist()]] += 1
    expected, deviation = 100.0, (400 * 0.25 * 0.75) ** 0.5
    assert abs(counts - expected).max() < 4.5 * deviation
    assert size == 40 or abs(last - expected).max() > 4.5 * deviation


@pytest.mark.parametrize("method", ["nmc", "er", "lora"])
def test_a_learner_of_chunks_learns_and_goes_on_to_the_bit(method: str) -> None:
    options = {"size": 20, "batch_size": 4} if method == "er" else {}
    learner = learner_of(method, **options)
    stream = chunks(6)
    for chunk in stream[:8]:
        learner.observe(chunk)
    again = learner_of(method, **options)
    again.load_state(copied(learner.state()))
    for chunk in stream[8:]:
        learner.observe(chunk)
        again.observe(chunk)
    assert same_state(learner.state(), again.state()) is None
    assert learner.evaluate(STREAM.tasks[-1]).mean > 0.3  # type: ignore[operator]


def test_class_means_answer_alike_however_the_examples_come() -> None:
    whole = Learner(tiny_model(), "nmc")
    for task in STREAM.tasks:
        whole.learn(task)
    inputs = [image for task in STREAM.tasks for image in task.test.inputs[:10]]
    for size in (1, 9):
        parts = learner_of("nmc")
        for chunk in chunks(size):
            parts.observe(chunk)
        assert parts.predict(inputs) == whole.predict(inputs)


@pytest.mark.parametrize("method", ["ewc", "lwf", "o-lora", "dualprompt", "ease", "slca", "joint"])
def test_a_method_that_waits_for_the_end_of_a_task_is_refused(method: str) -> None:
    with pytest.raises(CombinationError, match=r"task"):
        learner_of(method).observe(chunks(5)[0])


def test_tasks_and_chunks_do_not_mix() -> None:
    learner = learner_of()
    learner.observe(chunks(5)[0])
    with pytest.raises(ConfigError, match="go on with observe"):
        learner.learn(STREAM.tasks[0])
    learned = learner_of()
    learned.learn(STREAM.tasks[0])
    with pytest.raises(ConfigError, match="go on with learn"):
        learned.observe(chunks(5)[0])


def adapting(weight: float = 1.0) -> Learner:
    method = {"adapter": "layer-norm", "head": "linear", "rules": [{"entropy-minimisation": {"weight": weight}}]}
    learner = Learner(tiny_model(), compose(method), train={"epochs": 3, "lr": 1e-2})
    learner.learn(STREAM.tasks[0])
    return learner


def test_adapting_answers_first_and_makes_answers_surer_without_a_label() -> None:
    learner, still = adapting(), adapting(0.0)
    images = list(STREAM.tasks[0].test.inputs)
    before = learner.predict(images)
    assert learner.adapt(images) == before
    assert still.adapt(images) == before
    for _ in range(4):
        learner.adapt(images)
    after = learner.predict(images)
    assert np.mean([one.score for one in after]) > np.mean([one.score for one in before])
    assert still.predict(images) == before
    with pytest.raises(ConfigError, match="nothing in this method learns without labels"):
        learner_of().adapt(images)


def test_a_task_without_tests_is_enough_to_observe() -> None:
    learner = learner_of("nmc")
    task = STREAM.tasks[0]
    learner.observe(Task("january", task.class_names, task.train, task.test.take([])))
    assert set(learner.class_names) == set(task.class_names)
