"""I-LoRA: the slow copy moves as it should, answers, and holds the states of what is rehearsed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_tasks import experience
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.numerics.averages import moved_average
from contune.rule.average.ema_teacher import REHEARSAL, EmaTeacher, rows_of, states_of, token_distances, warm_decay
from contune.stream.task import Task

TRAIN = {**SETTINGS, "weight_decay": 0.1}
Values = dict[str, Tensor]


def learner_of(case: str = "digits", **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case == "llama-writer" else {}
    return Learner(model, build_method("i-lora", options), train=TRAIN, device="cpu", **kind)


def tasks_of(case: str) -> list[Task]:
    if case == "llama-writer":
        return [experience("big"), experience("red", "red", "blue")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def rule_of(learner: Learner) -> EmaTeacher:
    (rule,) = learner.method.rules
    assert isinstance(rule, EmaTeacher)
    return rule


def values_of(context: Context) -> Values:
    return {name: value.detach().clone() for name, value in context.model.trained().items()}


def trajectory(learner: Learner, task: Task) -> list[Values]:
    """The trained tensors at the start of a task and after each of its steps."""
    context = learner.begin(task)
    found = [values_of(context)]
    learner.fit(context, lambda report: found.append(values_of(context)))
    learner.end(context)
    return found


def equal(first: Values, second: Values) -> bool:
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def recursion(slow: Values, fast: list[Values], decay: float, step: int) -> Values:
    """The slow copy after these steps, by its definition."""
    for values in fast:
        slow, step = moved_average(slow, values, min(1 - 1 / (step + 1), decay)), step + 1
    return slow


@pytest.mark.parametrize("decay", [0.25, 0.99])
def test_the_slow_copy_moves_as_defined_and_answers(decay: float) -> None:
    learner, steps = learner_of(decay=decay), 0
    for task in digit_tasks()[:2]:
        context = learner.begin(task)
        slow = {name: value.clone() for name, value in rule_of(learner)._slow.items()}
        start, found = values_of(context), list[Values]()
        learner.fit(context, lambda report, c=context, f=found: f.append(values_of(c)))  # type: ignore[misc]
        expected = recursion(slow, found, decay, steps)
        frozen = recursion(slow, [slow] * len(found), decay, steps)  # the released code: an average with itself
        steps += len(found)
        learner.end(context)
        assert equal(values_of(context), expected)
        assert not equal(values_of(context), frozen)
        assert not equal(values_of(context), found[-1])
        assert not equal(start, found[-1])
    assert rule_of(learner)._steps == steps


def test_the_first_step_makes_both_alike() -> None:
    learner = learner_of()
    context, seen = learner.begin(digit_tasks()[0]), list[bool]()
    learner.fit(context, lambda report: seen.append(equal(rule_of(learner)._slow, values_of(context))))
    assert seen[0]
    assert not any(seen[1:])


def test_without_weight_and_examples_the_fast_one_is_plain_lora() -> None:
    plain = Learner(tiny_model(), build_method("lora", {"alpha": 32.0, "loss_over": "seen"}), train=TRAIN)
    ours = learner_of(weight=0.0, size=0)
    for task in digit_tasks():
        first, second = trajectory(plain, task), trajectory(ours, task)
        assert len(first) > 5
        assert all(equal(one, other) for one, other in zip(first, second, strict=True))


def test_with_weight_and_examples_it_is_not() -> None:
    ends = []
    for options in ({"weight": 0.0, "size": 0}, {"weight": 0.0}, {}):
        learner = learner_of(**options)
        learner.learn(digit_tasks()[0])
        ends.append(trajectory(learner, digit_tasks()[1])[-1])
    assert not equal(ends[0], ends[1])
    assert not equal(ends[1], ends[2])


def test_no_decay_and_no_examples_leave_the_carrier_as_it_is() -> None:
    ends = []
    for rules in ([], [{"ema-teacher": {"decay": 0.0, "size": 0}}]):
        learner = Learner(tiny_model(), compose({"adapter": "lora", "head": "linear", "rules": rules}), train=TRAIN)
        for task in digit_tasks()[:2]:
            learner.learn(task)
        ends.append(learner.state())
    assert all(same_state(ends[0].inner(part), ends[1].inner(part)) is None for part in ("adapter", "head"))


def test_the_fast_one_goes_on_where_it_was() -> None:
    learner = learner_of(size=0)
    first, second = (trajectory(learner, task) for task in digit_tasks()[:2])
    for name, value in first[-1].items():
        assert torch.equal(second[0][name][: len(value)], value)
    assert any(len(second[0][name]) > len(value) for name, value in first[-1].items()), "the head has grown"


@given(st.integers(1, 60), st.sampled_from([0.0, 0.25, 0.99]))
def test_towards_fast_values_that_stay_the_error_is_the_product_of_decays(steps: int, decay: float) -> None:
    slow, error = {"a": torch.tensor([1.0], dtype=torch.float64)}, 1.0
    for step in range(1, steps + 1):
        error *= warm_decay(step, decay)
        slow = moved_average(slow, {"a": torch.tensor([0.0], dtype=torch.float64)}, warm_decay(step, decay))
    assert slow["a"].item() == pytest.approx(error)
    assert warm_decay(0, decay) == 0


def test_factors_are_averaged_and_not_products() -> None:
    learner = learner_of(decay=0.9)
    found = trajectory(learner, digit_tasks()[0])[1:]
    context = learner.reading(None)
    down = next(name for name in context.model.trained() if "lora_A" in name)
    up = down.replace("lora_A", "lora_B")
    product = {"p": found[0][up] @ found[0][down]}
    for step, values in enumerate(found[1:], 1):
        product = moved_average(product, {"p": values[up] @ values[down]}, warm_decay(step, 0.9))
    slow = values_of(context)
    assert float((slow[up] @ slow[down] - product["p"]).abs().max()) > 1e-5


def second_task(case: str, **options: Any) -> tuple[Learner, Context, Batch]:
    """A learner in its second task, and a batch with rehearsed examples."""
    learner = learner_of(case, **options)
    first, second = tasks_of(case)[:2]
    learner.learn(first)
    context = learner.begin(second)
    (chosen,) = rule_of(learner).select(context, 0, 0).values()
    parts = [(context.task.data, chosen.rows[:3]), (chosen.dataset, chosen.rows)]
    counts = [dataset.prepared.units(rows) for dataset, rows in parts]
    segments = {"task": slice(0, counts[0]), REHEARSAL: slice(counts[0], sum(counts))}
    batch = context.passes.batch(parts, segments=segments, counts=dict(zip(segments, counts, strict=True)))
    return learner, context, batch


@pytest.mark.parametrize("case", ["digits", "bert", "llama-writer"])
@pytest.mark.parametrize("target", ["slow", "larger"])
def test_the_distance_of_states_by_hand(case: str, target: str) -> None:
    """Each rehearsed example alone, so without padding."""
    learner, context, batch = second_task(case, weight=2.0, target=target, size=6, batch_size=6)
    rule, layers = rule_of(learner), context.model.backbone.layers
    assert rule._kept.ready is not None
    total = []
    for row in batch.parts[1][1]:
        one = context.passes.batch([(rule._kept.ready, row[None])])
        with torch.no_grad():
            with states_of(layers) as fast:
                context.model.encode(one)
            with context.model.swapped(rule._slow), states_of(layers) as slow:
                context.model.encode(one)
        assert len(fast) == context.model.backbone.depth
        for at, state in fast.items():
            wanted = torch.maximum(state, slow[at]) if target == "larger" else slow[at]
            total.append(float((state - wanted).square().mean()) / context.model.backbone.depth)
    found = rule.loss(context, batch, context.model.forward(batch))
    assert found is not None
    assert found.item() == pytest.approx(2.0 * sum(total) / len(batch.parts[1][1]), rel=1e-3)
    assert found.item() > 0


def test_there_is_no_distance_where_both_are_alike_and_no_gradient_into_the_slow_one() -> None:
    learner, context, batch = second_task("digits", size=8)
    rule = rule_of(learner)
    apart = rule.loss(context, batch, context.model.forward(batch))
    assert apart is not None
    gradients = torch.autograd.grad(apart, list(context.model.trained().values()), allow_unused=True)
    assert any(g is not None and float(g.abs().max()) > 0 for g in gradients)
    assert not any(value.requires_grad for value in rule._slow.values())
    context.model.write(rule._slow)
    alike = rule.loss(context, batch, context.model.forward(batch))
    assert alike is not None
    assert alike.item() == 0


def test_one_sided_distance_pulls_upwards_only() -> None:
    fast = torch.tensor([[[1.0, 5.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(token_distances(fast, torch.full((1, 1, 2), 3.0), None, rising=True).sum(), fast)
    assert gradient[0, 0, 0] < 0
    assert gradient[0, 0, 1] == 0


def test_padding_and_prompts_do_not_count() -> None:
    fast, mask = torch.tensor([[[9.0], [1.0], [7.0]]]), torch.tensor([[True, False]])
    assert token_distances(fast, torch.zeros(1, 3, 1), mask, rising=False).item() == 1.0


def test_rehearsed_rows_are_found_in_a_batch() -> None:
    learner, _, batch = second_task("bert", size=4)
    rule = rule_of(learner)
    assert rule._kept.ready is not None
    found = rows_of(batch, rule._kept.ready)
    assert found is not None
    assert found.inputs.ids is not None
    assert batch.inputs.ids is not None
    assert torch.equal(found.inputs.ids, batch.inputs.ids[3:])
    assert rows_of(replace(batch, parts=batch.parts[:1]), rule._kept.ready) is None


def test_examples_are_rehearsed_from_the_second_task_on_and_as_many_as_the_task_has() -> None:
    learner = learner_of(size=30)
    rule = rule_of(learner)
    context = learner.begin(digit_tasks()[0])
    assert rule.select(context, 0, 0) == {}
    learner.fit(context, lambda report: None)
    learner.end(context)
    context = learner.begin(digit_tasks()[1])
    (chosen,) = rule.select(context, 0, 0).values()
    assert len(chosen.rows) == context.task.settings.batch_size == 16
    assert set(chosen.dataset.tasks.tolist()) == {0}


def test_old_answers_are_kept_better_than_by_the_fast_one() -> None:
    harms = {}
    for name, options in {"lora": {"alpha": 32.0}, "i-lora": {"decay": 0.25}}.items():
        learner = Learner(tiny_model(), build_method(name, options), train=TRAIN)
        for task in digit_tasks():
            learner.learn(task)
        data = learner.test_dataset(digit_tasks()[0])
        harms[name] = float((learner.answers(data) == data.labels).mean())
    assert harms["i-lora"] > harms["lora"] + 0.1


def test_what_makes_no_sense_is_refused() -> None:
    for options in ({"decay": 1.5}, {"weight": -1.0}, {"size": -1}):
        with pytest.raises(ConfigError):
            build_method("i-lora", options)
    assert isinstance(build_method("i-lora", {}).head, Linear)


@pytest.mark.parametrize("case", ["bert", "digits"])
def test_it_resumes_exactly(case: str) -> None:
    learner, again = learner_of(case, size=6), learner_of(case, size=6)
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None
