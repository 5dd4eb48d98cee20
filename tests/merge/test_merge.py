"""Merging full models: the identities of each method, numbers worked by hand, and folders that transformers loads."""

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_models import bert, gpt2, llama, loaded, logits, saved, state, tuned
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer
from torch import Tensor

from contune.errors import ConfigError, ContuneError, DataError, NumericError, RunDirectoryError
from contune.merge import Recipe, graft, merge_checkpoints, transfer
from contune.merge.files import StoredTensors, write_tensors
from contune.merge.models import checkpoints as checkpoints_module
from contune.merge.models.arithmetic import dare, elected_mean, ties, weighted_mean, weighted_sum
from contune.merge.models.compatibility import Checkpoint
from contune.merge.models.grafting import grafted
from contune.merge.models.lines_scaling import block_of, layer_scales, scaled
from contune.merge.models.recipe import combined
from contune.merge.models.task_vector_transfer import padded_difference, padded_sum
from contune.merge.tensors import difference, magnitude_threshold, plus

Floats = st.floats(-1e3, 1e3, allow_nan=False, width=32)
Vectors = st.lists(Floats, min_size=1, max_size=40)


# --- the mathematics -------------------------------------------------------------------------------------------------


@given(Vectors)
def test_one_model_with_weight_one_is_given_back(values: list[float]) -> None:
    model = {"a": torch.tensor(values)}
    base = {"a": torch.linspace(-1, 1, len(values))}
    change = difference(model, base)
    for recipe in (Recipe(), Recipe(method="task-arithmetic"), Recipe(method="ties", keep=1.0), Recipe(dare=1.0)):
        back = plus(base, combined([change], recipe, layer_scales(["a"], 1.0, 0.0)))["a"]
        assert torch.allclose(back, model["a"].double(), rtol=0, atol=1e-12), recipe  # far below float32's last bit


def test_task_arithmetic_by_hand_and_backwards() -> None:
    base, model = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([2.0, 0.0])}
    change = difference(model, base)
    assert plus(base, weighted_sum([change, change], [0.5, 1.0]))["a"].tolist() == [2.5, -1.0]
    assert plus(base, weighted_sum([change], [-1.0]))["a"].tolist() == [0.0, 4.0]
    assert weighted_mean([base, model], [1, 3])["a"].tolist() == [1.75, 0.5]


def test_ties_by_hand() -> None:
    # Six entries, keep one half: |first| >= 3 and |second| >= 2 survive, over both tensors together.
    first = {"a": torch.tensor([5.0, 1.0, -3.0]), "b": torch.tensor([4.0, 0.5, 0.0])}
    second = {"a": torch.tensor([-2.0, 0.1, -7.0]), "b": torch.tensor([2.0, 0.2, 0.3])}
    merged = ties([first, second], [1.0, 1.0], keep=0.5)
    assert merged["a"].tolist() == [5.0, 0.0, -5.0]
    assert merged["b"].tolist() == [3.0, 0.0, 0.0]
    # Tensor by tensor, the 0.5 and the 0.3 of `b` would have been kept: trimming is over the whole vector.
    apart = ties([{"b": first["b"]}, {"b": second["b"]}], [1.0, 1.0], keep=0.5)
    assert apart["b"].tolist() != merged["b"].tolist()


def test_ties_elects_nothing_where_entries_cancel_and_weights_decide_otherwise() -> None:
    one, other = torch.tensor([2.0]), torch.tensor([-2.0])
    assert elected_mean([one, other], [1.0, 1.0]).item() == 0.0
    assert elected_mean([one, other], [1.0, 1.1]).item() == -2.0
    with pytest.raises(ConfigError, match="above 0"):
        ties([{"a": one}], [-1.0], 0.5)


@given(Vectors, st.integers(1, 4))
def test_ties_of_equal_vectors_is_the_vector(values: list[float], copies: int) -> None:
    change = {"a": torch.tensor(values)}
    merged = ties([change] * copies, [1.0] * copies, keep=1.0)["a"]
    assert torch.allclose(merged.float(), change["a"], rtol=1e-6, atol=0)


def ties_of_the_paper(vectors: Tensor, keep: float) -> Tensor:
    """Algorithm 1 of arXiv 2306.01708 on whole flat vectors, written for clarity."""
    count = max(1, math.ceil(round(keep * vectors.shape[1], 6)))
    least = vectors.abs().sort(dim=1, descending=True).values[:, count - 1 : count]
    trimmed = torch.where(vectors.abs() >= least, vectors, 0)
    sign = trimmed.sum(dim=0).sign()
    agree = (trimmed.sign() == sign) & (sign != 0)
    return (trimmed * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.integers(1, 4))
def test_ties_agrees_with_the_algorithm_on_flat_vectors(seed: int, keep: float, models: int) -> None:
    vectors = torch.randn(models, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).double()
    parts = [{"a": v[:20].reshape(4, 5), "b": v[20:]} for v in vectors]
    merged = ties(parts, [1.0] * models, keep)
    flat = torch.cat([merged["a"].flatten(), merged["b"]])
    assert torch.allclose(flat, ties_of_the_paper(vectors, keep), atol=1e-12)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60),
    st.floats(0.001, 0.999),
)
def test_the_threshold_is_the_size_of_the_last_entry_kept(values: list[float], keep: float) -> None:
    whole = torch.tensor(values)
    count = max(1, math.ceil(round(keep * len(values), 6)))
    expected = whole.abs().sort(descending=True).values[count - 1].item()
    assert magnitude_threshold({"a": whole[:3], "b": whole[3:]}, keep) == expected


def test_dare_keeps_the_mean_and_depends_on_names_alone() -> None:
    change = {"a": torch.linspace(-2, 3, 50), "b": torch.ones(7)}
    assert torch.equal(dare(change, 1.0, "0")["a"], change["a"].double())
    draws = torch.stack([dare(change, 0.3, str(seed))["a"] for seed in range(4000)])
    error = (draws.mean(dim=0) - change["a"]).abs()
    spread = change["a"].abs() * math.sqrt(0.7 / 0.3) / math.sqrt(4000)
    assert (error <= 5 * spread + 1e-9).all()
    # Without dividing by the share the mean would be 0.3 of it, far outside that interval.
    assert ((draws.mean(dim=0) * 0.3 - change["a"]).abs() > 5 * spread)[change["a"].abs() > 1].all()
    alone = dare({"b": change["b"]}, 0.3, "0")["b"]
    assert torch.equal(alone, dare(change, 0.3, "0")["b"])
    assert not torch.equal(dare(change, 0.3, "0")["a"], dare(change, 0.3, "1")["a"])
    twins = dare({"a": torch.ones(50), "b": torch.ones(50)}, 0.3, "0")
    assert not torch.equal(twins["a"], twins["b"])


def test_dare_gives_each_model_a_mask_of_its_own() -> None:
    change = {"a": torch.ones(200)}
    both = combined([change, change], Recipe(method="task-arithmetic", dare=0.5))["a"]
    assert set(both.tolist()) == {0.0, 2.0, 4.0}
    with pytest.raises(ConfigError, match="drops every change"):
        dare(change, 0.0, "0")


def test_lines_grows_with_depth_and_is_linear() -> None:
    names = ["wte.w", *(f"h.{i}.attn.w" for i in range(4)), "ln_f.w"]
    scales = layer_scales(names, 0.25, 0.75)
    assert [scales[name] for name in names] == [0.25, 0.25, 0.5, 0.75, 1.0, 0.25]
    one = {name: torch.randn(3, generator=torch.Generator().manual_seed(3)) for name in names}
    two = {name: torch.ones(3) * place for place, name in enumerate(names)}
    whole = scaled(weighted_sum([one, two], [2.0, -1.0]), scales)
    for name in names:
        apart = 2.0 * scaled(one, scales)[name] - scaled(two, scales)[name]
        assert torch.allclose(whole[name], apart, atol=1e-12)
        assert torch.equal(
            scaled(one, layer_scales(names, 0.3, 0.0))[name], one[name].double() * 0.3
        )  # task arithmetic
        assert torch.equal(scaled(one, layer_scales(names, 1.0, 0.0))[name], one[name].double())
        assert not scaled(one, layer_scales(names, 0.0, 0.0))[name].any()


def test_a_number_inside_a_block_is_not_taken_for_its_index() -> None:
    assert block_of("layers.7.mlp.fc.2.weight") == ("layers.", 7)
    scales = layer_scales(["layers.0.mlp.fc.2.weight", "layers.3.mlp.fc.0.weight"], 0.0, 1.0)
    assert scales == {"layers.0.mlp.fc.2.weight": 0.0, "layers.3.mlp.fc.0.weight": 1.0}


@given(Vectors, st.floats(0, 1))
def test_a_graft_takes_every_weight_from_one_of_the_two(values: list[float], share: float) -> None:
    base = {"a": torch.zeros(len(values)) + 0.1}
    model = {"a": torch.tensor(values)}
    threshold = magnitude_threshold(difference(model, base), share)
    result = grafted(base, model, threshold)["a"]
    assert ((result == base["a"]) | (result == model["a"])).all()
    wanted = 0 if share == 0 else max(1, math.ceil(round(share * len(values), 6)))
    assert int((result == model["a"]).sum()) >= wanted
    assert torch.equal(grafted(base, model, magnitude_threshold(difference(model, base), 1.0))["a"], model["a"])
    assert torch.equal(grafted(base, model, magnitude_threshold(difference(model, base), 0.0))["a"], base["a"])


def test_a_graft_of_a_tiny_share_is_not_empty() -> None:
    base, model = {"a": torch.zeros(100)}, {"a": torch.arange(100.0)}
    result = grafted(base, model, magnitude_threshold(difference(model, base), 1e-7))["a"]
    assert result.nonzero().flatten().tolist() == [99]


def test_transfer_in_sixteen_bits_gives_the_model_back_where_sixteen_bit_arithmetic_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(2000, generator=generator).bfloat16() for _ in range(2))
    back = padded_sum({"a": old}, padded_difference({"a": new}, {"a": old}))["a"].bfloat16()
    assert torch.equal(back, new)
    assert ((new - old) + old == new).float().mean() < 0.8


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(method="task-arithmetic"),
        Recipe(method="ties", keep=1.0),
        Recipe(dare=1.0),
        Recipe(lines=(1.0, 0.0)),
    ],
    ids=str,
)
def test_merging_one_model_writes_the_same_model(trio: tuple[Path, Path, Path], tmp_path: Path, recipe: Recipe) -> None:
    base, first, _ = trio
    merge_checkpoints([first], tmp_path / "out", recipe, base=base)
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(first)))
    assert not torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(base)))


def test_the_mean_needs_no_base_and_is_the_mean(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = trio
    merge_checkpoints([first, second], tmp_path / "out", Recipe(weights=(3.0, 1.0)))
    merge_checkpoints([first, second], tmp_path / "with", Recipe(weights=(3.0, 1.0)), base=base)
    one, two, out, other = (state(f) for f in (first, second, tmp_path / "out", tmp_path / "with"))
    for name in one:
        assert torch.allclose(out[name], 0.75 * one[name] + 0.25 * two[name], atol=1e-7)
        assert torch.equal(out[name], other[name])


def test_all_methods_follow_their_functions(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = trio
    recipe = Recipe(method="ties", keep=0.3, dare=0.8, seed=5, scale=0.7, lines=(0.2, 0.8), weights=(1.0, 2.0))
    merge_checkpoints([first, second], tmp_path / "out", recipe, base=base)
    start = state(base)
    changes = [dare(difference(state(f), start), 0.8, f"5/{i}") for i, f in enumerate((first, second))]
    elected, scales = ties(changes, [1.0, 2.0], 0.3), layer_scales(start, 0.2, 0.8)
    out = state(tmp_path / "out")
    for name in start:
        expected = start[name].double() + 0.7 * scales[name] * elected[name]
        assert torch.allclose(out[name].double(), expected, atol=1e-6), name
    assert scales["transformer.h.1.ln_1.weight"] == pytest.approx(0.6)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["merge"]["lines"] == [0.2, 0.8]


def test_shards_are_read_and_written(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, first, _ = trio
    pieces = saved(loaded(first), tmp_path / "pieces", max_shard_size="20KB")
    assert len(list(pieces.glob("*.safetensors"))) > 2
    merge_checkpoints([pieces, first], tmp_path / "out")
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(first)))
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    model = Checkpoint(first)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(first / "config.json", again)
    write_tensors(again, "model", model.specs, lambda name: model.tensors[name], shard_bytes=20_000)
    assert len(list(again.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(loaded(again)), logits(loaded(first)))


def test_few_tensors_are_held_at_a_time(trio: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    base, first, second = trio
    alive: list[str] = []
    most = 0
    read = StoredTensors.__getitem__

    def counting(self: StoredTensors, name: str) -> Tensor:
        nonlocal most
        value = read(self, name)
        alive.append(name)
        weakref.finalize(value, alive.remove, name)
        most = max(most, len(alive))
        return value

    monkeypatch.setattr(StoredTensors, "__getitem__", counting)
    merge_checkpoints([first, second], tmp_path / "out", Recipe(method="ties"), base=base)
    assert 0 < most <= 4


def test_sixteen_bit_and_wide_models_merge_to_the_wide_type(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, first, _ = trio
    half = saved(gpt2(0).bfloat16(), tmp_path / "half-fine-tuning")
    merge_checkpoints([first], tmp_path / "out", Recipe(method="task-arithmetic"), base=half)
    merged = loaded(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert torch.equal(logits(merged), logits(loaded(first)))
    merge_checkpoints([half], tmp_path / "small", Recipe(method="task-arithmetic", scale=0.0), base=half)
    assert state(tmp_path / "small")["transformer.wte.weight"].dtype == torch.bfloat16


def test_classifiers_keep_tokenizer_and_labels_and_leave_the_head_out(tmp_path: Path) -> None:
    first = saved(tuned(bert(0), 1), tmp_path / "first")
    byte_tokenizer("bert").save_pretrained(first)
    (first / "training_args.bin").write_bytes(b"not read")
    other = tuned(bert(0, num_labels=3), 2)
    second = saved(other, tmp_path / "second")
    with pytest.raises(DataError, match=r"classifier.bias is \[2\] .* and \[3\] .* left out with --leave"):
        merge_checkpoints([first, second], tmp_path / "out")
    shutil.copytree(first, tmp_path / "renamed")
    changed(tmp_path / "renamed", id2label={"0": "ham", "1": "spam"}, label2id={"ham": 0, "spam": 1})
    changed(first, id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    with pytest.raises(DataError, match=r"answers ham, spam and .* no, yes; .* --leave 'classifier\*'"):
        merge_checkpoints([first, tmp_path / "renamed"], tmp_path / "out")
    merge_checkpoints([first, second], tmp_path / "out", leave=["classifier*"])
    one, two, out = state(first), state(second), state(tmp_path / "out")
    assert torch.equal(out["classifier.weight"], one["classifier.weight"])
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.allclose(out[name], (one[name] + two[name]) / 2, atol=1e-7)
    assert loaded(tmp_path / "out").config.num_labels == 2
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "training_args.bin").exists()


def test_graft_of_everything_is_the_model_and_of_nothing_the_base(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = trio
    everything = graft(first, base, tmp_path / "all", share=1.0)
    graft(first, base, tmp_path / "none", share=0.0)
    few = graft(first, base, tmp_path / "few", share=0.01)
    assert torch.equal(logits(loaded(tmp_path / "all")), logits(loaded(first)))
    assert torch.equal(logits(loaded(tmp_path / "none")), logits(loaded(base)))
    total = sum(value.numel() for value in state(base).values())
    assert everything["grafted"] == {"entries": total, "of": total}
    assert few["grafted"]["entries"] == math.ceil(0.01 * total)
    out, start, end = state(tmp_path / "few"), state(base), state(first)
    moved = {name: out[name] != start[name] for name in out}
    assert sum(int(mask.sum()) for mask in moved.values()) == few["grafted"]["entries"]
    assert all(torch.equal(out[name][mask], end[name][mask]) for name, mask in moved.items())


def test_transfer_onto_its_own_base_is_the_model_and_onto_another_adds_the_change(tmp_path: Path) -> None:
    base, new = saved(llama(0), tmp_path / "base"), saved(tuned(llama(0), 1), tmp_path / "new")
    target = saved(llama(9), tmp_path / "target")
    transfer(new, base, base, tmp_path / "same")
    assert torch.equal(logits(loaded(tmp_path / "same")), logits(loaded(new)))
    transfer(new, base, target, tmp_path / "out")
    out, t, n, b = (state(f) for f in (tmp_path / "out", target, new, base))
    assert all(torch.allclose(out[k], t[k] + (n[k] - b[k]), atol=1e-6) for k in out)
    assert not torch.allclose(logits(loaded(tmp_path / "out")), logits(loaded(new)), atol=1e-2)


def test_transfer_pads_grown_vocabularies(tmp_path: Path) -> None:
    base, target = saved(llama(0), tmp_path / "base"), saved(llama(9), tmp_path / "target")
    grown = llama(0)
    grown.resize_token_embeddings(23)
    new = saved(tuned(grown, 1), tmp_path / "new")
    byte_tokenizer("llama").save_pretrained(new)
    transfer(new, base, target, tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert model.config.vocab_size == 23
    name = "model.embed_tokens.weight"
    out, t, n, b = (state(f)[name] for f in (tmp_path / "out", target, new, base))
    assert torch.allclose(out[:20], t + n[:20] - b, atol=1e-6)
    assert torch.equal(out[20:], n[20:])
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    # The other way round: the fine-tuned model has fewer rows than both versions of the base.
    wide = llama(0)
    wide.resize_token_embeddings(23)
    transfer(saved(tuned(llama(0), 2), tmp_path / "small"), saved(wide, tmp_path / "wide"), target, tmp_path / "cut")
    assert loaded(tmp_path / "cut").config.vocab_size == 20


# --- what is refused -------------------------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 50)


def changed(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def poisoned(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.ln_1.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (pickled, DataError, "pytorch_model.bin.*can run code"),
        (broken, DataError, "cannot be read as safetensors"),
        (lambda folder: changed(folder, n_head=4), DataError, "n_head 4 and .* has 2"),
        (lambda folder: changed(folder, model_type="llama"), DataError, "model_type 'llama'"),
        (lambda folder: changed(folder, quantization_config={"bits": 4}), DataError, "quantised"),
        (lambda folder: (folder / "config.json").unlink(), DataError, "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), DataError, "holds no model.safetensors"),
        (poisoned, NumericError, "h.1.ln_1.weight has entries that are not finite"),
        (lambda folder: shutil.rmtree(folder), DataError, "is not a folder"),
    ],
)
def test_bad_models_are_refused_and_nothing_is_left_behind(
    trio: tuple[Path, Path, Path], tmp_path: Path, harm: Any, error: type[ContuneError], says: str
) -> None:
    _, first, second = trio
    harm(second)
    with pytest.raises(error, match=says):
        merge_checkpoints([first, second], tmp_path / "out")
    assert {item.name for item in tmp_path.iterdir()} <= {"base", "first", "second"}


def test_models_of_other_shapes_or_names_are_refused(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, _ = trio
    wider, deeper = saved(gpt2(0, n_embd=32), tmp_path / "wider"), saved(gpt2(0, n_layer=4), tmp_path / "deeper")
    with pytest.raises(DataError, match=r"is \[48\] in .* and \[96\] in"):
        merge_checkpoints([first, wider], tmp_path / "out")
    with pytest.raises(DataError, match=r"has 12 tensors that .* has not \(transformer.h.3"):
        merge_checkpoints([first, deeper], tmp_path / "out")
    with pytest.raises(DataError, match="versions of one architecture alone"):
        transfer(first, base, saved(llama(0), tmp_path / "llama"), tmp_path / "out")
    with pytest.raises(DataError, match="only models of one base"):
        transfer(first, base, wider, tmp_path / "out")
    with pytest.raises(ConfigError, match="give --base"):
        merge_checkpoints([first], tmp_path / "out", Recipe(method="ties"))
    with pytest.raises(ConfigError, match="1 weights for 2 models"):
        merge_checkpoints([first, base], tmp_path / "out", Recipe(weights=(1.0,)))
    with pytest.raises(ConfigError, match="did you mean 'ties'"):
        Recipe(method="tiess")
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        graft(first, base, tmp_path / "out", share=2.0)


def test_an_existing_folder_is_never_touched(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, first, _ = trio
    before = {item: item.read_bytes() for item in first.iterdir()}
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        merge_checkpoints([first], first)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        merge_checkpoints([first], tmp_path / "empty")
    assert {item: item.read_bytes() for item in first.iterdir()} == before


def test_a_merge_that_stops_half_way_leaves_nothing(
    trio: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    _, first, _ = trio
    seen: list[list[str]] = []

    def stop(path: Path, record: Any) -> None:
        if path.name == "merge.json":
            seen.append(sorted(item.name for item in path.parent.iterdir()))
            raise KeyboardInterrupt
        path.write_text(json.dumps(record))

    monkeypatch.setattr(checkpoints_module, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints([first], tmp_path / "out")
    assert "model.safetensors" in seen[0]  # it was stopped after the weights were written
    assert {item.name for item in tmp_path.iterdir()} == {"base", "first", "second"}
