"""Rehearsal-free regularisers: no pull at the anchor, only the extractor is held, only attention is trained."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch import Tensor
from word_tasks import ENCODERS, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.weights.attention import attention, is_projection
from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, same_state, tiny_model
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.method.catalog import build_method, compose
from contune.numerics.divergences import softmax_divergence
from contune.rule.anchor.anchor import anchored_distance
from contune.rule.anchor.extractor_anchor import ExtractorAnchor
from contune.rule.anchor.feature_distillation import FeatureDistillation, feature_distance

REGULARISERS = ("l2", "ewc", "prediction", "feature")
RATE = {**SETTINGS, "lr": 0.01}


def learner_of(train: dict[str, Any] | None = None, **options: Any) -> Learner:
    return Learner(tiny_model(), build_method("rehearsal-free", options), train={**RATE, **(train or {})})


def learned(tasks: int = 2, train: dict[str, Any] | None = None, **options: Any) -> Learner:
    learner = learner_of(train, **options)
    for task in digit_tasks()[:tasks]:
        learner.learn(task)
    return learner


def parts_of(learner: Learner) -> State:
    state = copied(learner.state())
    return State({n: t for n, t in state.tensors.items() if n.startswith(("adapter/", "head/"))})


def drift(learner: Learner) -> float:
    """How far the trained base weights lie from the pretrained ones."""
    start = tiny_backbone_of(learner)
    return max(float((v.detach() - start[n]).abs().max()) for n, v in learner.method.adapter.trained().items())


def tiny_backbone_of(learner: Learner) -> dict[str, Tensor]:
    fresh = learner_of()
    assert fresh.base_hash == learner.base_hash
    return {n: p.detach() for n, p in fresh.backbone.base_parameters().items()}


@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize("number", [0, 1])
def test_at_the_first_step_of_a_task_there_is_no_pull(regulariser: str, number: int) -> None:
    learner = learned(number, regulariser=regulariser, strength=1e3)
    context = learner.begin(digit_tasks()[number])
    batch = context.passes.batch(
        [(context.task.data, np.arange(8))], segments={"task": slice(0, 8)}, counts={"task": 8}
    )
    rule, outputs = learner.method.rules[0], context.model.forward(batch)
    terms = [term for term in (rule.loss(context, batch, outputs), rule.penalty(context)) if term is not None]
    free = number == 0 and regulariser != "l2"
    assert len(terms) == (0 if free else 1)
    for term in terms:
        assert abs(term.item()) < 1e-6
        gradients = torch.autograd.grad(term, list(context.model.trained().values()), allow_unused=True)
        assert all(g is None or float(g.abs().max()) < 1e-3 for g in gradients)


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_a_step_away_there_is_one(regulariser: str) -> None:
    learner = learned(1, regulariser=regulariser, strength=1.0)
    context = learner.begin(digit_tasks()[1])
    context.model.write({n: p.detach() + 0.05 for n, p in context.model.trained().items() if n.startswith("adapter.")})
    batch = context.passes.batch(
        [(context.task.data, np.arange(8))], segments={"task": slice(0, 8)}, counts={"task": 8}
    )
    rule = learner.method.rules[0]
    terms = [rule.loss(context, batch, context.model.forward(batch)), rule.penalty(context)]
    assert sum(float(term.detach()) for term in terms if term is not None) > 1e-6


def test_importance_one_is_l2() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor = {"adapter.a": torch.randn(3, 2, generator=generator)}
    moved = {name: value + torch.randn(3, 2, generator=generator) for name, value in anchor.items()}
    ones = {name: torch.ones_like(value) for name, value in anchor.items()}
    assert torch.equal(anchored_distance(moved, anchor, ones), anchored_distance(moved, anchor))
    learner = learned(1, regulariser="ewc")
    context = learner.begin(digit_tasks()[1])
    rules = [ExtractorAnchor(strength=3.0, importance=each) for each in ("none", "fisher")]
    for rule in rules:
        rule._anchor.values = {
            n: p.detach() + 0.1 for n, p in context.model.trained().items() if n.startswith("adapter.")
        }
        rule._anchor.importance = {name: torch.ones_like(value) for name, value in rule._anchor.values.items()}
    first, second = (rule.penalty(context) for rule in rules)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    entries = sum(value.numel() for value in rules[0]._anchor.values.values())
    assert float(first.detach()) == pytest.approx(3.0 * 0.01 * entries, rel=1e-3)


@pytest.mark.parametrize("regulariser", ["l2", "ewc"])
def test_the_head_is_never_anchored(regulariser: str) -> None:
    learner = learned(2, regulariser=regulariser)
    state = learner.method.rules[0].state()
    names = {name.split("/", 1)[1] for name in state.tensors}
    assert names == {f"adapter.{name}" for name in learner.method.adapter.trained()}


def test_a_huge_strength_freezes_the_extractor_at_the_pretrained_weights() -> None:
    """Linear probing, but for the one step that Adam takes before the pull is felt and takes back."""
    free, held = learned(2, strength=0.0), learned(2, strength=1e10)
    rate = 0.01 * 0.1
    assert drift(held) <= 2 * rate
    assert drift(free) > 5 * rate
    sgd = {"optimizer": "sgd", "momentum": 0.0, "lr": 1e-3, "clip": None}
    gentle, plain = learned(1, sgd, strength=2e3), learned(1, sgd, strength=0.0)
    assert drift(gentle) < drift(plain)


def test_fisher_is_added_over_tasks_without_decay() -> None:
    learner = learned(1, regulariser="ewc", examples=6)
    rule = learner.method.rules[0]
    first = copied(rule.state()).inner("importance").tensors
    context = learner.begin(digit_tasks()[1])
    learner.fit(context, lambda report: None)
    from contune.rule.anchor.anchor import fisher

    new = fisher(context, 6, "empirical")
    learner.end(context)
    for name, value in rule.state().inner("importance").tensors.items():
        assert torch.allclose(value, first[name] + new[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_only_attention_is_trained(regulariser: str) -> None:
    learner = learned(2, regulariser=regulariser)
    start = tiny_backbone_of(learner)
    now = learner.backbone.base_parameters()
    moved = {name for name, value in start.items() if not torch.equal(value, now[name].detach())}
    assert moved == set(learner.method.adapter.trained())
    assert moved == {name for name in now if is_projection(name)}
    assert 0 < len(moved) < len(now)


@pytest.mark.parametrize("name", [*ENCODERS, "t5", "gpt2", "llama"])
def test_every_model_has_projections(name: str) -> None:
    backbone = tiny_backbone(name)
    adapter = attention()
    adapter.attach(backbone, 0)
    widths = {"t5": 3, "gpt2": 1, "modernbert": 1}
    weights = [n for n in adapter.trained() if n.endswith("weight")]
    assert len(weights) == 3 * widths.get(name, 3), weights


def test_prediction_distillation_has_no_gradient_at_the_teacher() -> None:
    teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    softmax_divergence(student, teacher, 2.0).sum().backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_feature_distance_is_a_squared_norm_with_no_gradient_at_the_teacher() -> None:
    teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    feature_distance(student, teacher).sum().backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) == 0
    assert torch.allclose(feature_distance(teacher + 1, teacher), torch.full((5,), 3.0))


def test_features_stay_nearer_to_the_old_ones_with_distillation() -> None:
    moved = {}
    for strength in (0.0, 10.0):
        learner = learned(1, regulariser="feature", strength=strength)
        dataset = learner.test_dataset(digit_tasks()[0])
        before = learner.reading(None).passes.features(dataset)
        learner.learn(digit_tasks()[1])
        moved[strength] = float((learner.reading(None).passes.features(dataset) - before).norm())
    assert moved[10.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_no_strength_is_no_rule_and_some_changes_the_result(regulariser: str) -> None:
    plain, still = learned(2, regulariser="l2", strength=0.0), learned(2, regulariser=regulariser, strength=0.0)
    assert same_state(parts_of(plain), parts_of(still)) is None
    strength = {"ewc": 1e6}.get(regulariser, 1.0)
    assert same_state(parts_of(plain), parts_of(learned(2, regulariser=regulariser, strength=strength))) is not None


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_resumes_inside_the_second_task(regulariser: str) -> None:
    options = {"regulariser": regulariser, "strength": 1.0}
    whole = learned(1, **options)
    halfway = learn_keeping(whole, digit_tasks()[1], step=4)
    again = learner_of(**options)
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_texts_in_tasks_of_unequal_size(regulariser: str) -> None:
    tasks = word_tasks((1, 3, 2))
    train = {"epochs": 6, "batch_size": 8, "lr": 0.02}
    learner = Learner(tiny_folder("bert"), build_method("rehearsal-free", {"regulariser": regulariser}), train=train)
    for task in tasks:
        learner.learn(task)
        assert accuracy(learner, [task]) > 1 / 6 + 0.1


def test_features_that_never_change_need_no_holding() -> None:
    for rule in ("feature-distillation", "extractor-anchor"):
        with pytest.raises(CombinationError, match="adapter 'none'"):
            compose({"adapter": "none", "head": "linear", "rules": [rule]})


@pytest.mark.parametrize("rule", [FeatureDistillation(weight=1.0), ExtractorAnchor()])
def test_a_resting_adapter_is_not_held(rule: Any) -> None:
    from contune.adapter.lora.peft_adapter import lora
    from contune.head.linear import Linear
    from contune.method.method import Method

    learner = Learner(tiny_model(), Method(lora(), Linear(), (rule,), adapt="first-task"), train=RATE)
    for task in digit_tasks():
        learner.learn(task)
    assert accuracy(learner, digit_tasks()[2:]) > 0.5
