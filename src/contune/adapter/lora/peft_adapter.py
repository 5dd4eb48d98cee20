"""Adapters of the `peft` library inside the frozen model: LoRA, IA3 and the other injectable kinds, by one door."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.linear import linear_layers
from contune.backbone.targets import Stack, key_value_modules, resolve_layers, target_modules
from contune.contract.capability import LinearWeights
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Alpha, Dropout, Layers, Rank, Stacks, Targets
from contune.contract.parts import Adapter, Parameters
from contune.contract.randomness import derived_seed
from contune.contract.state import State
from contune.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

MakeConfig = Callable[[Backbone], "PeftConfig"]


@final
class PeftAdapter(Adapter):
    """One `peft` adapter for the whole stream. `make_config` says which, once the backbone is known.

    `linear`: all that it trains are weights of linear layers, and these read what the layers they stand beside read.
    """

    def __init__(
        self, name: str, make_config: MakeConfig, layers: str | Sequence[int], *, linear: bool = False
    ) -> None:
        self.name = name  # type: ignore[misc]  # one class serves several names of the configuration
        self.layers = layers
        self._linear = linear
        self._make_config = make_config
        self._wrapped: PeftModel | None = None
        self._trained: Parameters = {}

    def offers(self, ability: type) -> object | None:
        return None if ability is LinearWeights and not self._linear else super().offers(ability)

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._wrapped = inject(backbone, self._make_config(backbone), "default", derived_seed(seed, "adapter"))
        self._trained = {name: p for name, p in self._wrapped.named_parameters() if p.requires_grad}

    def trained(self) -> Parameters:
        return self._trained

    def linear(self) -> Mapping[str, nn.Module]:
        """The factors' layers, by the trained names of their weights."""
        assert self._wrapped is not None
        return linear_layers(self._wrapped, self.trained())

    def lowest_layer(self, backbone: Backbone) -> int:
        return min(resolve_layers(self.layers, backbone.depth))

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs, resume=batch.resume), None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        assert self._wrapped is not None
        with self._wrapped.disable_adapter():
            yield

    def train_mode(self, training: bool) -> None:
        assert self._wrapped is not None
        set_dropout(self._wrapped, training)

    def state(self) -> State:
        return State({name: parameter.detach() for name, parameter in self.trained().items()})

    def load_state(self, state: State, context: Context) -> None:
        del context
        for name, parameter in self.trained().items():
            parameter.data.copy_(state.tensors[name])

    def export(self, folder: Path) -> bool:
        assert self._wrapped is not None
        self._wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        return True

    def merge(self) -> bool:
        return merged_in_place(self._wrapped)


def inject(backbone: Backbone, config: "PeftConfig", name: str, seed: int) -> "PeftModel":
    """Put a `peft` adapter into the backbone's model; its start values depend on `seed` alone.

    Raises `ConfigError` where `peft` refuses the modules, such as those that Mamba multiplies by without calling them.
    """
    from peft import PeftModel

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is on its way out
        torch.manual_seed(seed)
        try:
            model = PeftModel(backbone.stock, config, adapter_name=name, autocast_adapter_dtype=False)
        except ValueError as error:
            wanted = sorted({each.rsplit(".", 1)[-1] for each in getattr(config, "target_modules", None) or ()})
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"peft cannot adapt {wanted} of {backbone.config.path} ({why}); set targets to a list of those that it can"
            ) from error
    return model.eval()


def merged_in_place(model: "PeftModel | None") -> bool:
    """Add every active adapter to the weights it changes, for good; false where `peft` cannot for this kind."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if model is None or not hasattr(model.base_model, "merge_and_unload"):
        return False
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not all(hasattr(layer, "merge") and type(layer).merge is not BaseTunerLayer.merge for layer in layers):
        return False
    model.base_model.merge_and_unload(safe_merge=True)
    return True


def factors_of(model: "PeftModel", name: str) -> dict[str, nn.Parameter]:
    """The A and B of one of several LoRAs in a model, named without the LoRA's own name."""
    mark = f".{name}."
    return {n.replace(mark, "."): p for n, p in model.named_parameters() if "lora_" in n and mark in n}


def save_one(model: "PeftModel", name: str, folder: Path) -> bool:
    """Write one of several adapters as a plain `peft` folder; `peft` itself would put it into a folder of its name."""
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    if name != "default":
        for file in sorted((folder / name).iterdir()):
            file.rename(folder / file.name)
        (folder / name).rmdir()
    return True


def set_dropout(model: "PeftModel", training: bool) -> None:
    """Turn the dropout of LoRA branches on or off, and no other module's."""
    for name, module in model.named_modules():
        if ".lora_dropout." in name:
            module.train(training)


def lora(
    *,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    targets: Annotated[Targets, "LoRA (2106.09685), section 7.1"] = "query-value",
    layers: Layers = "all",
    stacks: Stacks = "both",
) -> Adapter:
    """Low-rank updates W + (alpha / rank) B A (arXiv 2106.09685, section 4.1), one for the whole stream.

    Use it as the plain choice: small, exported as a peft folder, merged into the weights without cost at answering.

    Memory: rank (d_in + d_out) numbers per wrapped matrix.
    Compute: a backward pass down to the lowest wrapped layer.
    """

    def config(backbone: Backbone) -> "PeftConfig":
        return lora_config(backbone, rank, alpha, dropout, targets, layers, stacks)

    return PeftAdapter("lora", config, layers, linear=True)


def lora_config(
    backbone: Backbone,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | list[str],
    layers: str | list[int],
    stacks: Stack = "both",
) -> "PeftConfig":
    """The `peft` configuration of a LoRA in the named places."""
    from peft import LoraConfig

    if rank < 1:
        raise ConfigError(f"rank is {rank}; give at least 1")
    modules = target_modules(backbone, targets, layers, stacks)
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules)


def ia3(
    *,
    layers: Layers = "all",
) -> Adapter:
    """Learnt factors on keys and values (IA3, arXiv 2205.05638, section 3.3; its factor inside the MLP is left out).

    Memory: one number per output of each key and value projection.
    Compute: a backward pass down to the lowest chosen layer.
    """

    def config(backbone: Backbone) -> "PeftConfig":
        from peft import IA3Config

        return IA3Config(target_modules=key_value_modules(backbone, layers), feedforward_modules=[])

    return PeftAdapter("ia3", config, layers)


def peft(
    *,
    type: Annotated[str, "kind of peft adapter by its type name: DORA, LOHA, LOKR, VERA, OFT, ..."] = "DORA",  # noqa: A002  the word of peft's own configuration files
    targets: Targets = "query-value",
    layers: Layers = "all",
    options: Annotated[dict[str, Any] | None, "that kind's options, as peft names them; null: its own"] = None,
) -> Adapter:
    """Any other injectable kind of `peft` by its type name, with that kind's own options: LOHA, LOKR, VERA, OFT, ...

    Memory: that of the chosen kind.
    Compute: a backward pass down to the lowest chosen layer.
    """

    def config(backbone: Backbone) -> "PeftConfig":
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        kinds = {str(kind.value): kind for kind in PEFT_TYPE_TO_TUNER_MAPPING}
        given, extra = ("LORA", {"use_dora": True}) if type.upper() == "DORA" else (type.upper(), {})
        if given not in kinds:
            raise ConfigError(f"peft type {type!r} is unknown; {did_you_mean(given, kinds)}")
        modules = target_modules(backbone, targets, layers)
        try:
            made: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[kinds[given]](
                target_modules=modules, **extra, **(options or {})
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"peft refuses the options of {given}: {error}") from error
        return made

    return PeftAdapter("peft", config, layers)
