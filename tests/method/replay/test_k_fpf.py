"""k-FPF: a phase moves head and norms alone, comes where it should, and costs what it says."""

from typing import Any

import pytest
import torch
from resume_helpers import go_on, learn_keeping
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.method.catalog import build_method, compose
from contune.rule.replay.buffer import Buffer
from contune.rule.replay.forgetting_prioritised import ForgettingPrioritised, phase_steps


def fpf_learner(train: dict[str, Any] | None = None, **options: Any) -> Learner:
    method = build_method("k-fpf", {"iterations": 5, "batch_size": 16, **options})
    return Learner(tiny_model(), method, train={**SETTINGS, **(train or {})})


def rule_of(learner: Learner) -> ForgettingPrioritised:
    rule = learner.method.rules[0]
    assert isinstance(rule, ForgettingPrioritised)
    return rule


def parts_of(learner: Learner) -> State:
    state = copied(learner.state())
    return State({n: t for n, t in state.tensors.items() if n.startswith(("adapter/", "head/"))})


def watched(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[str], int]]:
    """Every iteration of a phase: the step it came after, the tensors it moved, and its number of examples."""
    seen: list[tuple[int, set[str], int]] = []
    right = ForgettingPrioritised._iterate

    def watch(self: ForgettingPrioritised, context: Any, ready: Any, trained: Any, iteration: int) -> None:
        before = {name: value.detach().clone() for name, value in context.model.trained().items()}
        counted = context.passes.ledger.examples_backward
        right(self, context, ready, trained, iteration)
        moved = {n for n, v in before.items() if not torch.equal(v, context.model.trained()[n])}
        seen.append((self._step + 1, moved, context.passes.ledger.examples_backward - counted))

    monkeypatch.setattr(ForgettingPrioritised, "_iterate", watch)
    learner.learn(digit_tasks()[1])
    monkeypatch.undo()
    return seen


def test_a_phase_moves_head_and_norms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = fpf_learner()
    learner.learn(digit_tasks()[0])
    moved = set().union(*(names for _, names, _ in watched(learner, monkeypatch)))
    assert {"head.weight", "head.bias"} <= moved
    assert any("layernorm" in name for name in moved)
    assert all(name.startswith("head.") or "layernorm" in name for name in moved)


@pytest.mark.parametrize(("parts", "other"), [("head", False), ("all", True)])
def test_other_choices_of_parts(parts: Any, other: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = fpf_learner()
    rule_of(learner).parts = parts
    learner.learn(digit_tasks()[0])
    moved = set().union(*(names for _, names, _ in watched(learner, monkeypatch)))
    assert any(not name.startswith("head.") for name in moved) == other
    assert any("attention" in name for name in moved) == other


@pytest.mark.parametrize("epochs", [1, 4])
def test_phases_come_evenly_and_their_cost_does_not_grow_with_the_stream(
    epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = fpf_learner({"epochs": epochs}, phases=3)
    learner.learn(digit_tasks()[0])
    seen = watched(learner, monkeypatch)
    assert sorted({step for step, _, _ in seen}) == phase_steps(3 * epochs, 3)
    assert len(seen) == 3 * 5
    assert sum(count for _, _, count in seen) == 3 * 5 * 16


@pytest.mark.parametrize("batches", [1, 7])
def test_all_phases_come_where_settings_say_how_many_steps_there_are(
    batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = fpf_learner({"epochs": 2, "batches": batches}, phases=2)
    learner.learn(digit_tasks()[0])
    seen = watched(learner, monkeypatch)
    assert sorted({step for step, _, _ in seen}) == phase_steps(2 * batches, 2)
    assert len(seen) == 2 * 5
    right = ForgettingPrioritised.after_step

    def counts_passes(self: ForgettingPrioritised, context: Context) -> None:
        right(self, context.with_settings(context.task.settings.model_copy(update={"batches": None})))

    faulty = fpf_learner({"epochs": 2, "batches": batches}, phases=2)
    faulty.learn(digit_tasks()[0])
    monkeypatch.setattr(ForgettingPrioritised, "after_step", counts_passes)
    assert sorted({step for step, _, _ in watched(faulty, monkeypatch)}) != phase_steps(2 * batches, 2)


def test_steps_replay_nothing() -> None:
    learner = fpf_learner(phases=0)
    context = learner.begin(digit_tasks()[0])
    assert dict(rule_of(learner).select(context, 0, 0)) == {}


def test_more_phases_than_steps_still_run_all() -> None:
    assert phase_steps(2, 5) == [0, 1, 1, 2, 2]
    assert phase_steps(12, 4) == [3, 6, 9, 12]
    assert phase_steps(5, 0) == []


@pytest.mark.parametrize("options", [{"phases": 0}, {"size": 0}, {"iterations": 0}])
def test_without_phases_or_buffer_it_is_plain_fine_tuning_to_the_bit(options: dict[str, int]) -> None:
    learner = fpf_learner(**options)
    plain = Learner(
        tiny_model(), build_method("finetune", {"loss_over": "seen"}), train={**learner.method.train, **SETTINGS}
    )
    for task in digit_tasks():
        learner.learn(task)
        plain.learn(task)
    assert same_state(parts_of(plain), parts_of(learner)) is None
    ruled = fpf_learner()
    for task in digit_tasks():
        ruled.learn(task)
    assert same_state(parts_of(plain), parts_of(ruled)) is not None, "with phases it is not"


def test_phases_bring_old_classes_back() -> None:
    scores = {}
    for phases in (0, 3):
        learner = fpf_learner(phases=phases, iterations=20, phase_lr=0.2)
        for task in digit_tasks():
            learner.learn(task)
        scores[phases] = accuracy(learner, digit_tasks())
    assert scores[3] > scores[0] + 0.15


def test_the_buffer_is_balanced_and_holds_the_task_in_progress() -> None:
    learner = fpf_learner(size=12)
    learner.learn(digit_tasks()[0])
    learner.begin(digit_tasks()[1])
    rule = rule_of(learner)
    assert rule._whole is not None
    assert sorted(rule._whole.labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert rule._buffer is not None
    assert sorted(rule._buffer.labels.tolist()) == [0] * 6 + [1] * 6


def test_what_is_kept_is_what_the_phases_saw_with_logits_of_the_end() -> None:
    learner = fpf_learner(size=12, distil=0.5)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    rule = rule_of(learner)
    assert rule._whole is not None
    during = rule._whole
    learner.fit(context, lambda report: None)
    learner.end(context)
    after = rule._buffer
    assert after is not None
    assert during.examples.content_hash() == after.examples.content_hash()
    assert after.logits is not None
    assert during.logits is not None
    old = torch.from_numpy(after.tasks == 0)
    assert bool(after.logits[old][:, 2:].isnan().all())
    assert bool(torch.isfinite(after.logits[old][:, :2]).all())
    assert torch.equal(during.logits[old].nan_to_num(), after.logits[old].nan_to_num())
    assert bool(during.logits[~old].isnan().all())
    data = after.dataset(learner.backbone)
    now = learner.reading(None).passes.logits(data)
    assert torch.allclose(after.logits[~old], now[~old], atol=1e-5)


def test_distillation_changes_the_result() -> None:
    states = []
    for distil in (0.0, 1.0):
        learner = fpf_learner(distil=distil)
        for task in digit_tasks()[:2]:
            learner.learn(task)
        states.append(parts_of(learner))
    assert same_state(*states) is not None


@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_resumes_between_phases(distil: float) -> None:
    whole = fpf_learner(distil=distil)
    whole.learn(digit_tasks()[0])
    halfway = learn_keeping(whole, digit_tasks()[1], step=4)
    again = fpf_learner(distil=distil)
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None


@pytest.mark.parametrize("adapter", ["none", "lora", "layer-norm", "bottleneck-per-task"])
def test_phases_plug_into_other_methods(adapter: str) -> None:
    """Where the adapter trains no norm, a phase trains the head alone."""
    config = {"adapter": adapter, "head": "linear", "rules": [{"forgetting-prioritised": {"iterations": 2}}]}
    learner = Learner(tiny_model(), compose(config), train=SETTINGS)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    assert set(learner.predict(list(digit_tasks()[0].test.inputs))) <= set(learner.class_names)
    kept = Buffer.from_state(learner.method.rules[0].state())
    assert len(kept) == 96


def test_texts_in_tasks_of_unequal_size() -> None:
    tasks = word_tasks((1, 3, 2))
    train = {"epochs": 4, "batch_size": 8, "lr": 0.05}
    learner = Learner(tiny_folder("bert"), build_method("k-fpf", {"phase_lr": 0.1}), train=train)
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 0.7


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="phases is -1"):
        build_method("k-fpf", {"phases": -1})
