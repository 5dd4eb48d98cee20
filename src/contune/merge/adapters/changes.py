"""The changes of several adapters side by side, and their merged change, layer by layer."""

import fnmatch
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from contune.errors import DataError
from contune.merge.adapters.folder import AdapterFolder, oriented, zero_like
from contune.merge.adapters.low_rank import Terms, terms_of, terms_of_product
from contune.merge.models.arithmetic import weighted_mean
from contune.merge.models.compatibility import Checkpoint
from contune.merge.models.lines_scaling import layer_scales
from contune.merge.models.recipe import Recipe, combined
from contune.merge.progress import Watch
from contune.merge.tensors import LazyTensors, Tensors, wide

# Ends of the names under which the parts of a change are merged together; no tensor's name has a colon.
WEIGHT, BIAS, WHOLE = ":weight", ":bias", ":whole"


@final
class Changes:
    """What some adapters change, and the merged change; nothing is computed before it is asked for."""

    def __init__(
        self,
        adapters: Sequence[AdapterFolder],
        base: Checkpoint | None,
        recipe: Recipe,
        leave: Sequence[str],
        watch: Watch = iter,
    ) -> None:
        self.adapters, self.base, self.recipe, self.leave = adapters, base, recipe, leave
        self.shapes = {m: one.shape(m) for one in reversed(adapters) for m in one.modules}
        self.modules = sorted(self.shapes)
        self.has_bias = any(one.has_bias() for one in adapters)
        self.wholes = sorted({name for one in adapters for name in one.wholes})
        self._relative = [name for name in self.wholes if not self.is_left(name) and self.base_tensor(name) is not None]
        self._require_wholes()
        self._scales = self._layer_scales()
        self._merged = combined([self._of(one) for one in adapters], recipe, self._scales, watch)

    def is_left(self, name: str) -> bool:
        """Whether a whole tensor is taken from the first adapter."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.leave)

    def is_relative(self, name: str) -> bool:
        """Whether a whole tensor is merged as a difference from the base."""
        return name in self._relative

    def base_tensor(self, name: str) -> str | None:
        """The base's name of a whole tensor, or None where there is no base or it has no such tensor."""
        if self.base is None:
            return None
        try:
            return self.base.find(name)
        except DataError:
            return None

    def terms(self, module: str) -> Terms:
        """The merged change of a layer, decomposed; by its factors where the recipe allows, which is exact and quick."""
        having = [one for one in self.adapters if module in one.modules]
        if not self.recipe.is_sum or any(one.is_dora(module) for one in having):
            return terms_of(self._merged[module + WEIGHT])
        coefficients = self.recipe.coefficients(len(self.adapters))
        scale = 1.0 if self._scales is None else self._scales[module + WEIGHT]
        ups, downs = [], []
        for one, weight in zip(self.adapters, coefficients, strict=True):
            if module in one.modules:
                up, down = one.factors(module)
                ups.append(up.double() * (weight * scale))
                downs.append(down.double())
        return terms_of_product(torch.cat(ups, dim=1), torch.cat(downs))

    def bias(self, module: str) -> Tensor:
        """The merged change of a layer's bias."""
        return self._merged[module + BIAS]

    def whole(self, name: str) -> Tensor:
        """A merged whole tensor; for one that is relative to the base, its change."""
        having = [one for one in self.adapters if name in one.wholes]
        if self.is_left(name):
            return having[0].whole(name)
        if self.is_relative(name):
            return self._merged[name + WHOLE]
        return weighted_mean([{name: one.whole(name)} for one in having], self._weights())[name]

    def _weights(self) -> list[float]:
        return self.recipe.coefficients(len(self.adapters))

    def _of(self, one: AdapterFolder) -> Tensors:
        """All changes of one adapter under one set of names, so that shares are counted over all of them."""
        names = [module + WEIGHT for module in self.modules] + [name + WHOLE for name in self._relative]
        if self.has_bias:
            names += [module + BIAS for module in self.modules]

        def make(name: str) -> Tensor:
            part, _, kind = name.rpartition(":")
            if ":" + kind == WHOLE:
                return self._whole_change(one, part)
            if part not in one.modules:
                return zero_like(self.shapes[part] if ":" + kind == WEIGHT else self.shapes[part][:1])
            if ":" + kind == BIAS:
                return one.bias_change(part)
            return one.change(part, self._base_weight(one, part) if one.is_dora(part) else None)

        return LazyTensors(names, make)

    def _base_weight(self, one: AdapterFolder, module: str) -> Tensor:
        assert self.base is not None
        stored = self.base.tensors[self.base.find(module + ".weight")]
        return oriented(stored, self.shapes[module], bool(one.config.get("fan_in_fan_out")))

    def _whole_change(self, one: AdapterFolder, name: str) -> Tensor:
        found = self.base_tensor(name)
        assert self.base is not None
        assert found is not None
        start = wide(self.base.tensors[found])
        return wide(one.whole(name)) - start if name in one.wholes else torch.zeros_like(start)

    def _layer_scales(self) -> dict[str, float] | None:
        if self.recipe.lines is None:
            return None
        assert self.base is not None
        scales = layer_scales(self.base.specs, *self.recipe.lines)
        found = {name + WHOLE: scales[self.base.find(name)] for name in self._relative}
        for module in self.modules:
            found[module + WEIGHT] = found[module + BIAS] = scales[self.base.find(module + ".weight")]
        return found

    def _is_one_as_it_is(self) -> bool:
        """Whether a single adapter passes through unchanged."""
        return len(self.adapters) == 1 and self.recipe.is_sum and self.recipe.lines is None and self._weights() == [1.0]

    def _require_wholes(self) -> None:
        """Whole tensors without a base tensor can only be averaged, and all adapters must have them."""
        for name in self.wholes:
            if self.is_left(name) or self.is_relative(name):
                continue
            lacking = [one.folder for one in self.adapters if name not in one.wholes]
            if lacking or not (self.recipe.is_mean or self._is_one_as_it_is()):
                why = f"{lacking[0]} has none" if lacking else "the base has no such tensor to take the difference from"
                raise DataError(
                    f"{name} is a whole tensor of an adapter, and {why}; use a plain weighted mean of adapters that all "
                    f"have it, or take it from the first with --leave '{name}'"
                )
