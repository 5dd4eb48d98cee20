"""Tiny adapters to merge."""

from pathlib import Path
from typing import Any

import torch
from merge_models import loaded


def adapter(base: Path, folder: Path, targets: Any, *, seed: int, size: float = 0.2, **settings: Any) -> Path:
    """A peft adapter on a base with all its tensors drawn at random, as if trained."""
    from peft import LoraConfig, get_peft_model

    own = {"r": 3, "lora_alpha": 6, "target_modules": targets}
    model = get_peft_model(loaded(base), LoraConfig(**own | settings), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if value.requires_grad:
                noise = size * torch.randn(value.shape, generator=generator)
                if "lora_magnitude" in name:
                    noise *= value
                elif "lora_" in name:
                    value.zero_()
                value += noise
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def on(base: Path, folder: Path) -> Any:
    """A base with an adapter, by stock peft; it must hold every tensor of the adapter and no others."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(loaded(base), folder).eval()
    assert not [one for one in found if "missing" in str(one.message).lower()]
    return model
