"""Fine-tuning transfer: a change of one base version on another (arXiv 2503.20110), with tables of unequal length."""

from collections.abc import Mapping

import torch
from torch import Tensor

from contune.errors import DataError
from contune.merge.files import Spec
from contune.merge.models.compatibility import Checkpoint, require_same_shapes
from contune.merge.tensors import LazyTensors, Tensors, mapped, wide


def row_difference(new: Tensor, old: Tensor) -> Tensor:
    """new - old, where rows that `old` lacks count as 0; rows that `new` lacks have not changed and are left away.

    >>> row_difference(torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0]])).tolist()
    [[2.0], [5.0]]
    >>> row_difference(torch.tensor([[3.0]]), torch.tensor([[1.0], [7.0]])).tolist()
    [[2.0]]
    """
    return wide(new) - with_rows(wide(old), len_of(new))


def row_sum(base: Tensor, change: Tensor) -> Tensor:
    """base + change, where rows that one of them lacks count as 0.

    >>> row_sum(torch.tensor([[1.0]]), torch.tensor([[2.0], [5.0]])).tolist()
    [[3.0], [5.0]]
    """
    rows = max(len_of(base), len_of(change))
    return with_rows(wide(base), rows) + with_rows(wide(change), rows)


def with_rows(value: Tensor, rows: int) -> Tensor:
    """The first `rows` rows, with rows of zeros added at the end where there are fewer.

    >>> with_rows(torch.ones(1, 2), 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    if value.dim() == 0 or len(value) >= rows:
        return value[:rows] if value.dim() else value
    return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])


def len_of(value: Tensor) -> int:
    """The number of rows; 1 for a single number."""
    return len(value) if value.dim() else 1


def padded_difference(new: Tensors, old: Tensors) -> LazyTensors:
    """Delta_s = m'_s - m_s, name by name."""
    return mapped(row_difference, new, old)


def padded_sum(base: Tensors, change: Tensors) -> LazyTensors:
    """m_t + Delta_s, name by name."""
    return mapped(row_sum, base, change)


def row_spec(name: str, target: Mapping[str, Spec], tuned: Mapping[str, Spec]) -> Spec:
    """Type and shape of a transferred tensor: the rows of the longer table."""
    spec = target[name]
    if not spec.shape:
        return spec
    return Spec(spec.dtype, (max(spec.shape[0], tuned[name].shape[0]), *spec.shape[1:]))


def require_transferable(tuned: Checkpoint, base: Checkpoint, onto: Checkpoint) -> None:
    """Refuse versions of different architectures, names or shapes; tables of the vocabulary may differ in rows."""
    for model in (tuned, onto):
        if model.config.get("model_type") != base.config.get("model_type"):
            raise DataError(
                f"{model.folder} is a {model.config.get('model_type')!r} model and {base.folder} a "
                f"{base.config.get('model_type')!r} one; a change moves between versions of one architecture alone"
            )
        cut = {name: _without_rows(spec, base, name) for name, spec in base.specs.items()}
        other = {name: _without_rows(spec, model, name) for name, spec in model.specs.items()}
        require_same_shapes(cut, other, (base.folder, model.folder))


def _without_rows(spec: Spec, model: Checkpoint, name: str) -> Spec:
    """The spec with the vocabulary's rows taken for 0, so that tables of different length compare as equal."""
    rows = model.config.get("vocab_size")
    is_table = len(spec.shape) in (1, 2) and spec.shape[:1] == (rows,) and name in _tables(model)
    return Spec(spec.dtype, (0, *spec.shape[1:])) if is_table else spec


def _tables(model: Checkpoint) -> set[str]:
    """The tensors with one row for each token, by the parts of their names that transformers uses for them."""
    marks = ("embed", "wte", "shared", "lm_head", "output", "predictions", "decoder")
    return {name for name in model.specs if any(mark in name for mark in marks)}
