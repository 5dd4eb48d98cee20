"""Averages of trained tensors over steps and over tasks, against plain loops and closed forms.

The numbers of the compatible average are from KevinLight831/CTP at 7baab57f23: `_momentum_update_three` and
`_momentum_update` (models/clip_pretrain.py) are the two lines that `compatible` and `first_task` below write out.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.parts import Rule
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import compose
from contune.method.method import Method
from contune.rule.average.average import CompatibleEma, Ema, SnapshotMean, compatible_step, grow_from, summed
from contune.stream.task import Task

CASES = ["digits", "bert"]
RULES: dict[str, Callable[[], Rule]] = {
    "ema": lambda: Ema(decay=0.7, which="all"),
    "last": lambda: SnapshotMean(which="all"),
    "mean": lambda: SnapshotMean(start="mean"),
    "compatible": lambda: CompatibleEma(first_decay=0.5, which="all"),
}


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def lora_learner(*rules: Rule, case: str = "digits", adapt: str = "every-task") -> Learner:
    method = compose({"adapter": {"lora": {"rank": 2}}, "head": {"linear": {"loss_over": "own-task"}}, "adapt": adapt})
    model = tiny_model() if case == "digits" else tiny_folder(case)
    made = Method(method.adapter, method.head, rules, adapt=method.adapt)
    return Learner(model, made, train={**SETTINGS, "optimizer": "adamw", "weight_decay": 0.1})


def trained(learner: Learner) -> dict[str, Tensor]:
    """Copies of all that is trained."""
    return {name: value.detach().clone() for name, value in learner.reading(None).model.trained().items()}


def adapter_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name.startswith("adapter.")}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(value, second[name], atol=1e-6) for name, value in first.items()
    )


def path_of(learner: Learner, task: Task) -> list[dict[str, Tensor]]:
    """What is trained as the task begins and after each of its steps; the task is learned."""
    context = learner.begin(task)
    path = [{name: value.detach().clone() for name, value in context.model.trained().items()}]

    def note(_report: Any) -> None:
        path.append({name: value.detach().clone() for name, value in context.model.trained().items()})

    learner.fit(context, note)
    learner.end(context)
    return path


def folded(path: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The running mean of a path, from its start."""
    shadow = dict(path[0])
    for values in path[1:]:
        shadow = {name: decay * value + (1 - decay) * values[name] for name, value in shadow.items()}
    return shadow


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["adapter", "all"])
def test_ema_keeps_the_running_mean_of_its_path(case: str, which: Any) -> None:
    learner = lora_learner(Ema(decay=0.7, which=which), case=case)
    for task in tasks_of(case)[:2]:
        path = path_of(learner, task)
        after, wanted = trained(learner), folded(path, 0.7)
        assert close(adapter_of(after), adapter_of(wanted))
        assert not close(adapter_of(after), adapter_of(path[-1]))
        assert close(after, wanted) is (which == "all")
        assert which == "all" or torch.equal(after["head.weight"], path[-1]["head.weight"])


def test_ema_leaves_training_inside_the_task_as_it_was() -> None:
    plain, averaged = lora_learner(), lora_learner(Ema(decay=0.7, which="all"))
    paths = [path_of(learner, digit_tasks()[0]) for learner in (plain, averaged)]
    assert all(equal(one, other) for one, other in zip(*paths, strict=True))
    assert not equal(trained(plain), trained(averaged))


def test_the_ends_of_emas_decay() -> None:
    kept, still = lora_learner(Ema(decay=0.0)), lora_learner(Ema(decay=1.0))
    assert equal(path_of(kept, digit_tasks()[0])[-1], trained(kept))
    assert equal(adapter_of(path_of(still, digit_tasks()[0])[0]), adapter_of(trained(still)))


def test_ema_of_constant_values_stays_and_errs_geometrically() -> None:
    shadow, current = {"a": torch.tensor([1.0, 5.0])}, {"a": torch.tensor([3.0, 5.0])}
    path = [shadow, *[current] * 20]
    assert torch.allclose(folded(path, 0.9)["a"], torch.tensor([3.0 - 2.0 * 0.9**20, 5.0]))


@pytest.mark.parametrize("rule", ["ema", "compatible"])
def test_an_adapter_that_learns_in_the_first_task_only_is_left_as_trained(rule: str) -> None:
    plain, averaged = lora_learner(adapt="first-task"), lora_learner(RULES[rule](), adapt="first-task")
    for learner in (plain, averaged):
        learner.learn(digit_tasks()[0])
    states = [copied(learner.state()).inner("adapter") for learner in (plain, averaged)]
    assert same_state(*states) is None


@pytest.mark.parametrize("case", CASES)
def test_snapshots_are_averaged_and_training_goes_on_as_if_nothing_were(case: str) -> None:
    """FineTune-merge: the path of training is that without the rule, and the answer is the mean of its ends."""
    plain, merged = lora_learner(case=case), lora_learner(SnapshotMean(), case=case)
    ends: list[dict[str, Tensor]] = []
    for task in tasks_of(case):
        paths = [path_of(learner, task) for learner in (plain, merged)]
        assert all(equal(adapter_of(one), adapter_of(other)) for one, other in zip(*paths, strict=True))
        ends.append(adapter_of(paths[0][-1]))
        mean = {name: torch.stack([end[name].double() for end in ends]).mean(dim=0).float() for name in ends[0]}
        assert close(adapter_of(trained(merged)), mean)


def test_training_may_go_on_from_the_mean() -> None:
    learner = lora_learner(SnapshotMean(start="mean"))
    first, second, _ = digit_tasks()
    one = path_of(learner, first)
    mean = trained(learner)
    two = path_of(learner, second)
    assert equal(adapter_of(two[0]), adapter_of(mean))
    wanted = {name: (value + two[-1][name]) / 2 for name, value in adapter_of(one[-1]).items()}
    assert close(adapter_of(trained(learner)), wanted)


def test_rows_of_the_head_are_averaged_over_the_tasks_that_had_them() -> None:
    plain, merged = lora_learner(), lora_learner(SnapshotMean(which="all"))
    ends = []
    for task in digit_tasks():
        paths = [path_of(learner, task) for learner in (plain, merged)]
        assert equal(paths[0][-1], paths[1][-1])
        ends.append(paths[0][-1]["head.weight"])
    found = trained(merged)["head.weight"]
    assert torch.allclose(found[:2], (ends[0] + ends[1][:2] + ends[2][:2]) / 3, atol=1e-6)
    assert torch.allclose(found[2:4], (ends[1][2:] + ends[2][2:4]) / 2, atol=1e-6)
    assert torch.equal(found[4:], ends[2][4:])


def compatible(shadow: Tensor, current: Tensor, earlier: Tensor, decay: float) -> Tensor:
    return shadow * decay + current * (1 - decay) / 2 + earlier * (1 - decay) / 2


def first_task(shadow: Tensor, current: Tensor, decay: float) -> Tensor:
    return shadow * decay + current * (1 - decay)


@pytest.mark.parametrize("case", CASES)
def test_the_compatible_mean_is_held_at_the_last_tasks_values(case: str) -> None:
    learner = lora_learner(CompatibleEma(decay=0.6, first_decay=0.8), case=case)
    first, second, third = tasks_of(case)
    path = path_of(learner, first)
    shadow = adapter_of(path[0])
    for values in path[1:]:
        shadow = {name: first_task(value, values[name], 0.8) for name, value in shadow.items()}
    assert close(adapter_of(trained(learner)), shadow)
    for task in (second, third):
        earlier = adapter_of(trained(learner))
        shadow, path = earlier, path_of(learner, task)
        for values in path[1:]:
            shadow = {name: compatible(v, values[name], earlier[name], 0.6) for name, v in shadow.items()}
        assert close(adapter_of(trained(learner)), shadow)
        far = max(float((path[-1][name] - earlier[name]).abs().max()) for name in earlier)
        assert max(float((shadow[name] - earlier[name]).abs().max()) for name in earlier) < far


def test_the_compatible_mean_of_constant_values_settles_halfway() -> None:
    current, earlier = {"a": torch.tensor([3.0])}, {"a": torch.tensor([1.0])}
    shadow = dict(earlier)
    for n in range(1, 9):
        shadow = compatible_step(shadow, current, earlier, 0.9, 0.5)
        assert shadow["a"].item() == pytest.approx(0.9**n * 1.0 + (1 - 0.9**n) * 2.0, abs=1e-6)
    same = compatible_step(earlier, earlier, earlier, 0.9, 0.5)
    assert torch.allclose(same["a"], earlier["a"], atol=1e-7)


def test_what_has_grown_is_averaged_as_in_a_first_task() -> None:
    """A scalar, a vector that has grown, and a matrix that has grown on both sides."""
    old = {"s": torch.tensor(2.0), "v": torch.zeros(1), "m": torch.zeros(1, 1)}
    now = {"s": torch.tensor(4.0), "v": torch.ones(2), "m": torch.ones(2, 2), "new": torch.ones(1)}
    shadow = {"s": torch.tensor(2.0), "v": torch.zeros(2), "m": torch.zeros(2, 2), "new": torch.zeros(1)}
    found = compatible_step(shadow, now, old, 0.5, 0.75)
    assert found["s"].item() == 2.5
    assert found["v"].tolist() == [0.25, 0.25]
    assert found["m"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert compatible_step(shadow, now, {"v": torch.tensor([3.0])}, 0.5, 0.75)["v"].tolist() == [1.0, 0.25]
    assert found["new"].tolist() == [0.25]
    assert shadow["v"].tolist() == [0.0, 0.0], "what went in is left alone"


def test_sums_grow_with_the_tensors_and_forget_names_that_are_gone() -> None:
    sums, counts = summed({}, {}, {"a": torch.tensor([[2.0]]), "b": torch.tensor(1.0), "gone": torch.ones(1)})
    sums, counts = summed(sums, counts, {"a": torch.tensor([[4.0, 8.0], [6.0, 7.0]]), "b": torch.tensor(3.0)})
    assert set(sums) == {"a", "b"}
    assert (sums["a"] / counts["a"]).tolist() == [[3.0, 8.0], [6.0, 7.0]]
    assert (sums["b"] / counts["b"]).item() == 2.0
    assert sums["a"].dtype == torch.float64


def test_the_place_of_an_earlier_form() -> None:
    assert grow_from(torch.zeros(2, 3)) == (slice(2), slice(3))
    assert grow_from(torch.tensor(1.0)) == ()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_they_resume_exactly_inside_the_second_task(rule: str, case: str) -> None:
    learner, again = (lora_learner(RULES[rule](), case=case) for _ in range(2))
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None


@pytest.mark.parametrize("rule", [SnapshotMean()], ids=["snapshot-mean"])
@pytest.mark.parametrize(
    "adapter", ["lora-per-task", {"prefix-per-task": {"general_length": 0}}], ids=["lora", "prefix"]
)
def test_adapters_that_start_anew_are_refused(rule: Rule, adapter: Any) -> None:
    parts = compose({"adapter": adapter, "head": "linear"})
    with pytest.raises(CombinationError, match="tensors that live through several tasks"):
        Method(parts.adapter, Linear(), (rule,))


@pytest.mark.parametrize("wrong", [{"decay": 1.1}, {"decay": -0.1}])
def test_a_decay_that_is_no_share_is_refused(wrong: dict[str, float]) -> None:
    for make in (Ema, CompatibleEma):
        with pytest.raises(ConfigError, match="give a number from 0 to 1"):
            make(**wrong)  # type: ignore[arg-type]


def test_ema_takes_an_adapter_that_starts_anew() -> None:
    parts = compose({"adapter": "lora-per-task", "head": "linear", "rules": [{"ema": {"decay": 0.7}}]})
    learner = Learner(tiny_model(), parts, train=SETTINGS)
    for task in digit_tasks()[:2]:
        path = path_of(learner, task)
        wanted = folded(path, 0.7)
        end = copied(learner.state()).inner("adapter").tensors
        for name, value in adapter_of(wanted).items():
            assert any(torch.allclose(value, kept, atol=1e-6) for kept in end.values() if kept.shape == value.shape), (
                name
            )
