"""SoTU: the merged model is a sum of slow_subset deltas, in any order, and old tasks can be taken out again."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.adapter.weights.sparse_deltas import SparseDeltas, bernoulli_mask, merged_tensor
from contune.checks.run import SETTINGS, accuracy, digit_tasks, same_state, tiny_model
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.head.solved.class_means import ClassMeans
from contune.head.solved.merged import Merged
from contune.method.catalog import build_method
from contune.method.method import Method

RATE = {**SETTINGS, "lr": 0.05}


def sotu_learner(**options: Any) -> Learner:
    return Learner(tiny_model(), build_method("sotu", options), train=RATE)


def adapter_of(learner: Learner) -> SparseDeltas:
    adapter = learner.method.adapter
    assert isinstance(adapter, SparseDeltas)
    return adapter


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.method.adapter.trained().items()}


@cache
def base() -> dict[str, Tensor]:
    return weights(sotu_learner())


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for _, value in sorted(tensors.items())]).double()


def test_the_model_is_the_start_and_the_sum_of_thinned_deltas() -> None:
    learner = sotu_learner(keep=0.3)
    fine_tuned = []
    for task in digit_tasks():
        context = learner.begin(task)
        assert all(torch.equal(value, base()[name]) for name, value in weights(learner).items()), "starts anew"
        learner.fit(context, lambda report: None)
        fine_tuned.append(weights(learner))
        learner.end(context)
    start, adapter = base(), adapter_of(learner)
    for name, value in weights(learner).items():
        expected = start[name].double()
        for task, tuned in enumerate(fine_tuned):
            expected = expected + adapter._mask(task, name) * (tuned[name] - start[name]).double()
        assert torch.equal(value, expected.float())


def test_the_sum_does_not_depend_on_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 40, generator=generator)
    parts = []
    for _ in range(6):
        mask = bernoulli_mask(start.shape, 0.4, generator)
        parts.append((mask, 1e-3 * torch.randn(int(mask.sum()), generator=generator)))
    forward, back = merged_tensor(start, parts), merged_tensor(start, parts[::-1])
    assert (forward - back).abs().max() < 1e-6
    assert torch.equal(merged_tensor(start, parts), forward)


def test_thinned_deltas_are_nearly_orthogonal_and_exactly_so_where_masks_are_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(200_000, generator=generator)
    second = first + torch.randn(200_000, generator=generator)
    whole = float(functional.cosine_similarity(first, second, dim=0))
    for keep in (0.1, 0.5):
        masks = [bernoulli_mask(first.shape, keep, generator) for _ in range(2)]
        slow_subset = float(functional.cosine_similarity(masks[0] * first, masks[1] * second, dim=0))
        assert slow_subset == pytest.approx(keep * whole, abs=0.01)
    apart = torch.arange(200_000) % 2 == 0
    assert float(functional.cosine_similarity(apart * first, ~apart * second, dim=0)) == 0.0


def test_deltas_of_real_tasks_overlap_less_when_thinned() -> None:
    cosines = {}
    for keep in (1.0, 0.1):
        learner = sotu_learner(keep=keep)
        for task in digit_tasks()[:2]:
            learner.learn(task)
        first, second = (flat(adapter_of(learner).delta(task)) for task in (0, 1))
        cosines[keep] = abs(float(functional.cosine_similarity(first, second, dim=0)))
        assert float((first != 0).double().mean()) == pytest.approx(keep, abs=0.03)
    assert cosines[0.1] < 0.5 * cosines[1.0]


def test_keeping_all_of_one_task_is_the_fine_tuned_model() -> None:
    learner = sotu_learner(keep=1.0)
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    tuned = weights(learner)
    assert not torch.equal(flat(tuned), flat(base()))
    learner.end(context)
    assert all(torch.allclose(value, tuned[name], rtol=0, atol=1e-7) for name, value in weights(learner).items())


def test_taking_a_task_out_is_never_having_merged_it() -> None:
    learner, shorter = sotu_learner(), sotu_learner()
    for task in digit_tasks()[:2]:
        learner.learn(task)
        shorter.learn(task)
    learner.learn(digit_tasks()[2])
    delta = adapter_of(learner).delta(2)
    left = {name: value - delta[name] for name, value in weights(learner).items()}
    assert all(torch.allclose(value, weights(shorter)[name], rtol=0, atol=1e-6) for name, value in left.items())
    assert flat(delta).abs().max() > 0


def test_rescaled_deltas_keep_their_size_in_expectation() -> None:
    deltas = {}
    for rescale in (False, True):
        learner = sotu_learner(keep=0.25, rescale=rescale)
        learner.learn(digit_tasks()[0])
        deltas[rescale] = flat(adapter_of(learner).delta(0))
    assert torch.allclose(deltas[True], 4 * deltas[False])


def test_means_are_those_of_the_merged_model_of_their_time() -> None:
    learner = sotu_learner()
    expected = []
    for task in digit_tasks():
        learner.learn(task)
        dataset = learner.context([task], 0).task.data
        features = learner.reading(None).passes.features(dataset).double()
        labels = torch.from_numpy(dataset.labels)
        expected += [features[labels == column].sum(dim=0) for column in learner.columns(task)]
    assert torch.allclose(learner.state().tensors["head/sums"], torch.stack(expected), atol=1e-4)


def test_means_of_the_model_before_merging_would_be_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the head looks before the adapter has merged."""
    from contextlib import nullcontext

    right, wrong = sotu_learner(), sotu_learner()
    right.learn(digit_tasks()[0])
    monkeypatch.setattr(SparseDeltas, "merged", lambda self: nullcontext())
    wrong.learn(digit_tasks()[0])
    sums = [learner.state().tensors["head/sums"] for learner in (right, wrong)]
    assert not torch.allclose(*sums, atol=1e-4)


def test_looking_at_the_merged_model_changes_nothing() -> None:
    learner = sotu_learner()
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    before = weights(learner)
    with adapter_of(learner).merged():
        assert not torch.equal(flat(weights(learner)), flat(before))
    assert torch.equal(flat(weights(learner)), flat(before))


def test_memory_is_a_share_of_the_weights_per_task() -> None:
    learner = sotu_learner(keep=0.1)
    whole = sum(value.numel() for value in base().values())
    for number, task in enumerate(digit_tasks()):
        learner.learn(task)
        kept = sum(t.numel() for n, t in learner.state().tensors.items() if n.startswith("adapter/"))
        assert kept == pytest.approx(0.1 * whole * (number + 1), rel=0.05)


def test_resumes_inside_the_third_task() -> None:
    whole = sotu_learner()
    for task in digit_tasks()[:2]:
        whole.learn(task)
    halfway = learn_keeping(whole, digit_tasks()[2], step=4)
    again = sotu_learner()
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None
    assert torch.equal(flat(weights(whole)), flat(weights(again)))


@pytest.mark.parametrize("options", [{}, {"classifier": "ridge", "strength": 1.0}, {"classifier": "ridge"}])
def test_texts_in_tasks_of_unequal_size(options: dict[str, Any]) -> None:
    tasks = word_tasks((1, 3, 2))
    train = {"epochs": 4, "batch_size": 8, "lr": 0.05}
    learner = Learner(tiny_folder("bert"), build_method("sotu", options), train=train)
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 0.7
    right = np.concatenate([learner.answers(d) == d.labels for d in map(learner.test_dataset, tasks)])
    assert right.any()


def test_heads_that_would_look_too_early_are_refused() -> None:
    method = Method(SparseDeltas(), ClassMeans(), adapt="first-task")
    with pytest.raises(CombinationError, match="head: merged"):
        Learner(tiny_model(), method, train=SETTINGS).learn(digit_tasks()[0])
    with pytest.raises(CombinationError, match="sparse-deltas"):
        Method(build_method("lora", {}).adapter, Merged())


def test_after_the_first_task_it_may_rest() -> None:
    learner = Learner(tiny_model(), Method(SparseDeltas(), Linear(), adapt="first-task"), train=RATE)
    learner.learn(digit_tasks()[0])
    before = weights(learner)
    learner.learn(digit_tasks()[1])
    assert torch.equal(flat(weights(learner)), flat(before))
    assert not torch.equal(flat(before), flat(base()))


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(keep: float) -> None:
    with pytest.raises(ConfigError, match="keep is"):
        build_method("sotu", {"keep": keep})
