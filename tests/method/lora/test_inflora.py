"""InfLoRA: the new LoRA reads only what old inputs do not have; moments and subspaces against plain references."""

from typing import Any

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora import inflora_basis as lora_designed
from contune.adapter.lora.inflora_basis import InfloraBasis, designed_rows
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.passes import input_moments
from contune.contract.state import InputMemory
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.method.catalog import build_method
from contune.numerics.subspaces import (
    Subspace,
    closing_threshold,
    complement,
    count_to_reach,
    empty_subspace,
    extended,
    project_out,
    token_rows,
)
from contune.stream.task import Task

RATE = {**SETTINGS, "lr": 0.05}
CASES = ["digits", "bert", "modernbert"]


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def inflora_learner(case: str = "digits", **options: Any) -> Learner:
    return Learner(model_of(case), build_method("inflora", {"rank": 4, **options}), train=RATE)


def adapter_of(learner: Learner) -> InfloraBasis:
    adapter = learner.method.adapter
    assert isinstance(adapter, InfloraBasis)
    return adapter


def weight_changes(learner: Learner) -> dict[str, Tensor]:
    """The sum of B_i A_i by wrapped module."""
    adapter, total = adapter_of(learner), {}
    for finished in (False, True):
        for name, (a, b) in adapter.factors(finished=finished).items():
            total[name] = total.get(name, 0) + (b @ a).detach()
    return total


def old_overlap(learner: Learner) -> float:
    """The largest |A_t U| over wrapped modules."""
    adapter = adapter_of(learner)
    pairs = [(a.double(), adapter.old_inputs(name)) for name, (a, _) in adapter.factors().items()]
    return max(float((a @ space.basis()).abs().max()) for a, space in pairs if space is not None)


def random_energy(width: int, seed: int) -> Tensor:
    """A positive definite matrix whose eigenvalues fall off."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * width, width, generator=generator, dtype=torch.float64) / torch.arange(1, width + 1)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return turn @ rows.T @ rows @ turn.T


def projector(space: Subspace) -> Tensor:
    basis = space.basis()
    return basis @ basis.T


@pytest.mark.parametrize("case", CASES)
def test_the_design_is_orthogonal_to_old_inputs_and_of_one_size(case: str) -> None:
    learner = inflora_learner(case)
    for number, task in enumerate(tasks_of(case)):
        context = learner.begin(task)
        for a, b in adapter_of(learner).factors().values():
            torch.testing.assert_close(a @ a.T, torch.eye(4) / 3, atol=1e-6, rtol=0)
            assert (b == 0).all()
            assert not a.requires_grad
        assert number == 0 or old_overlap(learner) < 1e-6
        learner.fit(context, lambda report: None)
        learner.end(context)
    for name, (a, b) in adapter_of(learner).factors().items():
        space = adapter_of(learner).old_inputs(name)
        assert space is not None
        assert 0 < space.size() < 32
        assert (b != 0).any()
        assert a.shape == (4, 32)


def test_a_design_that_forgets_the_past_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_designed, "designed_rows", lambda moment, old, rank: designed_rows(moment, None, rank))
    learner = inflora_learner()
    learner.learn(digit_tasks()[0])
    learner.begin(digit_tasks()[1])
    assert old_overlap(learner) > 0.1


def test_keys_and_values_of_a_layer_share_one_design_and_one_memory() -> None:
    learner = inflora_learner()
    learner.learn(digit_tasks()[0])
    learner.begin(digit_tasks()[1])
    factors = adapter_of(learner).factors()
    keys = [name for name in factors if name.endswith("k_proj")]
    assert len(keys) == 3
    assert len(factors) == 6
    for key in keys:
        value = key.removesuffix("k_proj") + "v_proj"
        assert torch.equal(factors[key][0], factors[value][0])
        assert adapter_of(learner).old_inputs(key) is adapter_of(learner).old_inputs(value)
    first, second = (factors[key][0] for key in keys[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_a_new_task_begins_with_the_old_answers(case: str) -> None:
    learner = inflora_learner(case)
    first, second = tasks_of(case)[:2]
    learner.learn(first)
    data = learner.test_dataset(first)
    before = learner.reading(data).passes.features(data)
    learner.begin(second)
    after = learner.reading(data).passes.features(data)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_merged_into_the_weights_the_features_are_the_same(case: str) -> None:
    learner = inflora_learner(case)
    for task in tasks_of(case):
        learner.learn(task)
    data = learner.test_dataset(tasks_of(case)[0])
    unmerged = learner.reading(data).passes.features(data)
    plain = Backbone.load(ModelConfig(path=model_of(case)))
    for name, change in weight_changes(learner).items():
        plain.model.get_submodule(name.removeprefix("base_model.model.")).weight.data += change
    with torch.no_grad():
        merged = plain.features(plain.collate([(data.prepared, range(len(data)))]))
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    assert float(max(change.abs().max() for change in weight_changes(learner).values())) > 1e-3


def test_only_the_new_output_side_and_the_own_head_rows_move() -> None:
    learner = inflora_learner()
    first, second = digit_tasks()[:2]
    learner.learn(first)
    context = learner.begin(second)
    assert all("lora_B" in name for name in context.model.trained() if name.startswith("adapter."))
    before = copied(learner.state()).tensors
    learner.fit(context, lambda report: None)
    after = learner.state().tensors
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {n for n in before if n.startswith(("adapter/lora/default", "head/")) and "lora_A" not in n}
    assert torch.equal(before["head/weight"][:2], after["head/weight"][:2])
    assert torch.equal(before["head/bias"][:2], after["head/bias"][:2])


def test_old_inputs_do_not_feel_the_new_task() -> None:
    """At the lowest layer, whose inputs never change: what the new branch, per size of B, makes of old inputs."""
    felt = []
    for threshold in (0.0, 0.999999):
        learner = inflora_learner(threshold=threshold, rank=2)
        first, second = digit_tasks()[:2]
        context = learner.begin(first)
        old = first_layer_inputs(context)
        learner.fit(context, lambda report: None)
        learner.end(context)
        space = adapter_of(learner).old_inputs(next(iter(adapter_of(learner).factors())))
        assert space is not None
        learner.learn(second)
        a, b = (factor.detach() for factor in next(iter(adapter_of(learner).factors().values())))
        inside = old @ projector(space).float()
        assert float((inside @ a.T @ b.T).abs().max()) < 1e-5
        felt.append(float((old @ a.T @ b.T).square().mean() / b.square().mean()))
    assert felt[1] < 0.01 * felt[0]


def first_layer_inputs(context: Context) -> Tensor:
    """What the first layer's keys read (n, d)."""
    found: list[Tensor] = []
    adapter = context.model.adapter
    assert isinstance(adapter, InfloraBasis)
    place = adapter._lora.places()[next(iter(adapter.factors()))]
    handle = place.register_forward_pre_hook(lambda module, args: found.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in context.passes.batches(context.task.data):
            context.model.encode(batch)
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "minilm", "modernbert"])
def test_moments_do_not_count_padding(name: str) -> None:
    """One text at a time there is no padding, so the sum over texts is the reference."""
    learner = inflora_learner(name)
    context = learner.begin(word_tasks()[0])
    dataset, adapter = context.task.data, adapter_of(learner)
    moments = input_moments(context, adapter._lora.places())
    leader = sorted(moments.tensors)[-1]
    rows: list[Tensor] = []
    place = adapter._lora.places()[leader]
    handle = place.register_forward_pre_hook(lambda module, args: rows.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        for row in range(len(dataset)):
            context.model.encode(context.passes.batch([(dataset, torch.tensor([row]).numpy())]))
    handle.remove()
    every = torch.cat(rows)
    assert len(every) == dataset.prepared.lengths.sum()
    assert len(set(dataset.prepared.lengths.tolist())) > 1, "texts of one length would show nothing"
    torch.testing.assert_close(moments.tensors[leader], every.T @ every / len(every), atol=1e-5, rtol=1e-4)


def test_moments_that_counted_padding_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from contune.contract import passes as room

    context = inflora_learner("bert").begin(word_tasks()[0])
    adapter = context.model.adapter
    assert isinstance(adapter, InfloraBasis)
    right = input_moments(context, adapter._lora.places())
    monkeypatch.setattr(room, "token_rows", lambda inputs, mask: token_rows(inputs, None))
    wrong = input_moments(context, adapter._lora.places())
    assert all(float((right.tensors[n] - wrong.tensors[n]).abs().max()) > 0.1 for n in right.tensors)


@pytest.mark.parametrize("seed", range(4))
def test_both_forms_hold_the_same_subspace(seed: int) -> None:
    first, second = random_energy(12, seed), random_energy(12, 100 + seed)
    start = extended(empty_subspace(12, torch.device("cpu")), first, 0.8)
    assert start.kind == "remove"
    other = Subspace(complement(start.columns.double()).float(), "retain")
    torch.testing.assert_close(projector(start), projector(other), atol=1e-6, rtol=0)
    grown = [extended(space, second, 0.9) for space in (start, other)]
    assert grown[0].size() == grown[1].size() > start.size()
    torch.testing.assert_close(projector(grown[0]), projector(grown[1]), atol=1e-5, rtol=0)
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(project_out(rows, grown[0]), project_out(rows, grown[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_subspace_grows_switches_to_its_complement_and_covers_the_energy(seed: int) -> None:
    space, kinds = empty_subspace(12, torch.device("cpu")), []
    for task in range(8):
        energy = random_energy(12, 10 * seed + task)
        before, space = projector(space), extended(space, energy, 0.9)
        kinds.append(space.kind)
        columns = space.columns
        assert columns.shape[1] <= 6, "the smaller side is kept"
        torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]), atol=1e-5, rtol=0)
        now = projector(space)
        torch.testing.assert_close(now @ before, before, atol=1e-5, rtol=0)  # nothing old is lost
        assert float((now @ energy).trace() / energy.trace()) >= 0.9 - 1e-6
    assert kinds[0] == "remove"
    assert kinds[-1] == "retain"
    assert kinds == sorted(kinds)  # never back


def test_the_fewest_directions_are_added() -> None:
    energies = torch.tensor([5.0, 3.0, 1.0, 1.0])
    assert [count_to_reach(energies, torch.tensor(0.0), energies.sum(), t) for t in (0.5, 0.51, 0.8, 0.85, 1)] == [
        1,
        2,
        2,
        3,
        4,
    ]
    assert count_to_reach(torch.zeros(4), torch.tensor(0.0), torch.tensor(0.0), 0.9) == 0
    energy = torch.diag(torch.tensor([9.0, 4.0, 1.0, 0.5]).double())
    plain = extended(empty_subspace(4, torch.device("cpu")), energy, 0.95)
    squared = extended(empty_subspace(4, torch.device("cpu")), energy @ energy, 0.95)
    assert (plain.size(), squared.size()) == (3, 2)


def test_the_threshold_closes_and_never_reaches_one() -> None:
    thresholds = [closing_threshold(0.95, 0.1, task) for task in range(200)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == pytest.approx(0.95)
    assert thresholds[1] == pytest.approx(0.955)  # the paper's line over ten tasks has this first step
    assert thresholds[-1] < 1
    with pytest.raises(ConfigError, match="threshold"):
        InfloraBasis(threshold=1.0)


def test_a_design_finds_the_strongest_free_directions() -> None:
    moment = random_energy(8, 0)
    old = extended(empty_subspace(8, torch.device("cpu")), random_energy(8, 1), 0.9)
    rows = designed_rows(moment, old, 2).double()
    u = old.basis()
    left = torch.linalg.svd(moment - u @ u.T @ moment)[0][:, :2]
    torch.testing.assert_close(3 * rows.T @ rows, left @ left.T, atol=1e-6, rtol=0)


def test_a_design_has_no_more_rows_than_there_is_room_for() -> None:
    old = Subspace(torch.eye(8)[:, :2], "retain")  # two free dimensions of eight
    rows = designed_rows(random_energy(8, 0), old, 4)
    assert (rows[2:] == 0).all()
    torch.testing.assert_close(rows[:2] @ rows[:2].T, torch.eye(2) / 3)
    assert float((rows[:, 2:]).abs().max()) < 1e-6
    assert (designed_rows(random_energy(8, 0), Subspace(torch.zeros(8, 0), "retain"), 4) == 0).all()


def test_without_energy_the_design_still_avoids_old_inputs() -> None:
    """One direction of new data, inside the old ones: any free direction will do, none of the old."""
    moment = torch.zeros(6, 6)
    moment[0, 0] = 1.0
    rows = designed_rows(moment, Subspace(torch.eye(6)[:, :3], "remove"), 2)
    assert float(rows[:, :3].abs().max()) < 1e-6
    torch.testing.assert_close(rows @ rows.T, torch.eye(2) / 3)


def test_memory_survives_its_state() -> None:
    learner = inflora_learner()
    learner.learn(digit_tasks()[0])
    state = adapter_of(learner)._memory.state()
    again = InputMemory()
    again.load(state, torch.device("cpu"))
    assert same_state(state, again.state()) is None
    assert again.space("unheard of") is None


@pytest.mark.parametrize("case", ["bert", "modernbert"])
def test_texts_resume_exactly(case: str) -> None:
    learner, again = inflora_learner(case), inflora_learner(case)
    assert difference_after_a_stop(learner, again, word_tasks()) is None
    assert learner.base_unchanged()
