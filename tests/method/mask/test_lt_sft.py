"""LT-SFT and subnetworks: tickets of exact size, the start again to the bit, nothing else moves, deltas add up."""

from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from resume_helpers import go_on, learn_keeping
from tiny_models import save_tiny
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.weights.freezable import FreezableParameters
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.numerics.masks import changed, largest
from contune.rule.mask.lottery_ticket import LotteryTicket, lottery_ticket
from contune.rule.mask.sparse_delta import SparseDelta, composed, sparse_delta
from contune.rule.mask.subnetwork import external_mask
from contune.stream.task import Task

ADAMW = {**SETTINGS, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.02, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}
GENTLE = {**SETTINGS, "lr": 0.01, "optimizer": "sgd", "momentum": 0.9}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def learner_of(name: str, case: str = "digits", train: dict[str, Any] = ADAMW, **options: Any) -> Learner:
    return Learner(model_of(case), build_method(name, {"lr_scale": 1.0, **options}), train=train)


def rule_of(learner: Learner) -> LotteryTicket:
    rule = learner.method.rules[0]
    assert isinstance(rule, LotteryTicket)
    return rule


def weights(learner: Learner) -> dict[str, Tensor]:
    """Copies of all of the model's weights that may be trained, by the names in a context."""
    adapter = learner.method.adapter
    assert isinstance(adapter, FreezableParameters)
    return {f"adapter.{name}": value.detach().clone() for name, value in adapter.whole().items()}


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@final
class GradientsOnly(Rule):
    """The planted fault: masks gradients, as the released code does, and lets weight decay do what it likes."""

    name: ClassVar[str] = "gradients-only"

    def __init__(self, inner: LotteryTicket) -> None:
        self.inner = inner

    def begin_task(self, context: Context) -> None:
        self.inner.begin_task(context)

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return self.inner.gradients(context, gradients)


@pytest.mark.parametrize("case", ["digits", "bert"])
@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_a_ticket_has_its_size_and_nothing_else_moves(case: str, train: dict[str, Any]) -> None:
    learner = learner_of("lt-sft", case, train, share=0.05)
    before = weights(learner)
    for task in tasks_of(case)[:2]:
        context = learner.begin(task)
        start = weights(learner)
        assert all(torch.equal(value, before[name]) for name, value in start.items()), "rewound to the bit"
        masks = dict(rule_of(learner)._masks)
        total = sum(value.numel() for value in start.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == int(0.05 * total)
        learner.fit(context, lambda report: None)
        learner.end(context)
        before = weights(learner)
        for name, value in before.items():
            mask = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
            assert torch.equal(value[~mask], start[name][~mask])
        moved = int((flat(before) != flat(start)).sum())
        assert int(0.04 * total) < moved <= int(0.05 * total)
        assert rule_of(learner).deltas[context.task.index].size <= int(0.05 * total)


def test_a_ticket_is_what_plain_fine_tuning_changes_most() -> None:
    learner = learner_of("lt-sft", share=0.1)
    plain = learner_of("rl-subnetwork", train=ADAMW)
    start = weights(plain)
    free = Learner(tiny_model(), build_method("finetune", {"lr_scale": 1.0, "loss_over": "seen"}), train=ADAMW)
    free.learn(digit_tasks()[0])
    end = {f"adapter.{name}": value for name, value in free.method.adapter.trained().items()}
    learner.begin(digit_tasks()[0])
    change = (flat(end) - flat(start)).abs().detach()
    mask = flat({name: rule_of(learner)._masks.get(name, torch.zeros_like(v) > 0) for name, v in start.items()})
    assert float(change[mask].min()) >= float(change[~mask].max())
    assert int(mask.sum()) == int(0.1 * len(change)) == int(largest(change, int(mask.sum())).sum())


def test_masked_gradients_alone_leak_through_weight_decay() -> None:
    rule = lottery_ticket(share=0.05)
    assert isinstance(rule, LotteryTicket)
    adapter = FreezableParameters("full", lambda _name, _owner: True, "all", 1.0)
    learner = Learner(tiny_model(), Method(adapter, Linear(), (GradientsOnly(rule),)), train=ADAMW)
    context = learner.begin(digit_tasks()[0])
    before = weights(learner)
    learner.fit(context, lambda report: None)
    after = weights(learner)
    leak = max(float((after[name] - before[name])[~mask].abs().max()) for name, mask in rule._masks.items())
    assert leak > 1e-5


@pytest.mark.parametrize("name", ["lt-sft", "rl-subnetwork"])
def test_with_all_weights_it_is_plain_fine_tuning(name: str) -> None:
    options = {"share": 1.0} if name == "lt-sft" else {"tolerance": 0.0}
    learner = learner_of(name, train=GENTLE, **options)
    plain = Learner(tiny_model(), build_method("finetune", {"lr_scale": 1.0, "loss_over": "seen"}), train=GENTLE)
    start = flat(weights(learner))
    for task in digit_tasks()[:2]:
        learner.learn(task)
        plain.learn(task)
    ours = flat(weights(learner))
    theirs = flat({f"adapter.{name}": value.detach() for name, value in plain.method.adapter.trained().items()})
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert float((theirs - start).abs().max()) > 1e-2


def test_deltas_make_the_model_and_can_be_taken_out() -> None:
    learner = learner_of("lt-sft", share=0.2)
    start = weights(learner)
    after = []
    for task in digit_tasks():
        learner.learn(task)
        after.append(weights(learner))
    deltas = [rule_of(learner).deltas[task] for task in range(3)]
    forwards, backwards = composed(start, deltas), composed(start, deltas[::-1])
    torch.testing.assert_close(forwards, after[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(forwards, backwards, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(composed(after[-1], deltas[2:], [-1]), after[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(composed(forwards, deltas, [-1, -1, -1]), start, atol=1e-6, rtol=0)
    without_second = composed(after[-1], deltas[1:2], [-1])
    assert float((flat(without_second) - flat(after[-1])).abs().max()) > 1e-3
    overlapping = {
        name: set(deltas[0].places[name].tolist()) & set(deltas[1].places[name].tolist())
        for name in start
        if name in deltas[0].places and name in deltas[1].places
    }
    assert any(overlapping.values()), "tickets of different tasks share entries"


def test_small_changes_are_left_out_of_a_delta() -> None:
    before = {"a": torch.zeros(4), "b": torch.ones(1)}
    after = {"a": torch.tensor([1e-8, 2.0, -3.0, 0.0]), "b": torch.ones(1)}
    phi = sparse_delta(before, after, {"a": torch.tensor([True, True, False, True])})
    assert (phi.places["a"].tolist(), phi.values["a"].tolist(), phi.size) == ([1], [2.0], 1)
    again = SparseDelta.from_state(phi.state())
    assert torch.equal(composed(before, [again])["a"], torch.tensor([0.0, 2.0, 0.0, 0.0]))
    assert composed(before, [again])["b"] is not before["b"]


def test_several_iterations_unfreeze_step_by_step() -> None:
    sizes: list[int] = []
    rule = lottery_ticket(share=0.1, iterations=2)
    assert isinstance(rule, LotteryTicket)
    inner = rule._choose

    def noted(origin: Tensors, end: Tensors, taken: Tensors) -> dict[str, Tensor]:
        found = inner(origin, end, taken)
        sizes.append(sum(int(mask.sum()) for mask in found.values()))
        assert all(bool((found[name] | ~mask).all()) for name, mask in taken.items())
        outside = [torch.equal(context.model.trained()[n].detach()[m], end[n][m]) for n, m in taken.items()]
        assert all(outside)
        return found

    rule = LotteryTicket("lottery-ticket", noted, iterations=2, keep=True)
    adapter = FreezableParameters("full", lambda _name, _owner: True, "all", 1.0)
    learner = Learner(tiny_model(), Method(adapter, Linear(), (rule,)), train=ADAMW)
    start = weights(learner)
    learner.known.class_names += list(digit_tasks()[0].class_names)
    learner.known.class_tasks.append((0, 1))
    context = learner.context([digit_tasks()[0]], 0)
    learner.method.head.begin_task(context)
    rule.begin_task(context)
    total = sum(value.numel() for value in start.values())
    assert sizes == [int(0.1 * total) // 2, 2 * (int(0.1 * total) // 2)]
    halfway = weights(learner)
    moved = flat(halfway) != flat(start)
    assert 0 < int(moved.sum()) <= sizes[0], "the first iteration's own second phase stays"
    learner.fit(context, lambda report: None)
    assert int((flat(weights(learner)) != flat(start)).sum()) <= sizes[1]


def test_l1_pulls_towards_the_start() -> None:
    moved = []
    for l1 in (0.0, 3000.0):
        learner = learner_of("lt-sft", share=0.2, l1=l1, train=GENTLE)
        start = flat(weights(learner))
        learner.learn(digit_tasks()[0])
        moved.append(float((flat(weights(learner)) - start).abs().sum()))
    assert moved[1] < 0.9 * moved[0]


def test_l1_is_a_mean_over_all_that_may_be_chosen() -> None:
    learner = learner_of("lt-sft", share=0.01, l1=2.0)
    context = learner.begin(digit_tasks()[0])
    rule = rule_of(learner)
    penalty = rule.penalty(context)
    assert penalty is not None
    assert penalty.item() == 0
    name = max(rule._masks, key=lambda each: int(rule._masks[each].sum()))
    context.model.trained()[name].data += 0.5
    size, total = context.model.trained()[name].numel(), sum(value.numel() for value in weights(learner).values())
    penalty = rule.penalty(context)
    assert penalty is not None
    assert penalty.item() == pytest.approx(2.0 * 0.5 * size / total, rel=1e-4)


def test_norms_can_be_left_alone() -> None:
    learner = learner_of("lt-sft", norms=False)
    assert not any("norm" in name for name in weights(learner))
    assert any("norm" in name for name in weights(learner_of("lt-sft")))


def test_tensors_without_a_chosen_entry_are_not_trained() -> None:
    learner = learner_of("lt-sft", share=0.002)
    context = learner.begin(digit_tasks()[0])
    trained = {name for name in context.model.trained() if name.startswith("adapter.")}
    assert trained == set(rule_of(learner)._masks)
    assert 0 < len(trained) < len(weights(learner))
    assert all(bool(mask.any()) for mask in rule_of(learner)._masks.values())


@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_a_subnetwork_is_what_had_changed(train: dict[str, Any]) -> None:
    tolerance = 5e-3 if train is ADAMW else 2e-3
    learner = learner_of("rl-subnetwork", train=train, tolerance=tolerance)
    free = Learner(tiny_model(), build_method("finetune", {"lr_scale": 1.0, "loss_over": "seen"}), train=train)
    free.learn(digit_tasks()[0])
    start = weights(learner)
    end = {f"adapter.{name}": value.detach() for name, value in free.method.adapter.trained().items()}
    context = learner.begin(digit_tasks()[0])
    masks = rule_of(learner)._masks
    for name, value in start.items():
        if "k_proj.bias" not in name:  # softmax does not see it: its gradient is rounding error, which Adam enlarges
            found = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
            assert float((found != changed(value, end[name], tolerance)).float().mean()) < 0.02
    learner.fit(context, lambda report: None)
    learner.end(context)
    after = weights(learner)
    assert all(torch.equal(after[name][~mask], start[name][~mask]) for name, mask in masks.items())
    expected = 1 - sum(int(mask.sum()) for mask in masks.values()) / len(flat(start))
    assert rule_of(learner).sparsities == [pytest.approx(expected)]
    assert 0.02 < expected < 0.98


def test_a_tight_tolerance_finds_supervised_updates_dense() -> None:
    learner = learner_of("rl-subnetwork")
    learner.learn(digit_tasks()[0])
    assert rule_of(learner).sparsities[0] < 0.1


def test_what_makes_no_sense_is_refused() -> None:
    for name in ("lottery-ticket", "external-mask"):
        with pytest.raises(CombinationError, match="set adapter: freezable"):
            compose({"adapter": "lora", "rules": [name]})
        assert compose({"adapter": "freezable", "rules": [name]}).rules[0].name == name
    for share in (0.0, 1.1):
        with pytest.raises(ConfigError, match="above 0"):
            lottery_ticket(share=share)
    with pytest.raises(ConfigError, match="no less than 0"):
        external_mask(tolerance=-1.0)


def tuned_copy(folder: Path) -> str:
    """The tiny BERT with some of its weights moved, as another training might have."""
    from transformers import AutoModel

    save_tiny("bert", folder)
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for index, layer in enumerate(model.encoder.layer):
            layer.output.dense.weight[index, ::2] += 0.1
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_the_mask_can_be_that_of_another_checkpoint(train: dict[str, Any], tmp_path: Path) -> None:
    folder = tuned_copy(tmp_path / "tuned")
    learner = learner_of("rl-subnetwork", "bert", train, tuned=folder)
    start = weights(learner)
    first, second, third = tasks_of("bert")
    learner.learn(first)
    saved = copied(learner.state())
    learner.learn(second)
    after = weights(learner)
    for name, value in start.items():
        expected = torch.zeros_like(value, dtype=torch.bool)
        if name.endswith("output.dense.weight") and "attention" not in name:
            expected[int(name.split("layer.")[1].split(".")[0]), ::2] = True
        assert torch.equal(after[name] != value, expected), name
    again = learner_of("rl-subnetwork", "bert", train, tuned=str(tmp_path / "not needed again"))
    again.load_state(saved)
    again.learn(second)
    assert same_state(ended(learner, [third]), ended(again, [third])) is None


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wide = str(save_tiny("bert", tmp_path / "wide", intermediate_size=48))
    with pytest.raises(ConfigError, match="the very same model"):
        learner_of("rl-subnetwork", "bert", tuned=wide).learn(word_tasks()[0])
    with pytest.raises(ConfigError, match="fine-tuned version"):
        learner_of("rl-subnetwork", "bert", tuned=model_of("bert")).learn(word_tasks()[0])


def ended(learner: Learner, tasks: list[Task]) -> State:
    for task in tasks:
        learner.learn(task)
    return learner.state()


@pytest.mark.parametrize("case", ["digits", "bert"])
@pytest.mark.parametrize("options", [{}, {"share": 0.004, "l1": 1.0, "iterations": 2}], ids=["plain", "l1"])
def test_it_resumes_exactly(case: str, options: dict[str, Any]) -> None:
    learner, again = learner_of("lt-sft", case, **options), learner_of("lt-sft", case, **options)
    first, second, third = tasks_of(case)
    learner.learn(first)
    halfway = learn_keeping(learner, second)
    expected = ended(learner, [third])
    go_on(again, halfway)
    assert same_state(expected, ended(again, [third])) is None
