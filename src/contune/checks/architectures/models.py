"""Tiny random language models of many architectures, made from the configurations of transformers: no network.

Two layers of width 32, a tokenizer that reads bytes, and windows so short that they matter.
"""

from pathlib import Path
from typing import Any

import torch

from contune.checks.tiny_models import BART, T5, byte_tokenizer

WINDOW = 8  # positions that a layer with a sliding window sees

BASE: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "pad_token_id": None,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    **{name: BASE[name] for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
OWN = {name: BASE[name] for name in ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "initializer_range")}

# Name: the stem of its classes in transformers, and its configuration.
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": WINDOW}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "qwen3-moe": ("Qwen3Moe", {**GROUPED, **EXPERTS}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, "sliding_window": WINDOW, "pad_token_id": 0}),
    "gemma3": ("Gemma3", {**GROUPED, "head_dim": 8, "sliding_window": WINDOW, "pad_token_id": 0}),
    "phi": ("Phi", BASE),
    "phi3": ("Phi3", {**GROUPED, "pad_token_id": 0}),
    "gpt2": ("GPT2", GPT2),
    "gpt-neox": ("GPTNeoX", BASE),
    "gptj": ("GPTJ", {**GPT2, "rotary_dim": 4}),
    "opt": ("OPT", {**BASE, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "bloom": ("Bloom", {**OWN, "n_layer": 2, "n_head": 4, "pad_token_id": 0}),
    "falcon": ("Falcon", {**OWN, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}),
    "granite": ("Granite", {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "mamba": ("Mamba", {**OWN, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}),
}
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", {**T5, "num_layers": 2}),
    "bart": ("Bart", {**BART, "encoder_layers": 2, "decoder_layers": 2, "init_std": BASE["initializer_range"]}),
}
ARCHITECTURES = (*CAUSAL, *TOWERS)


def stock_class(name: str) -> Any:
    """The class of transformers that has an architecture's language head."""
    import transformers

    stem = (CAUSAL | TOWERS)[name][0]
    ends = ("ForConditionalGeneration",) if name in TOWERS else ("ForCausalLM", "LMHeadModel")
    return next(getattr(transformers, stem + end) for end in ends if hasattr(transformers, stem + end))


def save_architecture(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model of an architecture to `folder`; `changes` override its configuration."""
    import transformers

    stem, own = (CAUSAL | TOWERS)[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if stem == "Gemma3" else f"{stem}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = stock_class(name)(config_class(**own | changes)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    byte_tokenizer("t5" if name in TOWERS else "llama").save_pretrained(folder)
    return folder
