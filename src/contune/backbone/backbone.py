"""The backbone: a frozen stock model, read as features, with the places where methods attach.

    prepare -> collate -> encode -> pool
                            ^
             prompts (input tokens), prefixes (keys and values), resume (cached states of a lower layer)

Shapes: B rows, L positions, d width, n prompt or prefix length, kv joint width of a layer's key (or value) heads.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from contune.backbone import pooling
from contune.backbone.assemble import HEAD, Assembly, assemble
from contune.backbone.attention import interface as seam
from contune.backbone.base import tensors_hash
from contune.backbone.config import Feature, ModelConfig, Precision
from contune.backbone.layers import changed_input, input_of, started_at
from contune.backbone.precision import cast_frozen, computing
from contune.backbone.reader.generation import LanguageModel, before_text
from contune.backbone.reader.inputs import Encoded, ModelInputs, Prepared, Rows
from contune.backbone.reader.packing import packing_of, require_packing, shared_rows
from contune.backbone.steady import require_steady
from contune.errors import CombinationError, ConfigError
from contune.stream.inputs import Inputs
from contune.stream.modality import find_modality

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
@dataclass(frozen=True, eq=False, repr=False)
class Backbone:
    """A frozen model and how to read it. Get one with `Backbone.load`; see `ModelConfig` for the choices.

    `feature` is the recorded choice of pooling (never `auto`), `feature_size` its width, `depth` the number of layers.
    """

    config: ModelConfig
    parts: Assembly
    precision: Precision = "fp32"

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        *,
        device: torch.device | str = "cpu",
        reads: str | None = None,
        precision: Precision = "fp32",
    ) -> "Backbone":
        """The model of `config`: float32, evaluation mode, nothing trainable, nothing missing.

        `reads`: `chat` for a model that answers prompts by its own language head, `words` for one that gives a feature
        to each word of a text; None for one feature an input. With `precision` bf16 the model computes in
        bf16, and `cast_frozen` stores its frozen matrices so too, once it is known what will be trained.

        Reads safetensors only and never runs code from a model's folder. Raises `ConfigError` where the model cannot be
        used, and says why.
        """
        # On a CPU, the backward pass of PyTorch's fused attention kernels is several times slower in bf16 than products.
        plain = precision == "bf16" and torch.device(device).type == "cpu"
        parts = assemble(config, device, reads=reads, plain_attention=plain)
        require_steady(parts, config.path)
        return cls(config, parts, precision)

    def cast_frozen(self, trained: Collection[nn.Parameter]) -> None:
        """Where the precision is bf16, store in bf16 what is frozen and multiplied, all but these parameters.

        The language head is no part of it: its scores are float32, and often its matrix is that of the embeddings.
        """
        if self.precision == "bf16":
            kept = {id(parameter) for parameter in trained}
            if self.parts.language is not None:
                kept.add(id(self.parts.language.whole.get_output_embeddings().weight))
            cast_frozen(self.model, [value for value in self.base_parameters().values() if id(value) not in kept])

    @property
    def model(self) -> "PreTrainedModel":
        """The stock model; adapters are injected into it."""
        return self.parts.model

    @property
    def stock(self) -> "PreTrainedModel":
        """The whole stock model as its library loads it: with its language head where that answers."""
        return self.model if self.parts.language is None else self.parts.language.whole

    @property
    def modality(self) -> str:
        """What the model reads, by its name (`contune.stream.modality`)."""
        return self.parts.modality

    @property
    def reads_tokens(self) -> bool:
        """Whether inputs are tokens with word embeddings, and no values such as pixels."""
        return self.parts.blank is None

    @property
    def answers(self) -> bool:
        """Whether the model answers in writing, with its own language head."""
        return self.parts.language is not None

    @property
    def augmentable(self) -> bool:
        """Whether inputs have augmented views."""
        return find_modality(self.modality).augmentable

    @property
    def feature(self) -> Feature:
        """How the states become one vector."""
        return self.parts.feature

    @property
    def feature_size(self) -> int:
        """Width of that vector."""
        return self.parts.width

    @property
    def depth(self) -> int:
        """Number of transformer layers."""
        return len(self.parts.anatomy.layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are and batches go."""
        return self.parts.device

    @property
    def resumable(self) -> bool:
        """Whether the states before a layer are all that the layers from there on need."""
        return not getattr(self.model.config, "is_encoder_decoder", False) or self.parts.language is None

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers in order."""
        return list(self.parts.anatomy.layers)

    @property
    def encoder_layers(self) -> list[nn.Module]:
        """The layers of the encoder that a decoder reads, in order; none where there is one stack."""
        return list(self.parts.encoder)

    @property
    def attention(self) -> list[nn.Module]:
        """For every layer, the module whose keys and values a prefix joins; see `kv_width` for their width."""
        self._require_seam()
        return list(self.parts.anatomy.attention)

    def kv_width(self, layer: int) -> int:
        """Joint width of the key heads (and of the value heads) of a layer: fewer than d under grouped queries."""
        self._require_seam()
        self._require_layer(layer)
        anatomy = self.parts.anatomy
        keys, values = anatomy.key_widths[layer], anatomy.value_widths[layer]
        if keys != values:
            raise CombinationError(
                f"layer {layer} of {self.config.path} has keys of width {keys} and values of width {values}; "
                "prefixes need both equal, use prompts or LoRA on this model"
            )
        return keys

    def prepare(self, inputs: Inputs) -> Prepared:
        """Tokenise texts, or check images; once per example. Raises `DataError` naming the first row that is wrong."""
        reader, ready = self.parts.reader, self.parts.ready
        return reader.prepare(inputs) if reader.longest is None else ready.get(inputs, reader.prepare)

    def collate(
        self,
        parts: Sequence[tuple[Prepared, Rows]],
        *,
        augment: torch.Generator | None = None,
        pixels: bool = True,
        packed: bool = False,
    ) -> ModelInputs:
        """A batch: the named rows of every part in order, texts padded to the longest, images in the model's view.

        `augment` draws a random resized crop and a flip for each image from that (CPU) generator. `pixels=False` leaves
        the images out, for batches that resume from cached states. `packed`: in language, short texts share rows inside
        the model; see `require_packing`.
        """
        if augment is not None and not self.augmentable:
            raise ConfigError("augmentation was asked for texts; it exists for images only, leave it off")
        inputs = self.parts.reader.collate(parts, augment=augment, pixels=pixels)
        if not packed:
            return inputs
        lengths = [int(length) for prepared, rows in parts for length in prepared.lengths[rows]]
        rows = shared_rows(lengths, self.language.reader.max_length, self.parts.prompt_width)
        return replace(inputs, packing=packing_of(lengths, rows, self.device))

    def require_packing(self) -> None:
        """Refuse a model in which texts cannot share rows; two small forward passes tell."""
        if not self.resumable:
            raise ConfigError(
                f"{self.config.path} has an encoder and a decoder, between which texts of one row would see each other; "
                "set train.packing: false, or take a causal model"
            )
        words = self.stock.get_input_embeddings().weight.shape[0]
        require_packing(self.parts.forward, words, self.device, self.config.path)

    def encode(
        self, inputs: ModelInputs, *, prompts: Tensor | None = None, resume: tuple[int, Tensor] | None = None
    ) -> Encoded:
        """The states of all positions after the final norm.

        `prompts` (B, n, d) or (n, d) come first at the input: before the word embeddings of a text (prompt tuning,
        arXiv 2104.08691), before the class token of an image and without position embedding (arXiv 2112.08654).
        `resume` = (layer, states (B, L, d)) skips the layers below `layer`, which receives those states.
        """
        mask = inputs.mask
        with ExitStack() as stack:
            if prompts is not None:
                prompts = self._batch_of_prompts(prompts, inputs, resume)
                if mask is not None:
                    mask = torch.cat([mask.new_ones(prompts.shape[:2]), mask], dim=1)
            if resume is not None:
                self._check_resume(resume, inputs)
                layer, kept = resume
                kept = kept if inputs.packing is None else inputs.packing.pack(kept)
                stack.enter_context(started_at(self.parts.anatomy, layer, kept))
            if prompts is not None and not self.reads_tokens:
                tokens = prompts
                stack.enter_context(changed_input(self.layers[0], lambda states: torch.cat([tokens, states], dim=1)))
            states = self._forward(inputs, mask, prompts, pixels_needed=resume is None)
        return Encoded(states, mask, 0 if prompts is None else prompts.shape[1])

    def pool(self, encoded: Encoded) -> Tensor:
        """One feature (B, feature_size) per row; prompts and padding never count."""
        return pooling.pool(
            encoded.states,
            encoded.mask,
            prompts=encoded.prompts,
            feature=self.feature,
            leading=self.parts.leading,
        )

    def features(
        self, inputs: ModelInputs, *, prompts: Tensor | None = None, resume: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """`pool(encode(...))`: (B, feature_size). In language the states (T, feature_size) that predict an answer's tokens.

        Where the batch is to be answered in writing, the answer's tokens (B, max_new_tokens), with whatever is attached.
        """
        if inputs.max_new_tokens:
            with computing(self.precision, self.device):
                return self._written(inputs, prompts)
        encoded = self.encode(inputs, prompts=prompts, resume=resume)
        if inputs.targets is None:
            return self.pool(encoded)
        if inputs.answers is not None:
            return encoded.states[inputs.targets]
        if inputs.words:
            return encoded.states[:, encoded.prompts :][inputs.targets]
        return pooling.before_targets(encoded, inputs.targets)

    def prompts_only(self, parts: Sequence[tuple[Prepared, Rows]], *, max_new_tokens: int = 0) -> ModelInputs:
        """The rows as one knows them before they are answered; `max_new_tokens` to be written, in language alone."""
        return self.parts.reader.prompts_only(parts, max_new_tokens)

    def _written(self, inputs: ModelInputs, prompts: Tensor | None) -> Tensor:
        language, mask = self.language, inputs.mask
        assert mask is not None
        if prompts is None:
            return language.generate(inputs, None, mask)
        prompts = self._batch_of_prompts(prompts, inputs, None)
        words: Tensor = self.model.get_input_embeddings()(inputs.ids)
        return language.generate(inputs, *before_text(prompts, words, mask))

    @property
    def language(self) -> LanguageModel:
        """The model's own language head; only where it was loaded with it."""
        if self.parts.language is None:
            raise CombinationError(f"{self.config.path} was loaded without its language head")
        return self.parts.language

    def hidden(self, inputs: ModelInputs, layer: int) -> Tensor:
        """The states (B, L, d) that `layer` receives; that layer and those above it are not computed."""
        self._require_layer(layer)
        return input_of(
            self.layers[layer], lambda: self._forward(inputs, inputs.mask, None, pixels_needed=True)
        ).float()

    @contextmanager
    def prefixes(self, prefixes: Mapping[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
        """While the block runs, layer i attends to prefixes[i] = (keys, values) as well.

        Both have shape (n, kv_width(i)), one for all rows, or (B, n, kv_width(i)), one for each row.
        """
        for layer, (keys, values) in prefixes.items():
            self._check_prefix(layer, keys, values)
        modules = {self.attention[layer]: pair for layer, pair in prefixes.items()}
        with seam.attach(modules):
            yield

    def base_hash(self) -> str:
        """Hex sha256 of the base weights as they are now: equal before and after training, whatever was injected."""
        return tensors_hash({**self.parts.tensors, **self.parts.outside})

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """The base parameters by the names they had when loaded, also after adapters were injected around them.

        Those of a language head, tied or not, are among them.
        """
        outside = {name.removeprefix(HEAD): value for name, value in self.parts.outside.items()}
        every = {**self.parts.tensors, **outside}
        return {name: value for name, value in every.items() if isinstance(value, nn.Parameter)}

    def _forward(self, inputs: ModelInputs, mask: Tensor | None, prompts: Tensor | None, pixels_needed: bool) -> Tensor:
        with computing(self.precision, self.device):
            return self._states(inputs, mask, prompts, pixels_needed).float()

    def _states(self, inputs: ModelInputs, mask: Tensor | None, prompts: Tensor | None, pixels_needed: bool) -> Tensor:
        if not self.reads_tokens:
            if inputs.pixels is None and pixels_needed:
                raise CombinationError("the batch was made with pixels=False; give resume=(layer, states) with it")
            values = self.parts.blank if inputs.pixels is None else inputs.pixels
            return self.parts.forward(**{self.parts.input_name: values})
        if inputs.ids is None or mask is None:
            raise CombinationError("the batch holds no tokens but this model reads text; make it with this backbone")
        if inputs.packing is not None:
            return self._packed_states(inputs, prompts)
        answered = {} if inputs.answers is None else {"answers": inputs.answers}
        if prompts is None:
            return self.parts.forward(input_ids=inputs.ids, attention_mask=mask, **answered)
        words: Tensor = self.model.get_input_embeddings()(inputs.ids)
        wide = torch.cat([prompts, words], dim=1)
        return self.parts.forward(inputs_embeds=wide, attention_mask=mask, **answered)

    def _packed_states(self, inputs: ModelInputs, prompts: Tensor | None) -> Tensor:
        packing = inputs.packing
        assert packing is not None
        assert inputs.ids is not None
        if prompts is not None or seam.attached():
            raise CombinationError(
                "prompts and prefixes stand before every text, and here several texts share a row; set train.packing: false"
            )
        # Without a mask, stock models look for texts that share a row where positions begin again.
        rows = self.parts.forward(input_ids=packing.pack(inputs.ids), position_ids=packing.positions)
        return packing.unpack(rows)

    def _batch_of_prompts(self, prompts: Tensor, inputs: ModelInputs, resume: Any) -> Tensor:
        if resume is not None:
            raise CombinationError(
                "prompts enter below the first layer, so states cached without them cannot be resumed; "
                "give either prompts or resume"
            )
        batch = prompts.unsqueeze(0).expand(len(inputs), -1, -1) if prompts.dim() == 2 else prompts
        if batch.dim() != 3 or batch.shape[0] != len(inputs) or batch.shape[2] != self.parts.prompt_width:
            raise CombinationError(
                f"prompts have shape {tuple(prompts.shape)}; give (n, {self.parts.prompt_width}) or "
                f"({len(inputs)}, n, {self.parts.prompt_width})"
            )
        limit, tokens = self.parts.position_limit, 0 if inputs.ids is None else inputs.ids.shape[1]
        if limit is not None and tokens + batch.shape[1] > limit:
            raise CombinationError(
                f"{batch.shape[1]} prompts and {tokens} tokens do not fit in the model's {limit} positions; "
                f"set model.max_length to at most {limit - batch.shape[1]}"
            )
        return batch

    def _check_resume(self, resume: tuple[int, Tensor], inputs: ModelInputs) -> None:
        layer, states = resume
        self._require_layer(layer)
        length = None if inputs.mask is None else inputs.mask.shape[1]
        if states.dim() != 3 or states.shape[0] != len(inputs) or (length is not None and states.shape[1] != length):
            raise CombinationError(
                f"cached states have shape {tuple(states.shape)} for a batch of {len(inputs)} rows"
                + ("" if length is None else f" and {length} positions")
                + "; pad them as the batch is padded"
            )
        lost = [i for i, module in enumerate(self.parts.anatomy.attention[:layer]) if module in seam.attached()]
        if lost:
            raise CombinationError(
                f"layer {lost[0]} has a prefix but the forward pass resumes at layer {layer}, above it; "
                f"resume at layer {lost[0]} or below"
            )

    def _check_prefix(self, layer: int, keys: Tensor, values: Tensor) -> None:
        width = self.kv_width(layer)
        if keys.shape != values.shape or keys.dim() not in (2, 3) or keys.shape[-1] != width:
            raise CombinationError(
                f"the prefix of layer {layer} has keys {tuple(keys.shape)} and values {tuple(values.shape)}; "
                f"give both as (n, {width}), or (rows, n, {width})"
            )

    def _require_seam(self) -> None:
        if not self.parts.anatomy.attention:
            raise CombinationError(
                f"{type(self.model).__name__} does not call its attention through transformers' AttentionInterface, so "
                "prefixes cannot attach; use prompts at the input, LoRA or another adapter"
            )

    def _require_layer(self, layer: int) -> None:
        if not 0 <= layer < self.depth:
            raise ConfigError(f"layer {layer} was asked for but the model has layers 0 to {self.depth - 1}")
