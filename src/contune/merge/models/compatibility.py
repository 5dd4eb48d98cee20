"""Do these models belong together? Architecture, names, shapes and labels, before any arithmetic."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from contune.errors import ConfigError, DataError
from contune.merge.files import Spec, StoredTensors, existing_folder, read_json, weight_files
from contune.merge.module_names import hollow_model, stored_names
from contune.merge.tensors import LazyTensors, Tensors

# What changes the function that equal shapes compute; a key that one side lacks is not compared.
STRUCTURE = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "n_heads",
    "head_dim",
    "hidden_act",
    "activation_function",
    "activation",
    "position_embedding_type",
    "is_decoder",
)


@final
class Checkpoint:
    """A full model: a folder with config.json and safetensors, whole or in shards, opened and not loaded."""

    def __init__(self, path: str | Path, what: str = "model") -> None:
        self.folder = existing_folder(path, what)
        if (self.folder / "adapter_config.json").is_file():
            raise DataError(f"{what} {self.folder} is an adapter; give a folder with a full model here")
        self.config = read_json(self.folder / "config.json")
        if self.config.get("quantization_config"):
            raise DataError(f"{what} {self.folder} is quantised; give the weights in bfloat16, float16 or float32")
        self.tensors = StoredTensors(weight_files(self.folder, "model"))
        self._found: dict[str, str] = {}
        self._own_names: dict[str, str] | None = None

    @property
    def specs(self) -> dict[str, Spec]:
        """Type and shape of every tensor."""
        return self.tensors.specs

    def find(self, wanted: str) -> str:
        """The name in the folder of a tensor that an adapter or a model calls `wanted`; refuses what is not there."""
        if wanted not in self._found:
            names = matching(wanted, self.specs)
            if not names:
                names = [self._renamed()[own] for own in matching(wanted, self._renamed())]
            if len(names) != 1:
                raise DataError(
                    f"base {self.folder} has {names or 'no tensor'} for {wanted}, which is to be changed; "
                    "give the base that the adapter was trained on"
                )
            self._found[wanted] = names[0]
        return self._found[wanted]

    def _renamed(self) -> dict[str, str]:
        if self._own_names is None:
            self._own_names = stored_names(self.specs, hollow_model(self.folder, self.config))
        return self._own_names


def matching(wanted: str, names: Collection[str]) -> list[str]:
    """The names that are equal to the one wanted, or else equal but for a prefix more or less.

    >>> matching("transformer.h.0.w", ["h.0.w", "h.10.w"])
    ['h.0.w']
    """
    if wanted in names:
        return [wanted]
    return [name for name in names if name.endswith("." + wanted) or wanted.endswith("." + name)]


def require_same_architecture(first: Checkpoint, second: Checkpoint) -> None:
    """Refuse models of which equal shapes would mean different functions."""
    for key in STRUCTURE:
        ours, theirs = first.config.get(key), second.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise DataError(
                f"{second.folder} has {key} {theirs!r} and {first.folder} has {ours!r}; only models of one architecture, "
                "fine-tuned from one base, can be merged"
            )


def require_same_labels(first: Checkpoint, second: Checkpoint) -> None:
    """Refuse classifiers whose rows mean different classes."""
    ours, theirs = first.config.get("id2label"), second.config.get("id2label")
    if ours and theirs and ours != theirs:
        raise DataError(
            f"{second.folder} answers {_some(theirs.values())} and {first.folder} answers {_some(ours.values())}; a merged "
            "head would mix their classes: leave the head out, such as with --leave 'classifier*'"
        )


def require_same_shapes(
    first: Mapping[str, Spec], second: Mapping[str, Spec], names: tuple[str | Path, str | Path]
) -> None:
    """Refuse two sets of tensors that differ in names or shapes; `names` say which models they are."""
    ours, theirs = names
    for have, lack, more, less in ((first, second, ours, theirs), (second, first, theirs, ours)):
        odd = [name for name in have if name not in lack]
        if odd:
            raise DataError(
                f"{more} has {len(odd)} tensors that {less} has not ({_some(odd)}); only models of one base and one "
                "architecture can be merged, and what one of them alone has, such as a head, is left out with --leave"
            )
    for name, spec in first.items():
        if spec.shape != second[name].shape:
            raise DataError(
                f"{name} is {list(spec.shape)} in {ours} and {list(second[name].shape)} in {theirs}; "
                "only models of one base and one architecture can be merged, and what differs on purpose, such as a head, "
                "is left out with --leave"
            )


def require_together(models: Sequence[Checkpoint], leave: Sequence[str], base: Checkpoint | None) -> list[str]:
    """The names that all models share and that are merged, those left out taken away; refuses what does not fit."""
    anchor = base or models[0]
    for model in models:
        require_same_architecture(anchor, model)
        if not leave:
            require_same_labels(models[0], model)
        require_same_shapes(kept_in(anchor.specs, leave), kept_in(model.specs, leave), (anchor.folder, model.folder))
    return list(kept_in(anchor.specs, leave))


def kept_in(specs: Mapping[str, Spec], leave: Sequence[str]) -> dict[str, Spec]:
    """The tensors that match no pattern of `leave`.

    >>> spec = Spec(torch.float32, (1,))
    >>> list(kept_in({"classifier.weight": spec, "encoder.weight": spec}, ["classifier*"]))
    ['encoder.weight']
    """
    return {name: spec for name, spec in specs.items() if not any(fnmatch.fnmatchcase(name, one) for one in leave)}


def require_matches(leave: Sequence[str], names: Iterable[str]) -> None:
    """Refuse a pattern that matches nothing, which is most often a slip.

    >>> require_matches(["clasifier*"], ["classifier.weight"])
    Traceback (most recent call last):
    contune.errors.ConfigError: --leave 'clasifier*' matches no tensor of the first model, such as 'classifier.weight'
    """
    every = list(names)
    for pattern in leave:
        if not fnmatch.filter(every, pattern):
            some = f", such as {every[-1]!r}" if every else ": it has none that can be left out"
            raise ConfigError(f"--leave {pattern!r} matches no tensor of the first model{some}")


def promoted(name: str, models: Sequence[Mapping[str, Spec]]) -> torch.dtype:
    """The type that holds the values of all models without loss."""
    dtypes = [model[name].dtype for model in models if name in model]
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def only(tensors: Tensors, names: Sequence[str]) -> LazyTensors:
    """Some of the tensors.

    >>> list(only({"a": torch.ones(1), "b": torch.ones(1)}, ["b"]))
    ['b']
    """
    return LazyTensors(names, lambda name: tensors[name])


def unmerged(name: str, models: Sequence[Checkpoint], leave: Sequence[str]) -> Tensor:
    """A tensor that is not merged: left out, or of whole numbers, which must then be equal in all models."""
    first = models[0].tensors[name]
    if not kept_in({name: models[0].specs[name]}, leave):
        return first
    for model in models[1:]:
        if not torch.equal(first, model.tensors[name]):
            raise DataError(
                f"{name} holds whole numbers that differ between {models[0].folder} and {model.folder}; "
                f"take it from the first with --leave {name}"
            )
    return first


def _some(names: Any) -> str:
    every = [str(name) for name in names]
    return ", ".join(every[:3]) + (", …" if len(every) > 3 else "")


def described_dtype(config: dict[str, Any], dtypes: set[torch.dtype]) -> dict[str, Any]:
    """The configuration with the type that the weights are stored in, where it names one and they have one.

    >>> described_dtype({"dtype": "bfloat16"}, {torch.float32})
    {'dtype': 'float32'}
    """
    if len(dtypes) != 1:
        return config
    name = str(next(iter(dtypes))).removeprefix("torch.")
    return {key: name if key in ("dtype", "torch_dtype") else value for key, value in config.items()}
