"""RegLoRA: which entries are kept as places, what the penalty is, and that it empties them."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_tasks import experience
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora.per_task import LoraPerTask
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method, compose
from contune.rule.anchor.key_element_penalty import KeyElementPenalty, largest_entries, mean_size, union
from contune.stream.task import Task

TRAIN = {**SETTINGS, "lr": 1e-3}


def learner_of(case: str = "digits", train: dict[str, Any] = TRAIN, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case == "llama-writer" else {}
    return Learner(model, build_method("reg-lora", options), train=train, device="cpu", **kind)


def tasks_of(case: str) -> list[Task]:
    if case == "llama-writer":
        return [experience("big"), experience("red", "red", "blue"), experience("old", "old", "new")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def rule_of(learner: Learner) -> KeyElementPenalty:
    (rule,) = learner.method.rules
    assert isinstance(rule, KeyElementPenalty)
    return rule


def products(learner: Learner) -> dict[str, Tensor]:
    adapter = learner.method.adapter
    assert isinstance(adapter, LoraPerTask)
    return {name: (b @ a).detach() for name, (a, b) in adapter.factors().items()}


def features(context: Context) -> Tensor:
    return context.passes.features(context.task.data)


@pytest.mark.parametrize("case", ["digits", "bert", "gpt2", "llama-writer"])
def test_places_are_the_largest_entries_of_every_matrix_and_grow_by_union(case: str) -> None:
    learner, share = learner_of(case, share=0.03), 0.03
    before: dict[str, set[int]] = {}
    counts = []
    for number, task in enumerate(tasks_of(case)):
        learner.learn(task)
        for name, product in products(learner).items():
            count = int(share * product.numel())
            order = product.abs().flatten().argsort(descending=True)
            found = rule_of(learner)._places[name].tolist()
            assert found == sorted(set(found)), "each place once"
            assert set(found) == before.get(name, set()) | set(order[:count].tolist())
            assert count <= len(found) <= (number + 1) * count
            counts.append(len(found) > count)
            before[name] = set(found)
        assert len(before) >= 12
    assert any(counts)


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.0, 0.02, 0.29, 0.5, 1.0]), st.integers(0, 1000))
def test_so_many_entries_and_none_left_out_is_larger(rows: int, columns: int, share: float, seed: int) -> None:
    product = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    places = largest_entries(product, share).long()
    assert len(places) == int(share * rows * columns + 1e-9)
    inside = torch.zeros(rows * columns, dtype=torch.bool)
    inside[places] = True
    sizes = product.abs().flatten()
    if 0 < len(places) < rows * columns:
        assert float(sizes[inside].min()) >= float(sizes[~inside].max())


def test_a_place_that_was_large_twice_counts_once() -> None:
    """The planted fault: lists put behind one another weigh it double and raise the count that the mean divides by."""
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0]])
    first, second = torch.tensor([0, 1]), torch.tensor([1])
    assert mean_size([(a, b, union(first, second))]).item() == 2.0
    assert mean_size([(a, b, torch.cat([first, second]))]).item() == pytest.approx(7 / 3)


def test_the_penalty_by_hand() -> None:
    """Means over places first, then over matrices, without alpha / rank."""
    one = (torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([1, 2]))  # entries -2 and 2
    other = (torch.tensor([[1.0]]), torch.tensor([[-5.0]]), torch.tensor([0]))
    assert mean_size([one, other]).item() == 3.5
    learner = learner_of(strength=10.0, alpha=64.0)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    learner.fit(context, lambda report: None)
    rule = rule_of(learner)
    expected = [p.flatten()[rule._places[name].long()].abs().mean() for name, p in products(learner).items()]
    found = rule.penalty(context)
    assert found is not None
    assert found.item() == pytest.approx(10 * float(torch.stack(expected).mean()), rel=1e-5)
    assert found.item() > 0


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_a_new_task_begins_at_the_model_that_was(case: str) -> None:
    learner = learner_of(case)
    first, second = tasks_of(case)[:2]
    context = learner.begin(first)
    assert rule_of(learner).penalty(context) is None
    learner.fit(context, lambda report: None)
    learner.end(context)
    data = learner.test_dataset(first)
    before = learner.reading(data).passes.features(data)
    context = learner.begin(second)
    assert all(float(product.abs().max()) == 0 for product in products(learner).values())
    penalty = rule_of(learner).penalty(context)
    assert penalty is not None
    assert penalty.item() == 0
    torch.testing.assert_close(learner.reading(data).passes.features(data), before, atol=1e-5, rtol=1e-5)


def test_a_strong_pull_empties_the_places_and_the_task_is_still_learned() -> None:
    sizes, losses = {}, {}
    for strength in (0.0, 1e5):
        learner = learner_of(strength=strength, train={**TRAIN, "epochs": 6, "lr": 2e-3}, share=0.02)
        learner.learn(digit_tasks()[0])
        places = {name: value.long() for name, value in rule_of(learner)._places.items()}
        context = learner.begin(digit_tasks()[1])
        learner.fit(context, lambda report: None)
        inside = [p.flatten()[places[name]].abs().mean() for name, p in products(learner).items()]
        whole = [p.abs().mean() for p in products(learner).values()]
        sizes[strength] = float(torch.stack(inside).mean() / torch.stack(whole).mean())
        learner.end(context)
        data = learner.test_dataset(digit_tasks()[1])
        scores = learner.reading(data).passes.logits(data)[:, 2:]
        labels = torch.from_numpy(data.labels) - 2
        losses[strength] = float(torch.nn.functional.cross_entropy(scores, labels))
    assert sizes[1e5] < 0.5 * sizes[0.0]
    assert losses[1e5] < 0.69


def test_no_strength_is_a_lora_per_task_to_the_bit_and_some_is_not() -> None:
    ends = []
    bare = {"adapter": {"lora-per-task": {"alpha": 16.0, "targets": "all-linear"}}, "head": "linear"}
    for rules in ([], [{"key-element-penalty": {"strength": 0.0}}], ["key-element-penalty"]):
        learner = Learner(tiny_model(), compose({**bare, "rules": rules}), train=TRAIN)
        for task in digit_tasks()[:2]:
            learner.learn(task)
        ends.append(learner.state().inner("adapter"))
    assert same_state(ends[0], ends[1]) is None
    assert same_state(ends[0], ends[2]) is not None


def test_earlier_updates_keep_every_bit() -> None:
    learner = learner_of()
    learner.learn(digit_tasks()[0])
    adapter = learner.method.adapter
    assert isinstance(adapter, LoraPerTask)
    first = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in adapter.factors().items()}
    learner.learn(digit_tasks()[1])
    for name, (a, b) in adapter.factors(finished=True).items():
        assert torch.equal(a[:8], first[name][0])
        assert torch.equal(b[:, :8], first[name][1])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="lora-per-task"):
        compose({"adapter": "lora", "rules": ["key-element-penalty"]})
    for options in ({"strength": -1.0}, {"share": 1.5}):
        with pytest.raises(ConfigError):
            KeyElementPenalty(**options)


def test_texts_resume_exactly() -> None:
    learner, again = learner_of("bert"), learner_of("bert")
    assert difference_after_a_stop(learner, again, word_tasks()) is None
