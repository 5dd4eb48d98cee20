"""Merging adapters by their true change, and mixtures: exact through stock peft and transformers, on tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_adapters import adapter, on
from merge_models import IDS, bert, gpt2, llama, loaded, logits, saved, tuned
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny
from torch import Tensor

from contune.errors import ConfigError, DataError, RunDirectoryError
from contune.merge import Recipe, load_smile, make_smile, merge_adapters, merge_checkpoints, transfer_adapter
from contune.merge.adapters.folder import AdapterFolder, oriented
from contune.merge.adapters.low_rank import dora_change, terms_of, terms_of_product
from contune.merge.models.arithmetic import dare, ties
from contune.merge.models.compatibility import Checkpoint
from contune.merge.smile.smile import SmileLinear, chosen_experts, gate_scores

MODELS = {"gpt2": (gpt2, ["c_attn", "c_proj"]), "llama": (llama, ["q_proj", "v_proj", "down_proj"])}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "patterns": {"rank_pattern": {"c_proj": 1, "q_proj": 4}, "alpha_pattern": {"c_attn": 2, "v_proj": 9}},
}


def weights(base: Path, folder: Path) -> dict[str, Tensor]:
    """The weights that peft merges an adapter into: what the adapter truly does."""
    model = on(base, folder).merge_and_unload()
    return {name: value.double() for name, value in model.state_dict().items()}


def expected(base: Path, folders: list[Path], coefficients: list[float]) -> Tensor:
    """Logits of the base with the sum of the adapters' true changes."""
    model = loaded(base).double()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [weights(base, folder) for folder in folders]
    pairs = list(zip(coefficients, parts, strict=True))
    summed = {n: v + sum(c * (part[n] - v) for c, part in pairs) for n, v in start.items()}
    model.load_state_dict(summed)
    return logits(model).float()


@pytest.fixture(params=MODELS)
def place(request: Any, tmp_path: Path) -> tuple[Path, list[str]]:
    make, targets = MODELS[request.param]
    biases = {"attention_bias": True, "mlp_bias": True} if make is llama else {}
    return saved(make(0, **biases), tmp_path / "base"), targets


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_at_full_rank_is_exact(place: tuple[Path, list[str]], tmp_path: Path, kind: str) -> None:
    base, targets = place
    one = adapter(base, tmp_path / "one", targets, seed=1, **KINDS[kind])
    two = adapter(base, tmp_path / "two", targets, seed=2, **KINDS[kind])
    record = merge_adapters(
        [one, two], tmp_path / "sum", Recipe(method="task-arithmetic", weights=(0.6, -0.4)), rank="full"
    )
    merged = logits(on(base, tmp_path / "sum"))
    assert torch.allclose(merged, expected(base, [one, two], [0.6, -0.4]), atol=1e-5)
    assert record["kept"]["share"] == pytest.approx(1.0)
    assert (merged - logits(loaded(base))).abs().max() > 0.05
    merge_adapters([one], tmp_path / "same", rank="full")
    assert torch.allclose(logits(on(base, tmp_path / "same")), logits(on(base, one)), atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora", "bias", "patterns"])
def test_the_sum_of_the_ranks_is_enough_for_sums_of_lora(
    place: tuple[Path, list[str]], tmp_path: Path, kind: str
) -> None:
    base, targets = place
    one = adapter(base, tmp_path / "one", targets, seed=1, **KINDS[kind])
    two = adapter(base, tmp_path / "two", targets, seed=2, r=2)
    merge_adapters([one, two], tmp_path / "mean")
    assert torch.allclose(logits(on(base, tmp_path / "mean")), expected(base, [one, two], [0.5, 0.5]), atol=1e-5)
    ranks = [AdapterFolder(tmp_path / "mean").rank(module) for module in AdapterFolder(one).modules]
    assert max(ranks) <= 6


@pytest.mark.parametrize(("kind", "right"), [("lora", True), ("rslora", False), ("dora", False), ("bias", False)])
def test_where_peft_is_right_and_where_it_is_silently_wrong(tmp_path: Path, kind: str, right: bool) -> None:
    from peft import PeftModel

    base = saved(llama(0, attention_bias=True, mlp_bias=True), tmp_path / "base")
    # rsLoRA's scaling changes with the rank, so that the sum of ranks shows it.
    one = adapter(base, tmp_path / "one", ["q_proj", "down_proj"], seed=1, **KINDS[kind])
    two = adapter(base, tmp_path / "two", ["q_proj", "down_proj"], seed=2, **KINDS[kind])
    model = PeftModel.from_pretrained(loaded(base), one, adapter_name="one")
    model.load_adapter(two, adapter_name="two")
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    wanted = expected(base, [one, two], [0.5, 0.5])
    assert torch.allclose(logits(model.eval()), wanted, atol=1e-4) is right
    merge_adapters([one, two], tmp_path / "out", rank="full")
    assert torch.allclose(logits(on(base, tmp_path / "out")), wanted, atol=1e-5)


def test_kinds_mix(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    kinds = [("lora", ["q_proj"]), ("rslora", ["q_proj", "up_proj"]), ("dora", ["v_proj", "q_proj"])]
    folders = [adapter(base, tmp_path / k, t, seed=i, **KINDS[k]) for i, (k, t) in enumerate(kinds)]
    merge_adapters(folders, tmp_path / "out", Recipe(weights=(1.0, 2.0, 1.0)), rank="full")
    assert torch.allclose(logits(on(base, tmp_path / "out")), expected(base, folders, [0.25, 0.5, 0.25]), atol=1e-5)


def test_a_small_rank_gives_the_nearest_change_of_that_rank(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    one = adapter(base, tmp_path / "one", ["q_proj"], seed=1)
    two = adapter(base, tmp_path / "two", ["q_proj"], seed=2)
    record = merge_adapters([one, two], tmp_path / "out", rank=2)
    shares = []
    for module in AdapterFolder(one).modules:
        full = sum(AdapterFolder(f).change(module, None) for f in (one, two)) / 2
        u, s, v = torch.linalg.svd(full)
        nearest = u[:, :2] * s[:2] @ v[:2]
        assert torch.allclose(AdapterFolder(tmp_path / "out").change(module, None), nearest, atol=1e-6)
        shares.append(float(s[:2].square().sum() / s.square().sum()))
    assert record["kept"]["share"] == pytest.approx(min(shares), abs=1e-9)
    assert record["kept"]["share"] < 0.99


def test_ties_and_dare_act_on_the_true_change(tmp_path: Path) -> None:
    base = saved(gpt2(0), tmp_path / "base")
    folders = [adapter(base, tmp_path / k, ["c_attn"], seed=i, **KINDS[k]) for i, k in enumerate(("rslora", "dora"))]
    merge_adapters(folders, tmp_path / "out", Recipe(method="ties", keep=0.4, dare=0.7, seed=3), rank="full")
    start = {name: value.double() for name, value in loaded(base).state_dict().items()}
    names = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(3)]
    changes = [
        {n.replace(".weight", ":weight"): (w[n] - start[n]).T for n in names}
        for w in (weights(base, folder) for folder in folders)
    ]
    elected = ties([dare(c, 0.7, f"3/{i}") for i, c in enumerate(changes)], [1.0, 1.0], 0.4)
    out = AdapterFolder(tmp_path / "out")
    for module in out.modules:
        wanted = elected[module + ":weight"]
        assert (wanted == 0).any()
        # Entries that lie on the threshold may fall on either side for rounding of the reference.
        assert ((out.change(module, None) - wanted).abs() > 1e-5).sum() <= 1


def test_lines_counts_all_layers_of_the_base(tmp_path: Path) -> None:
    base = saved(gpt2(0), tmp_path / "base")
    one = adapter(base, tmp_path / "one", ["c_attn"], seed=1, layers_to_transform=[0, 1])
    merge_adapters([one], tmp_path / "out", Recipe(lines=(0.5, 0.5)))
    before, after = AdapterFolder(one), AdapterFolder(tmp_path / "out")
    for layer, scale in ((0, 0.5), (1, 0.75)):  # and 1.0 for the third, which the adapter does not touch
        module = f"transformer.h.{layer}.attn.c_attn"
        assert torch.allclose(after.change(module, None), scale * before.change(module, None), atol=1e-6)
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"LiNeS counts all layers.*give --base"):
        merge_adapters([one], tmp_path / "again", Recipe(lines=(0.5, 0.5)))


def test_a_model_whose_files_use_other_names_than_its_layers(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModel

    base = save_tiny("vit", tmp_path / "base")
    stored = Checkpoint(base).specs
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value += 0.3
        wanted = model.eval()(pixel_values=pixels).last_hidden_state
    model.save_pretrained(tmp_path / "one")
    modules = AdapterFolder(tmp_path / "one").modules
    assert not any(module + ".weight" in stored for module in modules)  # layers.0.attention.q_proj is stored otherwise
    merge_adapters([tmp_path / "one"], tmp_path / "out", Recipe(scale=0.5, lines=(1.0, 1.0)), rank="full")
    make_smile([tmp_path / "one"], base, tmp_path / "mix", rank=0)
    merge_adapters([tmp_path / "one"], tmp_path / "same", rank="full")
    with torch.no_grad():
        same = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "same").eval()
        assert torch.allclose(same(pixel_values=pixels).last_hidden_state, wanted, atol=1e-5)
        mixed = load_smile(tmp_path / "mix")(pixel_values=pixels).last_hidden_state
        assert torch.allclose(mixed, wanted, atol=1e-5)
        assert not torch.allclose(
            AutoModel.from_pretrained(base)(pixel_values=pixels).last_hidden_state, wanted, atol=1e-2
        )
    before, after = (AdapterFolder(tmp_path / name) for name in ("same", "out"))
    for layer, scale in enumerate((0.5, 0.75, 1.0)):
        module = f"layers.{layer}.attention.q_proj"
        assert torch.allclose(after.change(module, None), scale * before.change(module, None), atol=1e-6)
    # The same layer under its stored name, as older versions call it: not two layers, and refused.
    shutil.copytree(tmp_path / "same", tmp_path / "old")
    old = "encoder.layer.0.attention.attention.query"
    tensors = load_file(tmp_path / "old" / "adapter_model.safetensors")
    renamed = {key.replace("layers.0.attention.q_proj", old): value for key, value in tensors.items()}
    save_file(renamed, tmp_path / "old" / "adapter_model.safetensors")
    with pytest.raises(DataError, match="what another calls"):
        merge_adapters([tmp_path / "same", tmp_path / "old"], tmp_path / "both", base=base)


def test_embeddings_are_merged(tmp_path: Path) -> None:
    base = saved(gpt2(0, tie_word_embeddings=False), tmp_path / "base")
    folders = [adapter(base, tmp_path / str(i), ["wte", "c_attn"], seed=i) for i in range(2)]
    merge_adapters(folders, tmp_path / "out")
    both = [logits(on(base, folder)) for folder in (*folders, tmp_path / "out")]
    assert torch.allclose(both[2], expected(base, folders, [0.5, 0.5]), atol=1e-5)


def test_heads_are_averaged_or_left_or_merged_as_differences(tmp_path: Path) -> None:
    base = saved(bert(0), tmp_path / "base")
    settings: dict[str, Any] = {"task_type": "SEQ_CLS", "bias": "lora_only"}
    folders = [adapter(base, tmp_path / str(i), ["query"], seed=i, **settings) for i in range(2)]
    heads = [load_file(f / "adapter_model.safetensors")["base_model.model.classifier.weight"] for f in folders]
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.base_layer.bias"
    merge_adapters(folders, tmp_path / "mean")
    out = load_file(tmp_path / "mean" / "adapter_model.safetensors")
    assert torch.allclose(out["base_model.model.classifier.weight"], (heads[0] + heads[1]) / 2)
    assert key in out
    assert torch.allclose(logits(on(base, tmp_path / "mean")), expected(base, folders, [0.5, 0.5]), atol=1e-5)
    merge_adapters(folders, tmp_path / "sum", Recipe(method="task-arithmetic"))
    assert torch.allclose(logits(on(base, tmp_path / "sum")), expected(base, folders, [1.0, 1.0]), atol=1e-5)
    merge_adapters(folders, tmp_path / "left", Recipe(method="ties"), leave=["classifier*"])
    left = load_file(tmp_path / "left" / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert torch.equal(left, heads[0])


def test_a_head_that_the_base_lacks_cannot_be_added(tmp_path: Path) -> None:
    base = saved(bert(0), tmp_path / "base")
    folders = [adapter(base, tmp_path / str(i), ["query"], seed=i, task_type="SEQ_CLS") for i in range(2)]
    bare = saved(bert(0).bert, tmp_path / "bare")
    with pytest.raises(DataError, match=r"classifier.bias is a whole tensor .* --leave 'classifier.bias'"):
        merge_adapters(folders, tmp_path / "out", Recipe(method="task-arithmetic"), base=bare)
    merge_adapters(folders, tmp_path / "mean", base=bare)
    wanted = expected(base, folders, [0.5, 0.5])
    assert torch.allclose(logits(on(base, tmp_path / "mean")), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "bias"])
def test_an_adapter_moves_to_another_version_of_its_base(
    place: tuple[Path, list[str]], tmp_path: Path, kind: str
) -> None:
    base, targets = place
    one = adapter(base, tmp_path / "one", targets, seed=1, **KINDS[kind])
    transfer_adapter(one, base, tmp_path / "same", rank="full")
    assert torch.allclose(logits(on(base, tmp_path / "same")), logits(on(base, one)), atol=1e-5)
    newer = saved(tuned(loaded(base), 7, 0.05), tmp_path / "newer")
    transfer_adapter(one, newer, tmp_path / "moved", rank="full")
    model, start, moved = loaded(newer).double(), loaded(base).state_dict(), weights(base, one)
    model.load_state_dict({n: v + moved[n] - start[n].double() for n, v in model.state_dict().items()})
    result = logits(on(newer, tmp_path / "moved"))
    assert torch.allclose(result, logits(model).float(), atol=1e-5)
    # A DoRA loaded as it is would do something else on the new base; a LoRA does the same.
    assert torch.allclose(result, logits(on(newer, one)), atol=1e-4) is (kind != "dora")
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(newer)


def test_adapters_of_different_bases_are_refused(tmp_path: Path) -> None:
    base, other = saved(llama(0), tmp_path / "base"), saved(llama(0, intermediate_size=32), tmp_path / "other")
    one = adapter(base, tmp_path / "one", ["down_proj"], seed=1)
    two = adapter(other, tmp_path / "two", ["down_proj"], seed=2)
    with pytest.raises(DataError, match=r"one was made for base '.*base' and .*two for '.*other'"):
        merge_adapters([one, two], tmp_path / "out")
    with pytest.raises(DataError, match=r"down_proj is \[16, 24\] in adapter .* and \[16, 32\]"):
        merge_adapters([one, two], tmp_path / "out", base=base)
    with pytest.raises(
        DataError, match=r"two \(made for '.*other'\) changes .* as \[16, 32\], and base .* as \[16, 24\]"
    ):
        merge_adapters([two], tmp_path / "out", base=base)
    with pytest.raises(DataError, match=r"gpt2 has no tensor for model.layers.0.mlp.down_proj.weight"):
        merge_adapters([one], tmp_path / "out", base=saved(gpt2(0), tmp_path / "gpt2"))
    # The same base under another name: refused by the names alone, accepted when the user says so.
    twin = Path(shutil.copytree(base, tmp_path / "twin"))
    three = adapter(twin, tmp_path / "three", ["down_proj"], seed=3)
    with pytest.raises(DataError, match="say so with --base"):
        merge_adapters([one, three], tmp_path / "out")
    merge_adapters([one, three], tmp_path / "out", base=twin)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(twin)


def rewritten(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: rewritten(f, peft_type="IA3"), "is of the kind IA3"),
        (lambda f: rewritten(f, init_lora_weights="pissa"), "path_initial_model_for_weight_conversion"),
        (lambda f: rewritten(f, target_parameters=["experts.gate_up_proj"]), "uses target_parameters"),
        (lambda f: rewritten(f, bias="all"), "has bias 'none' and .* 'all'"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "can run code"),
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
    ],
)
def test_bad_adapters_are_refused_and_nothing_is_left_behind(tmp_path: Path, harm: Any, says: str) -> None:
    base = saved(llama(0), tmp_path / "base")
    folders = [adapter(base, tmp_path / name, ["q_proj"], seed=1) for name in ("one", "two")]
    harm(folders[1])
    with pytest.raises(DataError, match=says):
        merge_adapters(folders, tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        merge_adapters(folders[:1], folders[0])
    with pytest.raises(ConfigError, match="rank is 0"):
        merge_adapters(folders[:1], tmp_path / "out", rank=0)
    assert {item.name for item in tmp_path.iterdir()} == {"base", "one", "two"}


# --- decompositions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_decompositions_agree_with_the_singular_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    up, down = torch.randn(shape[0], 2, generator=generator), torch.randn(2, shape[1], generator=generator)
    for value, terms in ((matrix, terms_of(matrix)), ((up @ down).double(), terms_of_product(up, down))):
        sizes = torch.linalg.svdvals(value)[: len(terms.sizes)]
        assert torch.allclose(terms.sizes, sizes, atol=1e-5)
        assert torch.allclose(terms.matrix(), value, atol=1e-6)
        assert torch.allclose(terms.balanced().matrix(), value, atol=1e-6)
        assert torch.allclose(terms.balanced().up.norm(dim=0), terms.balanced().down.norm(dim=1))
        rows = terms.directions()
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype), atol=1e-6)
    assert not terms_of(torch.zeros(shape)).balanced().matrix().any()


def test_dora_rows_have_the_length_of_their_magnitudes() -> None:
    weight, change, magnitude = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4) + 0.5
    moved = weight + dora_change(weight, change, magnitude)
    assert torch.allclose(moved.norm(dim=1), magnitude.double())
    assert torch.equal(oriented(weight, (3, 4), transposed=False), weight.T)


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_the_router_chooses_row_by_row_and_its_weights_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=generator)
    gates = torch.linalg.qr(torch.randn(3, 5, 2, generator=generator)).Q.transpose(1, 2)
    scores = gate_scores(x, gates)
    by_hand = torch.stack([(x @ gates[t].T).norm(dim=1) for t in range(3)], dim=1)
    assert torch.allclose(scores, by_hand, atol=1e-6)
    chances, experts = chosen_experts(scores, 2)
    assert torch.allclose(chances.sum(dim=1), torch.ones(6))
    base = torch.nn.Linear(5, 4)
    up, down, bias = torch.randn(3, 4, 2), torch.randn(3, 2, 5), torch.randn(3, 4)
    with torch.no_grad():
        whole = SmileLinear(base, up, down, gates, bias, top=2)(x.reshape(2, 3, 5)).reshape(6, 4)
        for row in range(6):
            parts = [c * (up[e] @ down[e] @ x[row] + bias[e]) for c, e in zip(chances[row], experts[row], strict=True)]
            assert torch.allclose(whole[row], base(x[row]) + sum(parts), atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "bias"])
def test_a_mixture_of_one_adapter_is_the_adapter(place: tuple[Path, list[str]], tmp_path: Path, kind: str) -> None:
    base, targets = place
    one = adapter(base, tmp_path / "one", targets, seed=1, **KINDS[kind])
    record = make_smile([one], base, tmp_path / "mix", rank=0)
    assert torch.allclose(logits(load_smile(tmp_path / "mix")), logits(on(base, one)), atol=1e-5)
    assert record["not_mixed"] == []
    if kind == "lora":  # its rank is 3: that many terms are all there is
        make_smile([one], base, tmp_path / "three", rank=3)
        make_smile([one], base, tmp_path / "two", rank=2)
        assert torch.allclose(logits(load_smile(tmp_path / "three")), logits(on(base, one)), atol=1e-5)
        assert not torch.allclose(logits(load_smile(tmp_path / "two")), logits(on(base, one)), atol=1e-3)


def test_a_mixture_of_one_full_model_has_its_blocks_and_the_rest_of_the_base(tmp_path: Path) -> None:
    base = saved(gpt2(0), tmp_path / "base")
    model = tuned(gpt2(0), 1)
    with torch.no_grad():  # only linear layers of blocks move
        start = gpt2(0).state_dict()
        for name, value in model.named_parameters():
            if ".attn.c_" not in name and ".mlp.c_" not in name:
                value.copy_(start[name])
    expert = saved(model, tmp_path / "expert")
    make_smile([expert], base, tmp_path / "mix", rank=0)
    assert torch.allclose(logits(load_smile(tmp_path / "mix")), logits(loaded(expert)), atol=1e-4)


def test_answers_of_a_mixture_do_not_depend_on_the_batch_and_its_base_is_checked(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    folders = [adapter(base, tmp_path / str(i), ["q_proj", "up_proj"], seed=i) for i in range(3)]
    make_smile(folders, base, tmp_path / "mix", rank=2, gate_rank=2, top=2)
    model = load_smile(tmp_path / "mix")
    with torch.no_grad():
        both = model(torch.cat([IDS, IDS.flip(1)])).logits
    assert torch.allclose(both[:1], logits(model), atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    assert torch.equal(logits(load_smile(tmp_path / "mix", base=moved)), logits(model))
    wrong = saved(tuned(llama(0), 1, 1e-3), tmp_path / "wrong")
    with pytest.raises(DataError, match=r"is not what .*mix was made for"):
        load_smile(tmp_path / "mix", base=wrong)


def test_a_mixture_without_a_change_or_with_bad_numbers_is_refused(tmp_path: Path) -> None:
    base = saved(bert(0), tmp_path / "base")
    with pytest.raises(DataError, match="nothing to mix"):
        make_smile([base], base, tmp_path / "mix")
    with pytest.raises(ConfigError, match="top 2 for 1 experts"):
        make_smile([base], base, tmp_path / "mix", top=2)
    one = adapter(base, tmp_path / "one", ["query"], seed=1, task_type="SEQ_CLS")
    record = make_smile([one], base, tmp_path / "mix")
    assert record["not_mixed"] == ["classifier.bias", "classifier.weight"]
    with pytest.raises(DataError, match="others are full models"):
        make_smile([one, base], base, tmp_path / "more")
    with pytest.raises(DataError, match="is an adapter; give a folder with a full model"):
        merge_checkpoints([one], tmp_path / "more")
