"""Masks on the step: exact counts, exact rest, and that a masked gradient alone would leak."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from contune.numerics.masks import (
    all_unpacked,
    changed,
    frozen_counts,
    held,
    held_updates,
    largest,
    largest_together,
    lora_budget,
    low_rank,
    masked_gradients,
    most_active,
    overlap,
    packed,
    principal,
    rows_of,
    sampled,
    sparsity,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["rows", "entries"])
@pytest.mark.parametrize("make", ["adamw", "sgd"])
def test_masked_entries_keep_every_bit_and_a_masked_gradient_alone_leaks(kind: str, make: str) -> None:
    def trained(*, on_moves: bool) -> tuple[Tensor, Tensor, Tensor]:
        start = torch.randn(6, 4, generator=generator())
        start[0, 0], start[1, 1] = -0.0, 0.0
        weight = nn.Parameter(start.clone())
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1)
            if make == "adamw"
            else torch.optim.SGD([weight], lr=0.01, momentum=0.9, weight_decay=0.1)
        )
        mask = sampled(6, 3, generator(1)) if kind == "rows" else sampled(24, 9, generator(1)).view(6, 4)
        mask = rows_of(mask, transposed=False) if kind == "rows" else mask
        for step in range(5):
            given = torch.randn(8, 4, generator=generator(step + 2))
            optimizer.zero_grad()
            functional.linear(given, weight).square().sum().backward()
            if step:  # the first step fills the moments, as an earlier mask would
                weight.grad = masked_gradients({"w": weight.grad}, {"w": mask})["w"]  # type: ignore[dict-item]
            before = weight.detach().clone()
            optimizer.step()
            if on_moves:
                updates = held_updates({"w": weight.detach() - before}, {"w": mask})
                weight.data.copy_(before + updates["w"])
        return start, weight.detach(), mask.expand(6, 4)

    start, end, mask = trained(on_moves=True)
    assert np.array_equal(start[~mask].numpy().view(np.int32), end[~mask].numpy().view(np.int32)), "a bit has moved"
    assert bool((start[mask] != end[mask]).all())
    start, end, mask = trained(on_moves=False)
    assert float((start - end)[~mask].abs().max()) > 1e-3


def test_a_plain_zero_would_change_the_sign_of_zero() -> None:
    zero = torch.tensor([-0.0])
    nothing = torch.tensor([False])
    assert math.copysign(1, float(zero + held(torch.ones(1), nothing))) == -1
    assert math.copysign(1, float(zero + torch.ones(1) * nothing)) == 1


def test_tensors_without_a_mask_are_the_same_objects() -> None:
    updates = {"a": torch.ones(2)}
    assert held_updates(updates, {})["a"] is updates["a"]
    assert masked_gradients(updates, {})["a"] is updates["a"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]))
def test_active_units_are_those_that_reach_the_quantile(values: list[int], masked: float) -> None:
    magnitudes = torch.tensor(values, dtype=torch.float64)
    found = most_active(magnitudes, masked)
    expected = magnitudes >= torch.quantile(magnitudes, masked) - 1e-9
    assert torch.equal(found, expected)
    if len(set(values)) == len(values):
        assert int(found.sum()) == len(values) - math.ceil(round(masked * (len(values) - 1), 9))


def test_activity_does_not_depend_on_the_scale_of_the_inputs() -> None:
    weight, given = torch.randn(16, 8, generator=generator()), torch.randn(5, 8, generator=generator(1))
    masks = [most_active((scale * given @ weight.T).abs().sum(dim=0), 0.7) for scale in (1.0, 0.5, 64.0)]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    other = most_active((given.flip(1) @ weight.T).abs().sum(dim=0), 0.7)
    assert not torch.equal(other, masks[0])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(0, 45))
def test_the_largest_are_exactly_so_many(values: list[int], count: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    mask = largest(tensor, count)
    assert int(mask.sum()) == min(count, len(values))
    if 0 < count < len(values):
        assert float(tensor[mask].min()) >= float(tensor[~mask].max())
    order = sorted(range(len(values)), key=lambda at: (-values[at], at))
    assert set(mask.nonzero()[:, 0].tolist()) == set(order[:count])


def test_the_largest_over_several_tensors_leave_out_what_is_taken() -> None:
    values = {name: torch.rand(5, 4, generator=generator(at)) for at, name in enumerate("abc")}
    none = {name: torch.zeros(5, 4, dtype=torch.bool) for name in values}
    first = largest_together(values, 7, none)
    both = largest_together(values, 7, first)
    assert sum(int(mask.sum()) for mask in first.values()) == 7
    once = largest_together(values, 14, none)
    assert all(torch.equal(both[name], once[name]) for name in values)
    assert all(bool((both[name] | ~first[name]).all()) for name in values)


def test_low_rank_is_the_nearest_matrix_of_that_rank() -> None:
    weight = torch.randn(9, 6, generator=generator())
    found = low_rank(weight, 2)
    values = torch.linalg.svdvals(weight)
    assert torch.linalg.matrix_rank(found, tol=1e-4) == 2
    assert float((weight - found).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (3, 40)])
def test_principal_weights(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=generator())
    count = min(sum(shape) * 2, shape[0] * shape[1])
    assert lora_budget(shape, 2) == count
    for choice in ("low-rank", "magnitude", "random"):
        mask = principal(weight, 2, 1, choice, generator())  # type: ignore[arg-type]
        assert mask.shape == weight.shape
        assert int(mask.sum()) == count
    whole = principal(weight, 1, min(shape), "low-rank", generator())
    assert torch.equal(whole, largest(weight.abs(), lora_budget(shape, 1)))
    assert torch.equal(whole, principal(weight, 1, 1, "magnitude", generator()))
    if shape[0] > 3:
        assert not torch.equal(whole, principal(weight, 1, 1, "low-rank", generator()))
    assert bool(principal(weight, 100, 1, "low-rank", generator()).all()), "the budget ends at the whole matrix"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.integers(0, 99))
def test_resting_counts_are_a_share_of_all(sizes: list[int], share: float, seed: int) -> None:
    counts = frozen_counts(sizes, share, np.random.default_rng(seed))
    assert all(abs(count - share * size) < 1 for count, size in zip(counts, sizes, strict=True))
    assert sum(counts) == math.ceil(share * sum(sizes))


def test_changes_and_their_sparsity() -> None:
    before = {"a": torch.randn(10, 10, generator=generator()), "b": torch.zeros(20)}
    assert sparsity(before, before) == 1
    after = {name: value.clone() for name, value in before.items()}
    after["a"].view(-1)[:7] += 1e-3
    after["b"][:5] -= 1e-3
    assert sparsity(before, after) == pytest.approx(1 - 12 / 120)
    assert sparsity(after, before) == sparsity(before, after)
    assert sparsity(before, after, tolerance=1e-2) == 1
    assert int(changed(before["a"], after["a"], 1e-5).sum()) == 7


def test_random_masks_overlap_as_chance_has_it() -> None:
    size, first, second = 100_000, 0.3, 0.2
    masks = [{"a": sampled(size, int(p * size), generator(at))} for at, p in enumerate((first, second))]
    found, chance = overlap(*masks)
    assert chance == pytest.approx(second)
    assert abs(found - second) < 3 * math.sqrt(second * (1 - second) / (first * size))
    assert overlap(masks[0], masks[0])[0] == 1


def test_rounding_to_bf16_looks_like_sparsity() -> None:
    weights = 0.02 * torch.randn(200_000, generator=generator())
    rounded = weights.bfloat16()
    after = (rounded.float() + 1e-6).bfloat16()
    assert 0.97 < sparsity({"a": rounded}, {"a": after}, tolerance=0.0) < 0.99
    assert sparsity({"a": weights}, {"a": weights + 1e-6}, tolerance=0.0) < 0.01


@given(st.integers(1, 40), st.integers(0, 99))
def test_masks_survive_being_saved(size: int, seed: int) -> None:
    mask = torch.rand(size, generator=generator(seed)) < 0.4
    assert packed(mask).numel() == -(-size // 8)
    assert torch.equal(all_unpacked({"a": packed(mask)}, {"a": mask})["a"], mask)
