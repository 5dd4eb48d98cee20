"""Putting a backbone together: load, look inside with one forward pass, choose the feature, make the reader."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from contune.backbone import source
from contune.backbone.attention.interface import Kernel, watch
from contune.backbone.base import base_tensors
from contune.backbone.config import Feature, ModelConfig
from contune.backbone.layers import Anatomy, find_layers
from contune.backbone.load import (
    language_class,
    load_model,
    load_model_config,
    model_class,
    position_limit,
    quiet,
)
from contune.backbone.reader.generation import LanguageModel, language_model, two_towers
from contune.backbone.reader.images import ImageReader, read_preprocessing
from contune.backbone.reader.inputs import Reader
from contune.backbone.reader.language import language_reader
from contune.backbone.reader.ready import Ready
from contune.backbone.reader.text import TextReader, choose_max_length
from contune.errors import ConfigError
from contune.stream.modality import MODEL_KEYS, Modality, find_modality, modalities

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Models whose output is not yet normed: they norm the class token alone, so contune applies that norm to all positions.
_NORM_AFTER: dict[str, str] = {"clip_vision_model": "post_layernorm"}
HEAD = "language head "  # before the names of tensors outside the model below the head
# Tokens of a prompt and its answer, where neither the user nor the model sets a lower limit.
LONGEST_CONVERSATION = 2048
# What the first position's learned vector is called in stock image models.
_CLASS_TOKENS = frozenset({"cls_token", "class_embedding", "class_token"})


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Assembly:
    """Everything that is known about a loaded model; `Backbone` is its face.

    `forward` runs the model on named inputs and gives the states (B, L, width) after the final norm. `leading`
    positions of an image are no patches. `input_name` is what the model calls its main input, and `blank` (1, ...) stands
    for values of it that are not needed, such as pixels; a model that reads tokens has none.
    `tensors` are the model's own, `outside` those of its language head. `encoder`: the layers that a decoder reads.
    """

    model: "PreTrainedModel"
    modality: str
    input_name: str
    feature: Feature
    width: int
    prompt_width: int
    leading: int
    anatomy: Anatomy
    reader: Reader
    forward: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    position_limit: int | None
    blank: Tensor | None
    device: torch.device
    language: LanguageModel | None = None
    outside: dict[str, Tensor] = field(default_factory=dict)
    encoder: Sequence[nn.Module] = ()
    ready: Ready = field(default_factory=Ready)


def assemble(
    config: ModelConfig,
    device: torch.device | str,
    kernel: Kernel | None = None,
    *,
    reads: str | None = None,
    plain_attention: bool = False,
) -> Assembly:
    """Load the model of `config` and find out how to read it; `kernel` is the attention the seam calls.

    `reads` as of `Backbone.load`. `plain_attention` asks for matrix products in place of
    fused kernels.
    """
    where, local = source.locate(config.path)
    language = reads is not None and find_modality(reads).conversations
    with quiet():
        stock_config = load_model_config(where, local)
        stock = language_class(stock_config) if language else model_class(stock_config)
        modality = read_by(stock_config, stock)
        if reads is not None:
            modality = built_on(modality, find_modality(reads), config.path)
        _refuse_unused(config, modality)
        processor = modality.processor(where, local)
        if kernel is None and plain_attention:
            kernel = "products" if stock._supports_sdpa else "eager"
        model = load_model(where, local, stock_config, device, kernel, language=language)
    return modality.assemble(config, model, processor, where, local)


def assemble_text(config: ModelConfig, model: Any, tokenizer: Any, where: str, local: bool) -> Assembly:
    """An encoder or causal model of texts, as features."""
    limit = position_limit(model, model.config)
    # Tokenizers without a limit of their own say 10^30.
    own = int(tokenizer.model_max_length) if tokenizer.model_max_length < 10**9 else None
    length = choose_max_length(config.max_length, source.sentence_length(where, local), [own, limit])
    ids = torch.arange(2, device=model.device).unsqueeze(0)
    forward = forward_function(model, {})
    rows = int(model.get_input_embeddings().weight.shape[0])
    states, anatomy, prompt_width = probe(model, forward, input_ids=ids, attention_mask=torch.ones_like(ids))
    causal = any(getattr(module, "is_causal", False) for module in anatomy.attention)
    feature: Feature
    if config.feature != "auto":
        feature = config.feature
    else:
        feature = source.sentence_pooling(where, local) or ("last-token" if causal else "mean")
    return Assembly(
        model=model,
        modality="text",
        input_name="input_ids",
        feature=feature,
        width=states.shape[2],
        prompt_width=prompt_width,
        leading=0,
        anatomy=anatomy,
        reader=TextReader(tokenizer, length, _padding(tokenizer, model.config, rows), model.device, rows),
        forward=forward,
        tensors=base_tensors(model),
        position_limit=limit,
        blank=None,
        device=model.device,
    )


def assemble_language(config: ModelConfig, whole: Any, tokenizer: Any) -> Assembly:
    """A model below its language head, which keeps the whole of it for scores and generation."""
    both = bool(whole.config.is_encoder_decoder)
    model, decoder = (whole, whole.get_decoder()) if both else (whole.base_model, whole.base_model)
    own = tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None
    limit = None if both else position_limit(model, whole.config)
    length = choose_max_length(config.max_length, LONGEST_CONVERSATION, [own, limit])
    rows = int(whole.get_input_embeddings().weight.shape[0])
    places = position_limit(model, whole.config)
    reader = language_reader(config, whole, tokenizer, length, _padding(tokenizer, whole.config, rows), places)
    forward = two_towers(whole) if both else forward_function(model, {})
    ids = torch.arange(2, device=whole.device).unsqueeze(0)
    sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | ({"answers": ids} if both else {})
    states, anatomy, prompt_width = probe(decoder, forward, **sample)
    inner = base_tensors(model)
    known = {id(tensor) for tensor in inner.values()}
    outer = {f"{HEAD}{name}": t for name, t in base_tensors(whole).items() if id(t) not in known}
    return Assembly(
        model=model,
        modality="chat",
        input_name="input_ids",
        feature=config.feature if config.feature != "auto" else "mean" if both else "last-token",
        width=states.shape[2],
        prompt_width=prompt_width,
        leading=0,
        anatomy=anatomy,
        reader=reader,
        forward=forward,
        tensors=inner,
        outside=outer,
        position_limit=limit,
        blank=None,
        device=whole.device,
        language=language_model(whole, reader, states, sample, config.path),
        encoder=encoder_layers(whole) if both else (),
    )


def encoder_layers(whole: Any) -> list[nn.Module]:
    """The layers of the encoder of a model with a decoder."""
    encoder = whole.get_encoder()
    # BART's configuration counts both stacks; T5's own counts of its encoder are those of the encoder's.
    count = getattr(whole.config, "encoder_layers", None) or encoder.config.num_hidden_layers
    return list(find_layers(encoder, int(count), type(encoder).__name__))


def assemble_image(config: ModelConfig, model: Any, settings: dict[str, Any]) -> Assembly:
    """An encoder of images, with the preprocessing that its settings describe."""
    how = read_preprocessing(settings, config.image_size, config.path)
    _check_patches(model.config, how.size, config.path)
    options: dict[str, Any] = {}
    if _pair(model.config.image_size) != how.size and "interpolate_pos_encoding" in _parameters(model.forward):
        options["interpolate_pos_encoding"] = True
    forward = forward_function(model, options)
    blank = torch.zeros(1, 3, *how.size, device=model.device)
    try:
        states, anatomy, prompt_width = probe(model, forward, pixel_values=blank)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{config.path} does not take images of {how.size[0]} x {how.size[1]} pixels ({error}); "
            f"its own size is {model.config.image_size}, leave model.image_size out"
        ) from error
    positions = states.shape[1]
    has_class_token = any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in model.named_parameters())
    return Assembly(
        model=model,
        modality="image",
        input_name="pixel_values",
        feature=_image_feature(config, has_class_token),
        width=states.shape[2],
        prompt_width=prompt_width,
        leading=max(0, positions - _patches(model.config, how.size)),
        anatomy=anatomy,
        reader=ImageReader(how, positions, model.device),
        forward=forward,
        tensors=base_tensors(model),
        position_limit=None,
        blank=blank,
        device=model.device,
    )


def forward_function(model: Any, options: dict[str, Any]) -> Callable[..., Tensor]:
    """How the model runs on named inputs, with these options of its own: the states (B, L, d) after its final norm."""
    norm_name = _NORM_AFTER.get(model.config.model_type)

    def forward(**inputs: Tensor) -> Tensor:
        states: Tensor = model(**inputs, **options).last_hidden_state
        if norm_name is not None:
            states = model.get_submodule(norm_name)(states)
        return states

    return forward


def probe(model: Any, forward: Callable[..., Tensor], **inputs: Tensor) -> tuple[Tensor, Anatomy, int]:
    """One forward pass, watched: the states, what the model is made of, and the width of a layer's input."""
    count = getattr(model.config, "num_hidden_layers", None)
    if not count:
        raise ConfigError(f"{type(model).__name__} does not say how many equal layers it has; it cannot be used")
    layers = find_layers(model, count, type(model).__name__)
    seen: list[tuple[int, bool]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen.append((states.shape[-1], isinstance(output, tuple) and any(isinstance(x, Tensor) for x in output[1:])))

    handle = layers[0].register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), watch() as calls:
            states = forward(**inputs)
    finally:
        handle.remove()
    if not seen:
        raise ConfigError(f"the layers of {type(model).__name__} were not used in a forward pass; it cannot be used")
    width, side_outputs = seen[0]
    found = []
    for layer in layers:
        inside = set(layer.modules())
        found.append(next((call for call in calls if call.module in inside), None))
    complete = [call for call in found if call is not None]
    if len(complete) < len(found):
        complete = []
    anatomy = Anatomy(
        layers=layers,
        attention=tuple(call.module for call in complete),
        key_widths=tuple(call.key_width for call in complete),
        value_widths=tuple(call.value_width for call in complete),
        side_outputs=side_outputs,
    )
    return states, anatomy, width


def read_by(stock_config: Any, stock: Any) -> Modality:
    """The modality of what a stock model calls its main input."""
    main, known = stock.main_input_name, [one for one in modalities().values() if one.input_name is not None]
    found = next((one for one in known if one.input_name == main), None)
    if found is None:
        raise ConfigError(
            f"a {stock_config.model_type} model reads {main}; contune works with models of "
            f"{' and '.join(one.noun for one in known)}, choose one of those"
        )
    return found


def built_on(stock: Modality, wanted: Modality, name: str) -> Modality:
    """The wanted modality, where the stock model reads what it is built on."""
    if wanted.built_on != stock.name:
        raise ConfigError(f"{name} reads {stock.noun} and {wanted.demand}")
    return wanted


def _refuse_unused(config: ModelConfig, modality: Modality) -> None:
    """Refuse entries of the configuration that a model of this modality has no use for."""
    for key in sorted(MODEL_KEYS - modality.model_keys):
        given = getattr(config, key)
        if given == type(config).model_fields[key].default:
            continue
        if all(one.conversations for one in modalities().values() if key in one.model_keys):
            raise ConfigError(
                f"model.{key} is for answers that are written (objective: write), and here none are; leave it out"
            )
        raise ConfigError(f"model.{key} is {given} but {config.path} reads {modality.noun}; leave it out")


def _image_feature(config: ModelConfig, has_class_token: bool) -> Feature:
    if config.feature == "last-token":
        raise ConfigError("model.feature is 'last-token' but images have no last token; use 'class-token' or 'mean'")
    if config.feature == "class-token" and not has_class_token:
        raise ConfigError(f"model.feature is 'class-token' but {config.path} has none; use 'mean'")
    if config.feature == "auto":
        return "class-token" if has_class_token else "mean"
    return config.feature


def _padding(tokenizer: Any, stock_config: Any, rows: int) -> int:
    # Padding is masked out, so any id that has an embedding does; only the model's own keeps RoBERTa's positions right.
    for candidate in (tokenizer.pad_token_id, getattr(stock_config, "pad_token_id", None), tokenizer.eos_token_id):
        if isinstance(candidate, int) and 0 <= candidate < rows:
            return candidate
    return 0


def _check_patches(stock_config: Any, size: tuple[int, int], name: str) -> None:
    patch = _pair(stock_config.patch_size)
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ConfigError(
            f"images of {size[0]} x {size[1]} pixels do not divide into the {patch[0]} x {patch[1]} patches of {name}; "
            f"set model.image_size to a multiple, such as {max(1, round(size[0] / patch[0])) * patch[0]}"
        )


def _patches(stock_config: Any, size: tuple[int, int]) -> int:
    patch = _pair(stock_config.patch_size)
    return (size[0] // patch[0]) * (size[1] // patch[1])


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else (int(value), int(value))


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
