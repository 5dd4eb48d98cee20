"""Tiny random stock models in the `transformers` layout, with tokenizer or preprocessor: no network, a few KB each.

`save_tiny("vit", folder)` writes a complete model folder that `Backbone.load` (or `AutoModel`) reads. Equal arguments
give equal weights. Widths are 32, images 32 px in patches of 8, and tokenizers read bytes, so that any text has tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TEXT_ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "minilm", "t5")
DECODERS = ("llama", "gpt2")
WRITERS = ("llama-writer", "gpt2-writer", "t5-writer", "bart-writer")  # with their language heads
TEXT_MODELS = TEXT_ENCODERS + DECODERS
IMAGE_MODELS = ("vit", "deit", "dinov2", "clip-vision")
ALL_MODELS = TEXT_MODELS + IMAGE_MODELS

WIDTH = 32
LAYERS = 3
IMAGE_SIZE = 32
PATCH_SIZE = 8
SPECIAL = ("<pad>", "<unk>", "<cls>", "<sep>", "<s>", "</s>")
MAX_POSITIONS = 128

VOCABULARY = len(SPECIAL) + 256

# Larger than the libraries' 0.02, so that attention in a random model is far from uniform and mistakes show.
_INIT = 0.3

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": LAYERS,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": 0,
    "eos_token_id": 5,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": MAX_POSITIONS,
    "init_std": _INIT,
    "pad_token_id": 0,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "decoder_start_token_id": 5,
    "forced_eos_token_id": None,
}


def save_tiny(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write the model `name` (one of `ALL_MODELS`) to `folder`; `changes` override its configuration."""
    model = build_tiny(name, seed=seed, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if name in IMAGE_MODELS:
        _save_preprocessor(name, folder)
    else:
        byte_tokenizer(name).save_pretrained(folder)
    if name == "minilm":
        _save_sentence_files(folder)
    return folder


def build_tiny(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """The model itself, in memory, in evaluation mode; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _BUILDERS[name](changes).eval()


def byte_tokenizer(name: str) -> Any:
    """A byte-level tokenizer with the special tokens that models like `name` put around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = {"llama": "<s> $A", "gpt2": "$A", "t5": "$A </s>"}.get(name, "<cls> $A <sep>")
    used = [(token, vocabulary[token]) for token in SPECIAL if token in around]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=used)
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if name not in DECODERS:
        # Decoders often come without a padding token; these stand for them.
        tokens |= {"pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_POSITIONS, **tokens)


def _bert_like() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": _INIT,
        "pad_token_id": 0,
    }


def _vit_like() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": _INIT,
    }


def _bert(changes: dict[str, Any]) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_bert_like() | changes))


def _roberta(changes: dict[str, Any]) -> Any:
    from transformers import RobertaConfig, RobertaModel

    # RoBERTa's positions start after the padding index.
    return RobertaModel(RobertaConfig(**_bert_like() | {"max_position_embeddings": MAX_POSITIONS + 1} | changes))


def _distilbert(changes: dict[str, Any]) -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    own = {
        "vocab_size": VOCABULARY,
        "dim": WIDTH,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": _INIT,
        "pad_token_id": 0,
    }
    return DistilBertModel(DistilBertConfig(**own | changes))


def _modernbert(changes: dict[str, Any]) -> Any:
    from transformers import ModernBertConfig, ModernBertModel

    special = {"bos_token_id": 4, "eos_token_id": 5, "cls_token_id": 2, "sep_token_id": 3}
    # A short window, so that the sliding layers differ from the full ones on short texts.
    return ModernBertModel(ModernBertConfig(**_bert_like() | special | {"local_attention": 8} | changes))


def _llama(changes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaModel

    own = {"num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": 4, "eos_token_id": 5}
    return LlamaModel(LlamaConfig(**_bert_like() | own | changes))


def _llama_writer(changes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    own = {"num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": 4, "eos_token_id": 5}
    return LlamaForCausalLM(LlamaConfig(**_bert_like() | own | changes))


def _t5_writer(changes: dict[str, Any]) -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration(t5_config(**changes))


def _bart_writer(changes: dict[str, Any]) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(BartConfig(**BART | changes))


def _gpt2_writer(changes: dict[str, Any]) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(_gpt2_config(changes))


def _gpt2(changes: dict[str, Any]) -> Any:
    from transformers import GPT2Model

    return GPT2Model(_gpt2_config(changes))


def _gpt2_config(changes: dict[str, Any]) -> Any:
    from transformers import GPT2Config

    own = {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "initializer_range": _INIT,
        "bos_token_id": 4,
        "eos_token_id": 5,
    }
    return GPT2Config(**own | changes)


def t5_config(**changes: Any) -> Any:
    """The configuration of the tiny T5, for tests that need its decoder as well."""
    from transformers import T5Config

    return T5Config(**T5 | changes)


def _t5(changes: dict[str, Any]) -> Any:
    from transformers import T5Model

    return T5Model(t5_config(**changes))


def _vit(changes: dict[str, Any]) -> Any:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**_vit_like() | changes), add_pooling_layer=False)


def _deit(changes: dict[str, Any]) -> Any:
    from transformers import DeiTConfig, DeiTModel

    return DeiTModel(DeiTConfig(**_vit_like() | changes), add_pooling_layer=False)


def _dinov2(changes: dict[str, Any]) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    own = _vit_like()
    del own["intermediate_size"]
    return Dinov2Model(Dinov2Config(**own | {"mlp_ratio": 2} | changes))


def _clip_vision(changes: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    # CLIP scales every spread by this factor.
    own = _vit_like() | {"initializer_factor": 3.0, "projection_dim": 16}
    return CLIPVisionModel(CLIPVisionConfig(**own | changes))


_BUILDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bert": _bert,
    "minilm": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "llama": _llama,
    "llama-writer": _llama_writer,
    "gpt2-writer": _gpt2_writer,
    "t5-writer": _t5_writer,
    "bart-writer": _bart_writer,
    "gpt2": _gpt2,
    "t5": _t5,
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "clip-vision": _clip_vision,
}


def _save_preprocessor(name: str, folder: Path) -> None:
    settings: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if name == "clip-vision":
        crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        settings |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": IMAGE_SIZE}}
        settings |= {"do_center_crop": True, "crop_size": crop}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _save_sentence_files(folder: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
