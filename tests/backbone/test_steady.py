"""A base that cannot be used is refused in a sentence when it is loaded; what only looks unusual is read as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as stock
from peft import LoraConfig, get_peft_model
from tiny_models import save_tiny
from transformers import AutoModel

from contune.backbone import assemble
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.checks.tiny_models import byte_tokenizer
from contune.errors import CombinationError, ConfigError

SMALL = {"vocab_size": 262, "bos_token_id": 4, "eos_token_id": 5}


def load(folder: Path, reads: str | None = None) -> Backbone:
    return Backbone.load(ModelConfig(path=str(folder)), reads=reads)


def edit(folder: Path, **keys: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def made(folder: Path, model: Any) -> Path:
    model.eval().save_pretrained(folder)
    byte_tokenizer("gpt2").save_pretrained(folder)
    return folder


def features(backbone: Backbone) -> torch.Tensor:
    inputs = backbone.collate([(backbone.prepare(["hello", "hello there"]), np.arange(2))])
    with torch.no_grad():
        return backbone.features(inputs)


def test_an_adapter_left_beside_a_whole_model_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "whole")
    plain = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    get_peft_model(plain, LoraConfig(r=4, target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).rename(folder / name)
    with pytest.raises(ConfigError, match=r"adapter_config\.json.*move the adapter's files"):
        load(folder)


def test_a_model_that_draws_at_random_is_refused(tmp_path: Path) -> None:
    save_tiny("vit", tmp_path)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 4}
    stock.ViTMAEModel(stock.ViTMAEConfig(**shape, **decoder, image_size=32, patch_size=8)).eval().save_pretrained(
        tmp_path
    )
    with pytest.raises(ConfigError, match="draws at random in every forward pass"):
        load(tmp_path)


def noisy(states: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
    return states + torch.rand(())


def of_the_batch(states: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
    return states - states.mean(0, keepdim=True) if len(states) > 1 else states


def of_the_padding(states: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
    return states - states.mean(1, keepdim=True)


def unmasked(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states + 0.05 * (~mask.bool()).sum(1)[:, None, None]


@pytest.mark.parametrize(
    ("fault", "word"),
    [(noisy, "each time"), (of_the_batch, "beside"), (of_the_padding, "beside"), (unmasked, "beside")],
)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_states_that_depend_on_chance_on_the_batch_or_on_padding_are_refused(
    name: str, fault: Callable[..., torch.Tensor], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = save_tiny(name, tmp_path), assemble.forward_function
    load(folder)

    def spoiled(model: Any, options: dict[str, Any]) -> Callable[..., torch.Tensor]:
        forward = whole(model, options)
        return lambda **inputs: fault(forward(**inputs), inputs["attention_mask"])

    monkeypatch.setattr(assemble, "forward_function", spoiled)
    with pytest.raises(ConfigError, match=word):
        load(folder)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
            r"quantised \(bitsandbytes\)",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\)"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_attention_heads": 5}, "cannot be loaded"),
    ],
)
def test_a_configuration_that_does_not_fit_is_a_sentence(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(edit(save_tiny("bert", tmp_path), **keys))


def test_how_outputs_are_wrapped_changes_nothing(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path)
    before = features(load(folder))
    given = edit(folder, return_dict=False, output_hidden_states=True, output_attentions=True)
    assert torch.equal(features(load(given)), before)


def test_models_that_choose_their_attention_by_other_means_run_as_they_are_and_take_no_prefix(tmp_path: Path) -> None:
    gptj = stock.GPTJConfig(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    neo = stock.GPTNeoConfig(
        **SMALL,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
    )
    falcon = stock.FalconConfig(**SMALL, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False)
    for number, config in enumerate((gptj, neo, falcon)):
        torch.manual_seed(0)
        whole = stock.AutoModelForCausalLM.from_config(config).eval()
        backbone = load(made(tmp_path / str(number), whole), "chat")
        ids = torch.tensor([[7, 8, 9, 10]])
        with torch.no_grad():
            states = backbone.parts.forward(input_ids=ids, attention_mask=torch.ones_like(ids))
            assert torch.allclose(whole.get_output_embeddings()(states), whole(input_ids=ids).logits, atol=1e-5)
        with pytest.raises(CombinationError, match="prefixes cannot attach"):
            backbone.kv_width(0)


def test_xlnet_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = stock.XLNetModel(stock.XLNetConfig(vocab_size=262, d_model=32, n_layer=2, n_head=4, d_inner=64))
    with pytest.raises(ConfigError, match="cannot read two inputs of different lengths together"):
        load(made(tmp_path, model))
