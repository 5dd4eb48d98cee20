"""Loading a stock `transformers` model: float32, frozen, evaluation mode, attention through the seam."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from contune.backbone.attention.interface import SEAM_NAMES, Kernel, register
from contune.backbone.source import source_has_adapter
from contune.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two-tower models whose image tower is a plain encoder of its own; contune reads that tower.
_IMAGE_TOWERS = frozenset({"clip", "siglip"})


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the library's load reports and progress bars; what matters in them is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_model_config(source: str, local: bool) -> Any:
    """The configuration of the encoder to load; of a two-tower model, that of its image tower."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # what is wrong in a config.json has no common base in the library
        raise ConfigError(
            f"model.path {source!r} cannot be read as a transformers model ({_first_line(error)}); "
            "give a folder with config.json and weights in safetensors, or a hub id that needs no code of its own"
        ) from error
    method = quantisation(config)
    if method is not None:
        raise ConfigError(
            f"the weights of {source!r} are quantised ({method}) and contune reads plain ones; give the model from which "
            "they were made"
        )
    return config.vision_config if config.model_type in _IMAGE_TOWERS else config


def quantisation(config: Any) -> str | None:
    """How the weights are quantised, where a configuration says that they are."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    return str(found.get("quant_method", "unknown") if isinstance(found, dict) else type(found).__name__)


def model_class(config: Any) -> Any:
    """The stock class for a configuration: the encoder alone where the model has a decoder beside it."""
    from transformers import AutoModel, AutoModelForTextEncoding

    auto = AutoModelForTextEncoding if getattr(config, "is_encoder_decoder", False) else AutoModel
    try:
        found = auto._model_mapping[type(config)]
    except KeyError as error:
        raise ConfigError(
            f"a {config.model_type} model has no encoder or decoder that contune can use alone; "
            "use a text encoder, an image encoder or a decoder-only language model"
        ) from error
    return found[0] if isinstance(found, tuple | list) else found


def language_class(config: Any) -> Any:
    """The stock class of a model with its own language head: a causal one, or an encoder with a decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    both = getattr(config, "is_encoder_decoder", False)
    try:
        return (AutoModelForSeq2SeqLM if both else AutoModelForCausalLM)._model_mapping[type(config)]
    except KeyError as error:
        raise ConfigError(
            f"a {config.model_type} model writes no text; objective: write needs a causal model (Llama, "
            "Qwen, Mistral, GPT-2, Pythia and their relatives) or an encoder with a decoder (T5, BART)"
        ) from error


def load_model(
    source: str,
    local: bool,
    config: Any,
    device: torch.device | str,
    kernel: Kernel | None = None,
    *,
    language: bool = False,
) -> "PreTrainedModel":
    """The model with all its base weights and nothing else, frozen; `language` asks for its language head too.

    `kernel` is what the seam calls; without it, sdpa where the model supports it. Raises `ConfigError` when weights
    are missing, because `transformers` would fill them with random numbers.
    """
    register()
    stock = language_class(config) if language else model_class(config)
    if kernel is None:
        kernel = "sdpa" if stock._supports_sdpa else "eager"
    # Models that choose their attention by other means have no place for the seam; they run as they are.
    attention = SEAM_NAMES[kernel] if stock._can_set_attn_implementation() else "eager"
    options: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(stock.__init__).parameters:
        options["add_pooling_layer"] = False
    # How outputs are wrapped and what is handed out beside them is no part of what a model computes.
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    try:
        model, report = stock.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=local,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever does not fit in a folder surfaces here, with no common base
        raise ConfigError(
            f"the weights of {source!r} cannot be loaded ({_first_line(error)}); "
            "contune reads safetensors files that fit the model's config.json"
        ) from error
    _require_whole(source, model, sorted(report["missing_keys"]))
    # A cache of keys and values serves generation only; features need one pass.
    model.config.use_cache = False
    model.requires_grad_(False)
    ready: PreTrainedModel = model.eval().to(device)
    return ready


def _require_whole(source: str, model: "PreTrainedModel", missing: list[str]) -> None:
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(source_has_adapter(source))
    if missing:
        raise ConfigError(
            f"the weights of {source!r} lack {len(missing)} tensors of {type(model).__name__}, the first is "
            f"{missing[0]!r}; they would be random numbers, so give a complete model"
        )
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise ConfigError(
                f"the weights of {source!r} hold numbers that are not finite (NaN or infinite), the first in {name!r}; "
                "download or save the model once more"
            )


def load_tokenizer(source: str, local: bool) -> Any:
    """The model's own fast tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{source!r} has no tokenizer that can be loaded ({_first_line(error)}); "
            "put the model's tokenizer.json and tokenizer_config.json beside its weights"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of {source!r} has no tokenizer.json; save a fast tokenizer beside the weights"
        )
    return tokenizer


def load_image_settings(source: str, local: bool) -> dict[str, Any]:
    """The settings of the model's own image processor, with its class's defaults filled in."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            source, local_files_only=local, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{source!r} has no image preprocessor that can be loaded ({_first_line(error)}); "
            "put the model's preprocessor_config.json beside its weights"
        ) from error
    settings: dict[str, Any] = processor.to_dict()
    return settings


def position_limit(model: nn.Module, config: Any) -> int | None:
    """How many positions a text model has, or None where positions are relative and unbounded."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or int(limit) < 1:  # XLNet says -1
        return None
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    # RoBERTa counts positions from its padding index on, so the first ones are not for tokens.
    return int(limit) - (reserved[0] if reserved else 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
