"""Whether a loaded model can be trusted: one input must have one set of states, whenever and beside whatever it is read.

Features are kept, compared and averaged, so a model that draws at random as it reads, or that lets padding or the other
rows of a batch into its states, would make every number wrong without a word. Three small forward passes tell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from contune.backbone.assemble import Assembly
from contune.errors import ConfigError

LENGTHS = (3, 7)  # positions of the short input and of the longer one beside it
TOLERANCE = 1e-3  # of the largest state; rounding in batches of other shapes stays below 1e-5


def require_steady(parts: Assembly, name: str) -> None:
    """Refuse a model that gives one input other states at another time, or beside another input.

    Raises `ConfigError`.
    """
    try:
        with torch.no_grad():
            first, again, beside = _image_states(parts) if parts.blank is not None else _token_states(parts)
    except (ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{name} cannot read two inputs of different lengths together ({why}); use another model"
        ) from error
    if not bool(first.isfinite().all()):
        raise ConfigError(f"{name} gives states that are not finite for a small input; its weights are damaged")
    if differ(first, again):
        raise ConfigError(
            f"{name} reads the same input otherwise each time, because it draws at random in every forward pass (as masked "
            "autoencoders do); its features mean nothing, use a model that does not"
        )
    if differ(first, beside):
        raise ConfigError(
            f"{name} reads an input otherwise when a longer one stands beside it in a batch, so that its features depend on "
            "padding or on other inputs; use another model"
        )


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two sets of states are more than rounding apart.

    >>> differ(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.00001])), differ(torch.zeros(1), torch.ones(1))
    (False, True)
    """
    return not bool((one - other).abs().max() <= TOLERANCE * one.abs().max())


def _token_states(parts: Assembly) -> Sequence[Tensor]:
    short, long = (length if parts.position_limit is None else min(length, parts.position_limit) for length in LENGTHS)
    pad = int(getattr(parts.reader, "pad_id", 0))
    rows = int(parts.model.get_input_embeddings().weight.shape[0])
    # Padding may change the positions of what stands behind it, so that it is no token of a text.
    known = torch.tensor([token for token in range(min(rows, long + 1)) if token != pad], device=parts.device)
    ids = known[torch.arange(long, device=parts.device) % len(known)].repeat(2, 1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, short:] = False
    ids = torch.where(mask, ids, pad)

    def states(tokens: Tensor, seen: Tensor) -> Tensor:
        answers = {} if parts.language is None or not parts.language.reader.decoder else {"answers": tokens}
        return parts.forward(input_ids=tokens, attention_mask=seen, **answers)[0, :short]

    alone, whole = ids[:1, :short], mask[:1, :short]
    return states(alone, whole), states(alone, whole), states(ids, mask)


def _image_states(parts: Assembly) -> Sequence[Tensor]:
    assert parts.blank is not None
    size = parts.blank.numel()
    image = torch.linspace(-1, 1, size, device=parts.device).reshape(parts.blank.shape)
    both = torch.cat([image, image.flip(-1)])
    first, again, beside = (parts.forward(**{parts.input_name: values})[0] for values in (image, image, both))
    return first, again, beside
