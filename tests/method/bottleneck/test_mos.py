"""MOS: what a merge is, what rests, and which adapter answers, against the loop written out for one example at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.adapter.bottleneck.merged import BottleneckMerged, mean_set, merged, own_name, spread
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.capability import Modules, require
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.parts import Tensors
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head import self_refined
from contune.head.self_refined import SelfRefined, ensemble, owners_of, refined
from contune.method.catalog import build_method, compose
from contune.rule.align.alignment import Alignment
from contune.stream.task import Task

RATE = {**SETTINGS, "lr": 0.5, "clip": None}  # tiny modules move little in few steps
QUICK: dict[str, Any] = {"alignment_epochs": 2, "samples": 32}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def mos_learner(case: str = "digits", **options: Any) -> Learner:
    return Learner(model_of(case), build_method("mos", {**QUICK, **options}), train=RATE, device="cpu")


def modules_of(learner: Learner) -> int:
    return require(learner.method.adapter, Modules).modules()


def adapter_of(learner: Learner) -> BottleneckMerged:
    adapter = learner.method.adapter
    assert isinstance(adapter, BottleneckMerged)
    return adapter


def head_of(learner: Learner) -> SelfRefined:
    head = learner.method.head
    assert isinstance(head, SelfRefined)
    return head


def set_of(learner: Learner, module: int) -> dict[str, Tensor]:
    """A copy of one module's bottlenecks, finished or not."""
    state = learner.state().inner("adapter").inner("inner").inner(f"task{module}")
    return {name: value.clone() for name, value in state.tensors.items()}


def distance(first: Tensors, second: Tensors) -> float:
    return float(torch.stack([(first[name] - second[name]).square().sum() for name in first]).sum().sqrt())


def after_one_step(learner: Learner, task: Task) -> dict[str, Tensor]:
    """The set in training after one step of a task."""
    found: list[dict[str, Tensor]] = []

    def look(report: Any) -> None:
        if report.step == 1:
            found.append(set_of(learner, modules_of(learner) - 1))

    learner.fit(learner.begin(task), look)
    return found[0]


def test_merges_by_hand() -> None:
    sets = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 6.0])}]
    mean = mean_set(sets)
    assert mean["a"].tolist() == [2.0, 4.0]
    assert merged({"a": torch.tensor([12.0, 4.0])}, mean, 0.1)["a"].tolist() == pytest.approx([11.0, 4.0])
    assert own_name("task12.2.mlp.up_bias") == "2.mlp.up_bias"


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_every_step_merges_with_the_mean_of_all_earlier(case: str) -> None:
    first, second, third = tasks_of(case)
    plain, ours = mos_learner(case, share=0.0), mos_learner(case, share=0.25, merges=1)
    for learner in (plain, ours):
        learner.learn(first)
    assert same_state(plain.state(), ours.state()) is None, "the first task is not merged"
    stepped, got = after_one_step(plain, second), after_one_step(ours, second)
    earlier = set_of(ours, 0)
    for name, value in stepped.items():
        torch.testing.assert_close(got[name], 0.75 * value + 0.25 * earlier[name])
    assert distance(stepped, earlier) > 1e-3

    plain, ours = (mos_learner(case, share=0.25, merges=1) for _ in range(2))
    for learner in (plain, ours):
        learner.learn(first)
        learner.learn(second)
    adapter_of(plain).share = 0.0
    stepped, got = after_one_step(plain, third), after_one_step(ours, third)
    sets = [set_of(ours, 0), set_of(ours, 1)]
    for name, value in stepped.items():
        mean = (sets[0][name] + sets[1][name]) / 2
        torch.testing.assert_close(got[name], 0.75 * value + 0.25 * mean)


def test_by_default_a_step_merges_once_for_each_layer_and_once_more_as_released() -> None:
    first, second = digit_tasks()[:2]
    layers = Learner(tiny_model(), "nmc").backbone.depth
    found = []
    for merges in (0, 1, layers + 1, None):
        learner = mos_learner(share=0.25, merges=merges)
        learner.learn(first)
        found.append(after_one_step(learner, second))
        earlier = set_of(learner, 0)
    stepped, _, by_number, by_default = found
    for name, value in stepped.items():
        by_hand = value
        for _ in range(layers + 1):
            by_hand = 0.75 * by_hand + 0.25 * earlier[name]
        torch.testing.assert_close(by_default[name], by_hand)
        assert torch.equal(by_default[name], by_number[name])
    assert distance(by_default, earlier) < distance(found[1], earlier)


def test_merging_keeps_modules_near_one_another() -> None:
    found = []
    for share in (0.0, 0.1, 0.5):
        learner = mos_learner(share=share, merges=1)
        for task in digit_tasks()[:2]:
            learner.learn(task)
        found.append(distance(set_of(learner, 1), set_of(learner, 0)))
    assert found[0] > 1.2 * found[1] > 1.2 * found[2] > 0


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_a_task_goes_on_from_the_last_and_leaves_it_as_it_is(case: str) -> None:
    learner = mos_learner(case)
    kept: list[dict[str, Tensor]] = []
    for number, task in enumerate(tasks_of(case)):
        context = learner.begin(task)
        assert modules_of(learner) == number + 1
        if number:
            assert all(torch.equal(value, kept[-1][name]) for name, value in set_of(learner, number).items())
        learner.fit(context, lambda report: None)
        learner.end(context)
        kept.append(set_of(learner, number))
        learner.answers(learner.test_dataset(tasks_of(case)[0]))
        for module, weights in enumerate(kept):
            assert all(torch.equal(value, weights[name]) for name, value in set_of(learner, module).items())
    assert distance(kept[0], kept[1]) > 1e-3


def test_the_spread_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    means = torch.tensor([[1.0, 1.0]])
    # products over 0.8 of (1, 1), (1, 0), (0, 2)
    rows = [[2.5, 1.25, 2.5], [1.25, 1.25, 0.0], [2.5, 0.0, 5.0]]
    logs = [torch.tensor(row).log_softmax(0)[place].item() for place, row in enumerate(rows)]
    assert spread(features, means).item() == pytest.approx(-sum(logs) / 3)
    assert spread(features, torch.zeros(0, 2)).item() == pytest.approx(
        float(-(torch.tensor([[1.25, 0.0], [0.0, 5.0]]).log_softmax(1)).diagonal().mean())
    )


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_the_spread_is_of_the_batch_and_the_old_class_means(case: str) -> None:
    learner = mos_learner(case, spread=0.3, dropout=0.0)
    first, second = tasks_of(case)[:2]
    context = learner.begin(first)
    learner.fit(context, lambda report: None)
    learner.end(context)
    features = context.passes.module_features(context.task.data, 0)
    labels = torch.from_numpy(context.task.data.labels)
    means = torch.stack([features[labels == column].mean(dim=0) for column in (0, 1)])
    context = learner.begin(second)
    batch = context.passes.batch([(context.task.data, np.arange(5))])
    assert context.model.forward(batch).penalty is None
    adapter_of(learner).train_mode(True)
    outputs = context.model.forward(batch)
    assert outputs.penalty is not None
    every = torch.cat([means, outputs.features])
    logits = every @ every.T / 0.8
    expected = 0.3 * functional.cross_entropy(logits, torch.arange(len(every)))
    torch.testing.assert_close(outputs.penalty, expected, atol=1e-6, rtol=1e-4)
    adapter_of(learner).train_mode(False)
    bare = mos_learner(case, spread=0.0)
    context = bare.begin(first)
    adapter_of(bare).train_mode(True)
    assert context.model.forward(context.passes.batch([(context.task.data, np.arange(5))])).penalty is None


def released_loop(scores: Tensor, owners: list[int], start: int, limit: int) -> int:
    """Which module's answer is given for one example: scores (m, C)."""
    chosen, asked = start, 0
    while True:
        asked += 1
        following = owners[int(scores[chosen].argmax())]
        if asked >= limit or following == chosen:
            return chosen
        chosen = following


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_retrieval_is_the_loop_for_every_row(rounds: int) -> None:
    generator = torch.Generator().manual_seed(rounds)
    scores = torch.randn(200, 5, 9, generator=generator)
    owners = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 4])
    start = torch.randint(5, (200,), generator=generator)
    wanted = [released_loop(scores[row], owners.tolist(), int(start[row]), rounds) for row in range(200)]
    assert refined(scores, owners, start, rounds).tolist() == wanted
    assert (rounds == 1) == (wanted == start.tolist())


def test_a_row_that_goes_in_circles_stops() -> None:
    scores = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    owners, start = torch.tensor([0, 1]), torch.tensor([0])
    assert [refined(scores, owners, start, rounds).item() for rounds in (1, 2, 3, 4, 5)] == [0, 1, 0, 1, 0]


def test_the_ensemble_by_hand() -> None:
    scores, cosines = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.5, 0.9, float("-inf")]])
    expected = (scores.softmax(1) + (2 * cosines).softmax(1)) / 2
    torch.testing.assert_close(ensemble(scores, cosines, 2).exp(), expected)
    assert float(ensemble(scores, cosines, 2).exp().sum()) == pytest.approx(1)


def expected_scores(context: Context, learner: Learner, data: Dataset, learned: list[Context]) -> tuple[Tensor, int]:
    """The answers by the paper's steps, one example at a time, and how many left the module they began with."""
    modules = modules_of(learner)
    blocks = [context.passes.module_features(data, module) for module in range(modules)]
    means = {}
    for each in learned:
        features, labels = each.passes.module_features(each.task.data, 0), torch.from_numpy(each.task.data.labels)
        means |= {int(c): features[labels == c].mean(dim=0) for c in torch.unique(labels)}
    prototypes = torch.stack([means[column] for column in sorted(means)])
    owners = [number for number, each in enumerate(learned) for _ in each.task.classes]
    weight, bias = (head_of(learner).trained()[name].detach() for name in ("weight", "bias"))
    found, moved = [], 0
    for row in range(len(data)):
        cosines = functional.cosine_similarity(blocks[0][row].unsqueeze(0), prototypes)
        scores = torch.stack([weight @ block[row] + bias for block in blocks])
        start = owners[int(cosines.argmax())]
        chosen = released_loop(scores, owners, start, 4)
        moved += chosen != start
        found.append((scores[chosen].softmax(0) + (modules * cosines).softmax(0)) / 2)
    return torch.stack(found), moved


def answers_of(case: str) -> tuple[Tensor, Tensor, int]:
    """Given and expected probabilities on the test examples of all tasks, and how many rows changed their module."""
    learner, learned = mos_learner(case, merges=1), []
    for task in tasks_of(case):
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        learner.end(context)
        learned.append(context)
    given, expected, moved = [], [], 0
    for task in tasks_of(case):
        data = learner.test_dataset(task)
        reading = learner.reading(data)
        given.append(reading.passes.logits(data).exp())
        wanted, changed = expected_scores(reading, learner, data, learned)
        expected.append(wanted)
        moved += changed
    return torch.cat(given), torch.cat(expected), moved


@pytest.mark.parametrize("case", ["digits", "bert", "modernbert"])
def test_answers_follow_the_papers_steps(case: str) -> None:
    given, expected, moved = answers_of(case)
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=1e-5)
    assert moved >= 3, "no row was refined, so nothing was shown"


def test_answers_without_refinement_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_refined, "refined", lambda scores, owners, start, rounds: start)
    given, expected, _ = answers_of("digits")
    assert float((given - expected).abs().max()) > 5e-4  # a hundred times the tolerance above


def test_every_class_is_measured_through_its_own_module_and_the_head_is_put_back() -> None:
    learner, learned = mos_learner(), []
    for number, task in enumerate(digit_tasks()):
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        before = copied(learner.state().inner("head").inner("linear")).tensors
        learner.end(context)
        learned.append(context)
        after = learner.state().inner("head").inner("linear").tensors
        assert torch.equal(before["weight"], after["weight"]) == (number == 0)
    (rule,) = learner.method.rules
    assert isinstance(rule, Alignment)
    assert rule._gaussians is not None
    for number, each in enumerate(learned):
        features, labels = each.passes.module_features(each.task.data, number), torch.from_numpy(each.task.data.labels)
        for column in each.task.classes:
            place = rule._gaussians.labels.tolist().index(column)
            torch.testing.assert_close(rule._gaussians.means[place], features[labels == column].mean(dim=0))
    learner.begin(digit_tasks()[0])
    assert torch.equal(learner.state().inner("head").inner("linear").tensors["weight"][:6], before["weight"])


def test_a_class_that_comes_back_belongs_to_its_last_task() -> None:
    learner = mos_learner()
    first, second = digit_tasks()[:2]
    for task in (first, second, first):
        learner.learn(task)
    assert head_of(learner)._owners.tolist() == [2, 2, 1, 1]
    assert head_of(learner)._counts.tolist() == [48, 48, 24, 24]
    assert set(adapter_of(learner)._means) == {0, 1, 2, 3}
    tasks = torch.tensor([[True, True, False], [False, True, True]])
    assert owners_of(tasks, require(adapter_of(learner), Modules)).tolist() == [0, 1, 1]


def test_before_the_first_mean_module_0_begins() -> None:
    learner = mos_learner()
    context = learner.begin(digit_tasks()[0])
    scores = context.passes.logits(context.task.data)
    plain = head_of(learner).training_logits(context.passes.module_features(context.task.data, 0))
    torch.testing.assert_close(scores, plain.detach())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="adds modules for tasks"):
        compose({"adapter": "lora", "head": "self-refined"})
    for options in ({"share": 1.5}, {"spread": -1.0}, {"merges": -1}):
        with pytest.raises(ConfigError, match="give"):
            BottleneckMerged(**options)
    with pytest.raises(ConfigError, match="rounds"):
        SelfRefined(rounds=0)


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_texts_resume_exactly(case: str) -> None:
    learner, again = mos_learner(case), mos_learner(case)
    assert difference_after_a_stop(learner, again, word_tasks()) is None
    assert learner.base_unchanged()
