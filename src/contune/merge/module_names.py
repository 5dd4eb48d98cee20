"""What a model's own parameters are called in its folder: transformers renames some of them while it loads."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from contune.errors import DataError


def model_class_of(folder: Path, config: Mapping[str, Any]) -> Any:
    """The class of transformers that a folder's configuration names."""
    import transformers

    named = (config.get("architectures") or [None])[0]
    found = getattr(transformers, str(named), None)
    if found is None:
        raise DataError(f"{folder / 'config.json'} names the architecture {named!r}, which transformers does not have")
    return found


def hollow_model(folder: Path, config: Mapping[str, Any]) -> Any:
    """The model of a folder without memory for its weights."""
    from transformers import AutoConfig

    with torch.device("meta"):
        return model_class_of(folder, config)(AutoConfig.from_pretrained(folder))


def stored_names(names: Iterable[str], model: Any) -> dict[str, str]:
    """Of a folder's tensor `names`, the one for each parameter that is stored as it is; fused ones are left away.

    A ViT, for one, has `layers.0.attention.q_proj` where its files still say `encoder.layer.0.attention.attention.query`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if not isinstance(step, WeightConverter)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    parameters = model.state_dict()
    found = {}
    for name in names:
        own, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if converted is None and own in parameters:
            found[own] = name
    return found
