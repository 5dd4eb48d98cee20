"""Rules: their identities, and that a rule of no strength is no rule."""

import numpy as np
import pytest
import torch

from contune.adapter.prompt.components import component_weights, orthonormal_rows
from contune.checks.run import digit_tasks, new_learner, same_state
from contune.contract.state import State
from contune.method.catalog import build_method
from contune.numerics.divergences import softmax_divergence
from contune.rule.anchor.anchor import anchored_distance
from contune.rule.replay.buffer import Buffer, class_balanced, reservoir


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("er", {"size": 0}),
        ("der++", {"alpha": 0.0, "beta": 0.0}),
        ("lwf", {"weight": 0.0, "warmup": 0.0}),
        ("l2", {"strength": 0.0}),
        ("ewc", {"strength": 0.0}),
        ("mas", {"strength": 0.0}),
    ],
)
def test_no_strength_is_sequential_lora_to_the_bit(name: str, options: dict[str, float]) -> None:
    over = {"loss_over": build_method(name, {}).head.loss_over}
    plain, ruled = new_learner(build_method("lora", over)), new_learner(build_method(name, options))
    for task in digit_tasks()[:2]:
        plain.learn(task)
        ruled.learn(task)
    states = [State({n: t for n, t in x.state().tensors.items() if not n.startswith("rule")}) for x in (plain, ruled)]
    assert same_state(*states) is None


@pytest.mark.parametrize("name", ["er", "der++", "lwf", "l2", "ewc", "mas"])
def test_a_rule_of_some_strength_changes_the_result(name: str) -> None:
    over = {"loss_over": build_method(name, {}).head.loss_over}
    plain, ruled = new_learner(build_method("lora", over)), new_learner(build_method(name, {}))
    for task in digit_tasks()[:2]:
        plain.learn(task)
        ruled.learn(task)
    assert not torch.equal(plain.state().tensors["head/weight"], ruled.state().tensors["head/weight"])


def test_reservoir_keeps_everything_seen_with_equal_probability() -> None:
    counts = np.zeros(20)
    generator = np.random.default_rng(0)
    for _ in range(4000):
        first = reservoir(0, 0, 12, 5, generator)
        second = reservoir(5, 12, 8, 5, generator)
        for place in second:
            counts[first[place] if place < 5 else 12 + place - 5] += 1
    assert np.abs(counts / 4000 - 5 / 20).max() < 0.03


def test_class_balanced_shares_are_equal() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 50])
    places = class_balanced(labels, 30, np.random.default_rng(1))
    assert np.bincount(labels[places]).tolist() == [12, 7, 11]


def test_anchor_has_no_pull_at_the_anchor_and_fisher_one_is_l2() -> None:
    anchor = {"a": torch.randn(3, 2), "b": torch.randn(4)}
    current = {name: tensor.clone().requires_grad_() for name, tensor in anchor.items()}
    distance = anchored_distance(current, anchor)
    distance.backward()
    assert distance.item() == 0
    assert all(float(tensor.grad.abs().max()) == 0 for tensor in current.values())
    moved = {name: tensor + 0.5 for name, tensor in anchor.items()}
    ones = {name: torch.ones_like(tensor) for name, tensor in anchor.items()}
    assert torch.equal(anchored_distance(moved, anchor, ones), anchored_distance(moved, anchor))
    assert anchored_distance(moved, anchor).item() == pytest.approx(0.25 * 10)


def test_distillation_is_never_negative_and_zero_only_for_the_teacher() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    assert bool((softmax_divergence(student, teacher, 2.0) > 0).all())
    assert softmax_divergence(teacher, teacher, 2.0).abs().max() == 0


def test_ewc_keeps_more_of_the_first_task_than_it_would_without() -> None:
    weights = []
    for strength in (0.0, 1e6):
        learner = new_learner(build_method("ewc", {"strength": strength}))
        learner.learn(digit_tasks()[0])
        before = learner.state().tensors["adapter/" + next(iter(learner.method.adapter.trained()))].clone()
        learner.learn(digit_tasks()[1])
        after = learner.state().tensors["adapter/" + next(iter(learner.method.adapter.trained()))]
        weights.append(float((after - before).norm()))
    assert weights[1] < weights[0]


def test_buffer_survives_its_state() -> None:
    learner = new_learner(build_method("er", {"size": 10}))
    learner.learn(digit_tasks()[0])
    state = learner.method.rules[0].state()
    again = Buffer.from_state(state)
    assert len(again) == 10
    assert again.examples.content_hash() == Buffer.from_state(again.state()).examples.content_hash()


def test_component_slices_start_orthonormal_and_weights_ignore_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    old = orthonormal_rows(torch.zeros(0, 16), 5, generator)
    new = orthonormal_rows(old, 5, generator)
    both = torch.cat([old, new])
    assert (both @ both.T - torch.eye(10)).abs().max() < 1e-5
    queries = torch.randn(3, 16, generator=generator)
    alpha = component_weights(queries, new, old)
    assert bool((alpha.abs() <= 1 + 1e-6).all())
    assert torch.allclose(alpha, component_weights(7 * queries, new, 3 * old), atol=1e-6)


def test_new_rows_are_unit_rows_where_no_room_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    old = orthonormal_rows(torch.zeros(0, 6), 4, generator)
    new = orthonormal_rows(old, 4, generator)
    torch.testing.assert_close((new @ new.T).diagonal(), torch.ones(4))
    assert (old @ new[:2].T).abs().max() < 1e-6
