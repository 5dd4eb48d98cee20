"""CorDA: what a task starts from, what it leaves as it was, and that its files mean the same in stock peft."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from language_tasks import WRITER, config_of, experience
from resume_helpers import go_on, learn_keeping
from run_helpers import config_text, run
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora import corda
from contune.adapter.lora.corda import Corda, damped, decomposed, kept_texts, sampled, start_factors, wrapped_matrix
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.data import Dataset
from contune.contract.passes import input_moments
from contune.engine.learner import Learner
from contune.errors import ConfigError, DataError
from contune.method.catalog import build_method
from contune.run.export import export_run
from contune.run.predict import load_learner
from contune.stream.task import Task

CASES = ["digits", "bert", "modernbert", "gpt2-writer"]
MODES = ["keep", "preview"]


def learner_of(case: str = "digits", train: dict[str, Any] | None = None, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case.endswith("writer") else {}
    method = build_method("corda", {"rank": 4, **options})
    return Learner(model, method, train={**SETTINGS, **(train or {})}, **kind)  # type: ignore[arg-type]


def tasks_of(case: str) -> list[Task]:
    if case.endswith("writer"):
        return [experience("big"), experience("red", "red", "blue"), experience("old", "new", "old")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def adapter_of(learner: Learner) -> Corda:
    adapter = learner.method.adapter
    assert isinstance(adapter, Corda)
    return adapter


def random_moment(width: int, seed: int = 0) -> Tensor:
    rows = torch.randn(3 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows * torch.arange(1, width + 1)
    return rows.T @ rows


def random_weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_triplets_are_the_weight_and_their_energies_add_up(shape: tuple[int, int]) -> None:
    weight, energy = random_weight(*shape), damped(random_moment(shape[1]), 0.01)
    left, sizes, right = decomposed(weight, energy)
    torch.testing.assert_close((left * sizes) @ right, weight, rtol=0, atol=1e-10)
    assert (sizes[:-1] >= sizes[1:]).all()
    energies = {}
    for chosen in combinations(range(len(sizes)), 2):
        part = (left[:, chosen] * sizes[list(chosen)]) @ right[list(chosen)]
        energies[chosen] = float((part @ energy).square().sum())
        assert energies[chosen] == pytest.approx(float(sizes[list(chosen)].square().sum()))
    for mode, extreme in (("keep", min), ("preview", max)):
        down, up = start_factors(weight, energy, 2, mode)  # type: ignore[arg-type]
        found = float((up.double() @ down.double() @ energy).square().sum())
        assert found == pytest.approx(extreme(energies.values()), rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_with_inputs_alike_in_all_directions_it_is_the_plain_decomposition(mode: Any) -> None:
    """The first triplets are PiSSA's, the last MiLoRA's, up to a common sign of each column of B and row of A."""
    weight = random_weight(6, 4)
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    places = slice(0, 2) if mode == "preview" else slice(2, 4)
    down, up = start_factors(weight, torch.eye(4), 2, mode)
    signs = torch.sign((up * left[:, places]).sum(0)).double()
    torch.testing.assert_close(up.double(), left[:, places] * sizes[places].sqrt() * signs, rtol=0, atol=1e-6)
    torch.testing.assert_close(down.double(), (right[places].T * sizes[places].sqrt() * signs).T, rtol=0, atol=1e-6)


def test_the_size_of_the_moment_is_shared_between_the_factors_and_changes_no_product() -> None:
    weight, moment = random_weight(4, 4), random_moment(4)
    pairs = [start_factors(weight, damped(moment * size, 0.01), 2, "keep") for size in (1.0, 1e6)]
    torch.testing.assert_close(pairs[0], pairs[1])
    assert torch.equal(damped(torch.zeros(2, 2), 0.1), torch.eye(2).double())


def test_a_moment_of_one_direction_can_be_inverted() -> None:
    moment = torch.zeros(64, 64)
    moment[0, 0] = 1e-20
    left, sizes, right = decomposed(random_weight(64, 64), damped(moment, 0.01))
    torch.testing.assert_close((left * sizes) @ right, random_weight(64, 64), rtol=0, atol=1e-9)


def features_of(learner: Learner, data: Dataset) -> Tensor:
    with torch.no_grad():
        context = learner.reading(data)
        return torch.cat([context.model.encode(batch)[0] for batch in context.passes.batches(data)])


def started_features(learner: Learner, case: str) -> tuple[Tensor, Tensor]:
    """Features of the first task's test data before and after the second task has begun."""
    first, second = tasks_of(case)[:2]
    learner.learn(first)
    data = learner.test_dataset(first)
    before = features_of(learner, data)
    learner.begin(second)
    return before, features_of(learner, data)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_a_task_begins_with_the_answers_there_were_and_with_parts_of_the_weights(case: str, mode: str) -> None:
    learner = learner_of(case, mode=mode)
    before, after = started_features(learner, case)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    adapter = adapter_of(learner)
    frozen = adapter.factors(finished=True)
    for name, module in adapter._lora.places().items():
        (down, up), (old_down, old_up) = adapter.factors()[name], frozen[name]
        assert float((up @ down).detach().norm()) > 1e-6
        assert torch.equal(old_down[-4:], -down)
        assert torch.equal(old_up[:, -4:], up)
        weight = wrapped_matrix(module)
        then = weight + (old_up[:, :-4] @ old_down[:-4]).detach()
        assert not torch.equal(then, weight)
        residual = weight + (old_up @ old_down).detach()
        assert float((residual + (up @ down).detach() - then).norm() / then.norm()) < 1e-4
        # The pair is a sum of triplets of what the weight had become: taking it away lowers the rank by four.
        sizes = torch.linalg.svdvals(residual.double())
        assert float(sizes[-4]) < 1e-4 * float(sizes[0])
    assert learner.base_unchanged()


def test_a_start_that_is_not_taken_off_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = corda.started

    def wrong(state: Any, starts: Any) -> Any:
        found = right(state, starts)
        for name in found.tensors:
            if name.startswith("past/") and "lora_A" in name:
                found.tensors[name][-4:] = 0
        return found

    monkeypatch.setattr(corda, "started", wrong)
    before, after = started_features(learner_of(), "digits")
    assert float((after - before).abs().max()) > 0.1


def test_what_is_to_be_kept_moves_least_with_the_last_triplets() -> None:
    """Mean ||B A x||^2 over the first task's inputs: last triplets, then random ones, then the first."""
    energies: dict[str, list[float]] = {"keep": [], "random": [], "preview": []}
    learner = learner_of()
    learner.learn(digit_tasks()[0])
    adapter = adapter_of(learner)
    generator = torch.Generator().manual_seed(0)
    for name, module in adapter._lora.places().items():
        moment = adapter._moments[adapter._leaders[name]].double()
        energy, weight = damped(moment, 0.01), wrapped_matrix(module)
        left, sizes, right = decomposed(weight, energy)

        def moved(product: Tensor, moment: Tensor = moment) -> float:
            return float((product @ moment @ product.T).trace())

        for mode in ("keep", "preview"):
            down, up = start_factors(weight, energy, 4, mode)  # type: ignore[arg-type]
            energies[mode].append(moved((up @ down).double()))
        draws = [torch.randperm(len(sizes), generator=generator)[:4] for _ in range(20)]
        energies["random"].append(sum(moved((left[:, at] * sizes[at]) @ right[at]) for at in draws) / len(draws))
    for keep, other, preview in zip(energies["keep"], energies["random"], energies["preview"], strict=True):
        assert keep < other < preview
    assert sum(energies["keep"]) < 0.1 * sum(energies["random"])


def test_moments_of_finished_tasks_add_up_and_no_example_stays() -> None:
    learner, expected = learner_of(), dict[str, Tensor]()
    for task in digit_tasks()[:2]:
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        for name, moment in input_moments(context, adapter_of(learner)._lora.places()).tensors.items():
            expected[name] = moment.float() + expected.get(name, 0)
        learner.end(context)
    found = adapter_of(learner)._moments
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    state = adapter_of(learner).state()
    assert {tuple(t.shape) for n, t in state.tensors.items() if n.startswith("moments/")} == {(32, 32), (64, 64)}
    assert state.values["moments"].keys() == {"leaders"}
    assert not learner_of(mode="preview").method.adapter.state().inner("moments").tensors


def test_moments_are_positive_semi_definite_in_bf16_too() -> None:
    learner = learner_of(train={"precision": "bf16"})
    learner.learn(digit_tasks()[0])
    for moment in adapter_of(learner)._moments.values():
        values = torch.linalg.eigvalsh(moment.double())
        assert values.min() > -1e-6 * values.max()
    learner.learn(digit_tasks()[1])


def test_preview_looks_at_the_task_that_begins() -> None:
    learner = learner_of(mode="preview")
    context = learner.begin(digit_tasks()[0])
    adapter = adapter_of(learner)
    moments = input_moments(context, adapter._lora.places())
    name, module = next(iter(adapter._lora.places().items()))
    down, up = start_factors(wrapped_matrix(module), damped(moments.tensors[moments.leaders[name]], 0.01), 4, "preview")
    found = adapter.factors()[name]
    assert torch.equal(found[0], down)
    assert torch.equal(found[1], up)


def test_few_samples_are_drawn_by_the_seed_and_the_task() -> None:
    learner = learner_of()
    context = learner.begin(digit_tasks()[0])
    some = [sampled(context, context.task.data, 5) for _ in range(2)]
    assert some[0].examples.ids.tolist() == some[1].examples.ids.tolist()
    assert len(some[0]) == 5
    assert set(some[0].examples.ids.tolist()) < set(context.task.data.examples.ids.tolist())
    assert sampled(context, context.task.data, 10**6) is context.task.data


@pytest.mark.parametrize("case", ["digits", "bert", "gpt2-writer"])
def test_with_nothing_to_keep_yet_the_first_task_is_plain_lora(case: str) -> None:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case.endswith("writer") else {}
    options = {"rank": 4, "alpha": 4.0, "targets": "all-linear"}
    plain = Learner(model, build_method("o-lora", options), train=SETTINGS, **kind)  # type: ignore[arg-type]
    ours = learner_of(case, train={"warmup": 0.0})
    for learner in (plain, ours):
        learner.learn(tasks_of(case)[0])
    expected = plain.method.adapter.trained()
    found = adapter_of(ours).trained()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def text_file(folder: Path) -> Path:
    path = folder / "kept.txt"
    path.write_text("\n".join(f"Line {at} of what is to be kept." for at in range(40)))
    return path


def table(folder: Path) -> Path:
    path = folder / "kept.jsonl"
    rows = [{"question": f"What is {at}?", "answer": f"number {at}"} for at in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("write", [text_file, table])
@pytest.mark.parametrize("case", ["bert", "gpt2-writer"])
def test_texts_to_keep_count_as_a_task_before_the_first(
    case: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    learner = learner_of(case, keep_file=str(path))
    learner.begin(tasks_of(case)[0])
    kept = {name: moment.clone() for name, moment in adapter_of(learner)._moments.items()}
    assert kept
    name, module = next(iter(adapter_of(learner)._lora.places().items()))
    expected = start_factors(wrapped_matrix(module), damped(kept[adapter_of(learner)._leaders[name]], 0.01), 4, "keep")
    assert torch.equal(adapter_of(learner).factors()[name][1], expected[1])
    path.unlink()
    other = learner_of(case, keep_file=str(path))
    with pytest.raises(DataError, match="does not exist"):
        other.begin(tasks_of(case)[0])


def test_a_table_is_read_as_prompts_and_answers(tmp_path: Path) -> None:
    path = table(tmp_path)
    assert kept_texts(path, "text", 99).inputs[1] == "What is 1?\nnumber 1"
    assert kept_texts(path, "chat", 99).inputs[1].answer == "number 1"
    assert max(len(piece) for piece in kept_texts(text_file(tmp_path), "text", 99).inputs) <= 74
    assert "".join(kept_texts(text_file(tmp_path), "text", 99).inputs) == text_file(tmp_path).read_text()


@pytest.mark.parametrize(("case", "mode"), [("bert", "keep"), ("digits", "preview"), ("gpt2-writer", "keep")])
def test_it_resumes_exactly(case: str, mode: str, tmp_path: Path) -> None:
    keep = {"keep_file": str(text_file(tmp_path))} if case == "bert" else {}
    learner, again = (learner_of(case, mode=mode, samples=10, **keep) for _ in range(2))
    first, second, third = tasks_of(case)
    learner.learn(first)
    halfway = learn_keeping(learner, second)
    learner.learn(third)
    (tmp_path / "kept.txt").unlink(missing_ok=True)  # read once, when the first task began
    go_on(again, halfway)
    again.learn(third)
    assert same_state(learner.state(), again.state()) is None


def test_without_the_adapter_the_base_is_back_and_a_new_task_leaves_old_pairs_alone() -> None:
    learner = learner_of()
    learner.learn(digit_tasks()[0])
    learner.learn(digit_tasks()[1])
    frozen = {
        n: (d.detach().clone(), u.detach().clone()) for n, (d, u) in adapter_of(learner).factors(finished=True).items()
    }
    learner.learn(digit_tasks()[2])
    for name, (down, up) in adapter_of(learner).factors(finished=True).items():
        assert torch.equal(down[: len(frozen[name][0])], frozen[name][0])
        assert torch.equal(up[:, : len(frozen[name][0])], frozen[name][1])
        assert len(down) == 20  # 2 rank for each finished task, and the start of the last
    untouched = learner_of()
    data = learner.test_dataset(digit_tasks()[0])
    with learner.method.adapter.disabled():
        found = learner.backbone.features(learner.backbone.collate([(data.prepared, torch.arange(3).numpy())]))
    plain = untouched.backbone.features(untouched.backbone.collate([(data.prepared, torch.arange(3).numpy())]))
    assert torch.equal(found, plain)


def stock(folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(WRITER), str(folder))


IDS = torch.tensor([[4, 20, 30, 40, 50, 60]])


@pytest.mark.parametrize("mode", MODES)
def test_exports_are_right_on_the_unchanged_base_in_stock_peft(mode: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = run(config_of(tmp_path, {"name": "corda", "rank": 4, "mode": mode}), tmp_path / "run")
    export_run(out, tmp_path / "peft", "peft")
    export_run(out, tmp_path / "merged", "merged")
    learner = load_learner(out)
    with torch.no_grad():
        expected = learner.backbone.stock(input_ids=IDS).logits
        found = stock(tmp_path / "peft")(input_ids=IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits
        untouched = AutoModelForCausalLM.from_pretrained(WRITER)(IDS).logits
        changes = [stock(out / "adapters" / f"{task:03d}") for task in (1, 2)]
    assert (found - expected).abs().max() < 1e-4
    assert (merged - expected).abs().max() < 1e-4
    assert (untouched - expected).abs().max() > 1e-2
    # The two tasks' folders together are what the learner has become.
    total = {}
    for model in changes:
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                assert module.r["default"] == 8
                total[name] = total.get(name, 0) + module.get_delta_weight("default").detach()
    adapter = adapter_of(learner)
    for name, (down, up) in adapter.factors().items():
        old_down, old_up = adapter.factors(finished=True)[name]
        torch.testing.assert_close(total[name], (up @ down + old_up @ old_down).detach(), atol=1e-5, rtol=1e-4)


def test_the_trained_pair_alone_would_be_a_wrong_export(tmp_path: Path) -> None:
    learner = learner_of("llama-writer", mode="preview")
    learner.learn(tasks_of("llama-writer")[0])
    adapter = adapter_of(learner)
    assert adapter._lora.export(tmp_path / "pair")
    assert adapter.export(tmp_path / "right")
    with torch.no_grad():
        expected = learner.backbone.stock(input_ids=IDS).logits
        right, pair = (stock(tmp_path / name)(input_ids=IDS).logits for name in ("right", "pair"))
    assert (right - expected).abs().max() < 1e-4
    assert (pair - expected).abs().max() > 1e-2


def test_tensors_hold_what_a_checkpoint_holds(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = run(config_text({"name": "corda", "rank": 4}), tmp_path / "run")
    export_run(out, tmp_path / "out", "safetensors")
    found = load_file(tmp_path / "out" / "adapter.safetensors")
    own = adapter_of(load_learner(out)).state()
    assert found.keys() == {f"adapter/{name}" for name in own.tensors}
    assert all(found[f"adapter/{name}"].equal(value) for name, value in own.tensors.items())


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for options in ({"samples": 0}, {"damp": 0.0}, {"mode": "preview", "keep_file": "a.txt"}, {"rank": 0}):
        with pytest.raises(ConfigError):
            learner_of(**options)
    with pytest.raises(ConfigError, match="reads images"):
        learner_of(keep_file=str(text_file(tmp_path)))
    with pytest.raises(ConfigError, match="no more triplets than 32"):
        learner_of(rank=33)
