"""Tiny models to merge."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

IDS = torch.tensor([[1, 5, 2, 7, 3]])


def gpt2(seed: int, **changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    own = {"vocab_size": 20, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**own | {"bos_token_id": 1, "eos_token_id": 2} | changes)).eval()


def llama(seed: int, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    own = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    own |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3, "tie_word_embeddings": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**own | {"bos_token_id": 1, "eos_token_id": 2} | changes)).eval()


def bert(seed: int, **changes: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    own = {"vocab_size": 270, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    own |= {"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**own | changes)).eval()


def tuned(model: Any, seed: int, size: float = 0.1) -> Any:
    """The model with every weight moved at random, as if fine-tuned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in sorted(model.named_parameters()):
            value += size * torch.randn(value.shape, generator=generator).to(value.dtype)
    return model


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def state(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture
def trio(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base and two models fine-tuned from it."""
    return tuple(
        saved(model, tmp_path / name)
        for name, model in (("base", gpt2(0)), ("first", tuned(gpt2(0), 1)), ("second", tuned(gpt2(0), 2)))  # type: ignore[return-value]
    )
