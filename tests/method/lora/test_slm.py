"""SLM: increments are retrieved example by example, keys stay where training left them, and the past keeps every bit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_tasks import experience
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora.retrieved_increments import (
    RetrievedIncrements,
    group_cosines,
    key_loss,
    key_shares,
    low_rank_sum,
    sizes_of,
    split_groups,
    trained_keys,
)
from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method
from contune.stream.task import Task

TRAIN = {**SETTINGS, "lr": 2e-2, "weight_decay": 0.1}
CASES = ["digits", "bert", "llama-writer", "gpt2-writer"]


def learner_of(case: str = "digits", **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case.endswith("writer") else {}
    train = {**TRAIN, "batch_size": 4} if kind else TRAIN
    return Learner(model, build_method("slm", {"key_steps": 60, **options}), train=train, device="cpu", **kind)


def tasks_of(case: str) -> list[Task]:
    if case.endswith("writer"):
        return [experience("big"), experience("red", "red", "blue"), experience("old", "so", "no")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def adapter_of(learner: Learner) -> RetrievedIncrements:
    assert isinstance(learner.method.adapter, RetrievedIncrements)
    return learner.method.adapter


def features_of(context: Context, rows: list[int]) -> Tensor:
    with torch.no_grad():
        return context.model.encode(context.passes.batch([(context.task.data, np.array(rows))]))[0]


def base_of(context: Context, rows: list[int]) -> Tensor:
    with torch.no_grad():
        return context.model.backbone.features(context.passes.batch([(context.task.data, np.array(rows))]).inputs)


def test_what_is_added_is_the_increments_of_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a, x = (torch.randn(shape, generator=generator) for shape in ((3, 2, 5), (3, 2, 4), (2, 7, 5)))
    chosen, weights = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    found = low_rank_sum(x, b, a, chosen, weights)
    for row in range(2):
        change = sum(w * a[p].T @ b[p] for p, w in zip(chosen[row].tolist(), weights[row], strict=True))
        torch.testing.assert_close(found[row], x[row] @ change.T)  # type: ignore[union-attr]
    torch.testing.assert_close(low_rank_sum(x[:, 0], b, a, chosen, weights), found[:, 0])


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5), min_size=1, max_size=4))
def test_weights_sum_to_one_and_none_is_negative(rows: list[list[float]]) -> None:
    chosen, weights = key_shares(torch.tensor(rows, dtype=torch.float64), 3)
    assert chosen.shape == weights.shape == (len(rows), 3)
    assert (weights >= 0).all()
    for row, total in zip(rows, weights.sum(dim=1).tolist(), strict=True):
        assert total == pytest.approx(1.0 if max(row) > 0 else 0.0, abs=1e-6)


def test_similarity_is_compared_group_by_group() -> None:
    keys = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    found = group_cosines(torch.tensor([[3.0, 0.0, 5.0, 0.0]]), keys)
    assert found.tolist() == [[[1.0], [0.0]]]
    assert group_cosines(torch.ones(2, 5), torch.ones(3, 4, 2)).shape == (2, 3, 4)


def test_key_loss_takes_the_nearest_that_are_not_dropped() -> None:
    queries, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[[3.0, 0.0], [0.0, 1.0], [4.0, 3.0]]])
    assert key_loss(queries, keys, 2).item() == pytest.approx(-(1 + 0.8) / 2)
    dropped = torch.tensor([[[True, False, False]]])
    assert key_loss(queries, keys, 2, dropped).item() == pytest.approx(-(0 + 0.8) / 2)


def test_keys_are_drawn_to_what_they_are_nearest_to_by_draws_of_the_seed() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.cat([side + 0.05 * torch.randn(40, 4, generator=generator) for side in (1.0, -1.0)])
    start = torch.randn(2, 3, 2, generator=generator)
    before = key_loss(queries, start, 1).item()
    train = {"top": 1, "dropout": 0.25, "steps": 200, "lr": 0.05}
    first, again, other = (trained_keys(queries, start, seed=seed, **train) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert key_loss(queries, first, 1).item() < min(before, -0.97)
    assert torch.equal(trained_keys(queries, start, seed=0, **{**train, "steps": 0}), start)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_the_start_is_the_base_to_the_bit(case: str) -> None:
    learner = learner_of(case)
    context = learner.begin(tasks_of(case)[0])
    assert torch.equal(features_of(context, [0, 1, 2]), base_of(context, [0, 1, 2]))
    learner.fit(context, lambda report: None)
    assert not torch.equal(features_of(context, [0, 1, 2]), base_of(context, [0, 1, 2]))


@pytest.mark.parametrize("case", CASES)
def test_a_task_adds_its_own_and_leaves_the_past_as_it_is(case: str) -> None:
    learner = learner_of(case)
    learner.learn(tasks_of(case)[0])
    first = {name: value.clone() for name, value in learner.method.adapter.state().tensors.items()}
    for task in tasks_of(case)[1:]:
        context = learner.begin(task)
        start = {name: value.detach().clone() for name, value in context.model.adapter.trained().items()}
        learner.fit(context, lambda report: None)
        learner.end(context)
        assert any(not torch.equal(value, start[name]) for name, value in context.model.adapter.trained().items())
    now = learner.method.adapter.state().tensors
    for name, value in first.items():
        kept = now[name][:, : value.shape[1]] if name == "keys/keys" else now[name]
        assert torch.equal(kept, value)
    assert now["keys/keys"].shape[1] == 12


def averaged(adapter: RetrievedIncrements, queries: Tensor) -> tuple[Tensor, Tensor]:
    """A planted fault: the retrieval of the released code, in which the batch has one choice."""
    similarity = group_cosines(queries, adapter._keys).mean(dim=(0, 1), keepdim=True)[:, 0].expand(len(queries), -1)
    return key_shares(similarity, adapter.top)


def differs_in_company(case: str) -> float:
    """How far an example's features are from those it has alone; the first of the batch comes twice."""
    learner = learner_of(case, top=2)
    for task in tasks_of(case)[:2]:
        learner.learn(task)
    context, rows = learner.begin(tasks_of(case)[2]), [0, 4, 5, 0]
    together, alone = features_of(context, rows), [features_of(context, [row]) for row in rows]
    ends = np.cumsum([len(each) for each in alone])
    pieces = [together[end - len(each) : end] for each, end in zip(alone, ends, strict=True)]
    torch.testing.assert_close(pieces[0], pieces[3], atol=1e-5, rtol=1e-5)
    return max(float((piece - each).abs().max()) for piece, each in zip(pieces, alone, strict=True))


@pytest.mark.parametrize("case", ["digits", "bert", "llama-writer"])
def test_a_row_does_not_depend_on_its_neighbours(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differs_in_company(case) < 1e-4
    monkeypatch.setattr(RetrievedIncrements, "retrieved", averaged)
    assert differs_in_company(case) > 1e-3, "an average over the batch is found"


def test_an_example_that_no_key_is_near_to_is_answered_by_the_base() -> None:
    learner = learner_of()
    learner.learn(digit_tasks()[0])
    adapter, context = adapter_of(learner), learner.begin(digit_tasks()[1])
    queries = context.passes.base_features(context.task.data)[:2]
    adapter._keys = -split_groups(queries[:1], 6).repeat(1, 4, 1)
    assert adapter.retrieved(queries[:1])[1].tolist() == [[0.0] * 4]
    assert torch.equal(features_of(context, [0]), base_of(context, [0]))


def test_increments_are_at_the_output_of_the_attention() -> None:
    for case, last in {"digits": "dense", "bert": "dense", "llama-writer": "o_proj", "gpt2-writer": "c_proj"}.items():
        places = adapter_of(learner_of(case))._places
        assert len(places) == 3
        assert {name.rsplit(".", 1)[-1] for name in places} <= {last, "out_proj", "o_proj"}, case
    module = next(iter(adapter_of(learner_of("gpt2-writer", targets=["c_attn"]))._places.values()))
    assert sizes_of(module) == (32, 96)


def test_what_makes_no_sense_is_refused() -> None:
    for options in ({"top": 0}, {"key_top": 5}, {"key_dropout": 1.0}, {"keys_per_task": 0}, {"key_steps": -1}):
        with pytest.raises(ConfigError):
            build_method("slm", options)
    with pytest.raises(CombinationError, match="groups is 33"):
        learner_of(groups=33)


@pytest.mark.parametrize("case", ["bert", "llama-writer", "gpt2-writer"])
def test_it_resumes_exactly(case: str) -> None:
    learner, again = learner_of(case), learner_of(case)
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None
    assert learner.base_unchanged()
