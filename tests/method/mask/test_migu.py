"""MIGU: the rows that a task lights up move, the others keep every bit whatever the optimizer does."""

from dataclasses import replace
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora.peft_adapter import lora
from contune.adapter.weights.subset import full
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Rule, Tensors
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.numerics.subspaces import token_rows
from contune.rule.mask.activation_mask import ActivationMask
from contune.rule.project.gradient_projection import is_transposed, linear_modules
from contune.stream.task import Task

ADAMW = {**SETTINGS, "lr": 5e-3, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.02, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def migu_learner(case: str = "digits", train: dict[str, Any] = ADAMW, **options: Any) -> Learner:
    return Learner(model_of(case), build_method("migu", {"lr_scale": 1.0, **options}), train=train)


@final
class Watch(Rule):
    """Notes, beside a mask rule, every tensor after each step and the rule's masks; may be the planted fault itself."""

    name: ClassVar[str] = "watch"

    def __init__(self, inner: ActivationMask) -> None:
        self.inner = inner
        self.values: list[dict[str, Tensor]] = []
        self.masks: list[dict[str, Tensor]] = []
        self.gradients_seen: list[Tensors] = []
        self.before: dict[str, Tensor] = {}

    def before_step(self, context: Context, batch: Batch | None) -> None:
        self.before = {name: value.detach().clone() for name, value in context.model.trained().items()}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        self.gradients_seen.append({name: value.clone() for name, value in gradients.items()})
        return gradients

    def after_step(self, context: Context) -> None:
        self.masks.append(dict(self.inner._masks))
        self.values.append({n: (v.detach() - self.before[n]) for n, v in context.model.trained().items()})


@final
class GradientsOnly(Rule):
    """The planted fault: masks gradients, as the released code does, and lets the optimizer do what it likes."""

    name: ClassVar[str] = "gradients-only"

    def __init__(self, inner: ActivationMask) -> None:
        self.inner = inner

    def begin_task(self, context: Context) -> None:
        self.inner.begin_task(context)

    def before_step(self, context: Context, batch: Batch | None) -> None:
        self.inner.before_step(context, batch)

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return self.inner.gradients(context, gradients)


def watched(case: str, train: dict[str, Any], *, fault: bool = False, **options: Any) -> tuple[Learner, Watch]:
    method = build_method("migu", {"lr_scale": 1.0, **options})
    rule = method.rules[0]
    assert isinstance(rule, ActivationMask)
    watch = Watch(rule)
    first: Rule = GradientsOnly(rule) if fault else rule
    learner = Learner(model_of(case), replace(method, rules=(first, watch, *method.rules[1:])), train=train)
    learner.learn(tasks_of(case)[0])
    assert watch.masks
    assert not any(watch.masks), "nothing is masked in the first task"
    for kept in (watch.values, watch.masks, watch.gradients_seen):
        kept.clear()  # type: ignore[attr-defined]
    return learner, watch


CASES = [("digits", "lora"), ("bert", "lora"), ("bert", "full"), ("gpt2", "full"), ("digits", "o-lora")]


@pytest.mark.parametrize(("case", "carrier"), CASES)
@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("window", ["task", "batch"])
def test_masked_rows_keep_every_bit(case: str, carrier: str, train: dict[str, Any], window: str) -> None:
    learner, watch = watched(case, train, carrier=carrier, window=window)
    context = learner.begin(tasks_of(case)[1])
    linear = set(linear_modules(context))
    learner.fit(context, lambda report: None)
    learner.end(context)
    moved = 0
    for masks, updates, gradients in zip(watch.masks, watch.values, watch.gradients_seen, strict=True):
        assert set(masks) == linear
        for name, mask in masks.items():
            rests = ~mask.expand_as(updates[name])
            assert not bool(updates[name][rests].any())
            assert not bool(gradients[name][rests].any())
            moved += int((updates[name][~rests] != 0).sum())
    assert moved > 100
    assert any(int(mask.sum()) < mask.numel() for masks in watch.masks for mask in masks.values())


@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_masked_gradients_alone_leak(train: dict[str, Any]) -> None:
    learner, watch = watched("digits", train, fault=True, window="batch", carrier="full")
    learner.learn(digit_tasks()[1])
    leak = max(
        float(updates[name][~mask.expand_as(updates[name])].abs().max())
        for masks, updates in zip(watch.masks, watch.values, strict=True)
        for name, mask in masks.items()
    )
    assert leak > 1e-6


@pytest.mark.parametrize("case", ["digits", "bert", "gpt2"])
def test_rows_are_those_with_the_largest_outputs_over_tokens(case: str) -> None:
    """Against the outputs of the very same model and batch, and with plain SGD gradients: untouched or all zero."""
    learner = migu_learner(case, {**SGD, "momentum": 0.0, "weight_decay": 0.0}, carrier="full", window="batch")
    first, second = tasks_of(case)[:2]
    learner.learn(first)
    context = learner.begin(second)
    rule = learner.method.rules[0]
    assert isinstance(rule, ActivationMask)
    batch = context.passes.batch([(context.task.data, np.arange(5))])
    modules, outputs = linear_modules(context), {}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: outputs.update({name: out.detach()}))
        for name, module in modules.items()
    ]
    rule.before_step(context, batch)
    given = context.model.forward(batch)
    rule.loss(context, batch, given)
    for handle in handles:
        handle.remove()
    gradients = {name: torch.randn_like(value) for name, value in context.model.trained().items()}
    found = rule.gradients(context, gradients)
    assert all(found[name] is gradients[name] for name in gradients if name not in modules), "biases stay dense"
    for name, module in modules.items():
        sums = token_rows(outputs[name], batch.inputs.mask).double().abs().sum(dim=0)
        kept = sums >= torch.quantile(sums / sums.sum(), 0.7) * sums.sum() * (1 - 1e-12)
        assert int(kept.sum()) == len(sums) - int(np.ceil(0.7 * (len(sums) - 1)))
        rows, own = (t.T if is_transposed(module) else t for t in (found[name], gradients[name]))
        assert torch.equal(rows[kept], own[kept])
        assert not bool(rows[~kept].any())


@pytest.mark.parametrize("window", ["task", "batch"])
def test_the_window(window: str) -> None:
    """Of the whole task the sums grow; of a batch they are that batch's, and the longest text has no say for the others."""
    learner = migu_learner("bert", carrier="lora", window=window)
    learner.learn(word_tasks()[0])
    context = learner.begin(word_tasks()[1])
    rule = learner.method.rules[0]
    assert isinstance(rule, ActivationMask)
    found = []
    for rows in ([0, 1], [2], [0, 1]):
        batch = context.passes.batch([(context.task.data, np.array(rows))])
        rule.before_step(context, batch)
        rule.loss(context, batch, context.model.forward(batch))
        rule.gradients(context, {})
        found.append(copied(rule.state()).tensors)
    for name, last in found[-1].items():
        expected = found[1][name] + found[0][name] if window == "task" else found[0][name]
        torch.testing.assert_close(last, expected)


def test_padding_does_not_count() -> None:
    learner = migu_learner("bert", carrier="lora", window="task")
    learner.learn(word_tasks()[0])
    context = learner.begin(word_tasks()[1])
    rule = learner.method.rules[0]
    assert isinstance(rule, ActivationMask)
    lengths = context.task.data.prepared.lengths
    rows = np.array([int(lengths.argmin()), int(lengths.argmax())])
    assert lengths[rows[0]] < lengths[rows[1]]
    sums = []
    for batches in ([rows], [rows[:1], rows[1:]]):
        rule.begin_task(context)
        for chosen in batches:
            batch = context.passes.batch([(context.task.data, chosen)])
            rule.before_step(context, batch)
            rule.loss(context, batch, context.model.forward(batch))
            rule.gradients(context, {})
        sums.append(copied(rule.state()).tensors)
    for name, together in sums[0].items():
        torch.testing.assert_close(together, sums[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("carrier", ["lora", "full"])
def test_without_a_masked_share_it_is_the_carrier_to_the_bit(carrier: str) -> None:
    plain = migu_learner(masked=0.0, carrier=carrier)
    bare = Learner(tiny_model(), Method(fresh(carrier), Linear()), train=ADAMW)
    for task in digit_tasks()[:2]:
        plain.learn(task)
        bare.learn(task)
    assert same_state(plain.state(), bare.state()) is None


def fresh(carrier: str) -> Any:
    return build_method("migu", {"masked": 0.0, "carrier": carrier, "lr_scale": 1.0}).adapter


def test_a_rule_that_masks_nothing_hands_everything_on() -> None:
    method = Method(lora(), Linear(), (ActivationMask(masked=0.0),))
    learner = Learner(tiny_model(), method, train=ADAMW)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    rule = method.rules[0]
    batch = context.passes.batch([(context.task.data, np.arange(2))])
    rule.before_step(context, batch)
    rule.loss(context, batch, context.model.forward(batch))
    updates = {name: torch.ones_like(value) for name, value in context.model.trained().items()}
    assert all(found is updates[name] for name, found in rule.gradients(context, updates).items())
    assert all(found is updates[name] for name, found in rule.updates(context, updates).items())


def test_different_tasks_light_up_different_rows() -> None:
    learner, watch = watched("digits", ADAMW, carrier="full")
    found = []
    for task in digit_tasks()[1:]:
        learner.learn(task)
        found.append(watch.masks[-1])
    assert any(not torch.equal(mask, found[1][name]) for name, mask in found[0].items())


def test_the_random_control_draws_as_many_rows_anew_at_each_step() -> None:
    learner, watch = watched("digits", ADAMW, choice="random")
    learner.learn(digit_tasks()[1])
    name = next(iter(watch.masks[0]))
    drawn_rows = [masks[name] for masks in watch.masks]
    size = drawn_rows[0].numel()
    assert all(int(rows.sum()) == size - int(np.ceil(0.7 * (size - 1))) for rows in drawn_rows)
    assert any(not torch.equal(rows, drawn_rows[0]) for rows in drawn_rows)


def test_no_hook_is_left_on_the_model() -> None:
    learner = migu_learner()
    for task in digit_tasks()[:2]:
        learner.learn(task)
    assert not any(module._forward_hooks for module in learner.backbone.model.modules())


def test_a_full_carrier_leaves_the_embeddings_alone() -> None:
    learner = migu_learner("bert", carrier="full")
    names = learner.method.adapter.trained()
    assert not any("word_embeddings" in name for name in names)
    assert any("intermediate" in name for name in names)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="weights of linear layers"):
        compose({"adapter": "bottleneck", "rules": ["activation-mask"]})
    with pytest.raises(ConfigError, match="less than 1"):
        ActivationMask(masked=1.0)
    assert Method(full(), Linear(), (ActivationMask(),)).adapter.name == "full"


@pytest.mark.parametrize(("case", "options"), [("bert", {}), ("gpt2", {"carrier": "full", "window": "batch"})])
def test_texts_resume_exactly(case: str, options: dict[str, Any]) -> None:
    learner, again = migu_learner(case, **options), migu_learner(case, **options)
    assert difference_after_a_stop(learner, again, word_tasks()) is None
