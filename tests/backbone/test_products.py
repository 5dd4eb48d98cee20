"""Attention by products is PyTorch's scaled dot-product attention, and its two ways to a softmax are as exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from contune.backbone.attention import matmul as products
from contune.backbone.attention.matmul import LONG, product_attention


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    queries=st.integers(1, 5),
    keys=st.sampled_from([1, 4, LONG - 1, LONG, LONG + 5, LONG + 20]),
    masked=st.booleans(),
    scaling=st.sampled_from([None, 1.0, 0.3]),
)
def test_it_is_scaled_dot_product_attention(
    batch: int, groups: int, shared: int, queries: int, keys: int, masked: bool, scaling: float | None
) -> None:
    query = drawn(0, batch, groups * shared, queries, 4)
    key, value = drawn(1, batch, groups, keys, 4), drawn(2, batch, groups, keys, 4)
    mask = 3 * drawn(3, batch, 1, queries, keys) if masked else None
    found = product_attention(query, key, value, mask, scaling=scaling)
    every = [states.repeat_interleave(shared, dim=1) for states in (key, value)]
    expected = functional.scaled_dot_product_attention(query, *every, attn_mask=mask, scale=scaling)
    assert found.shape == (batch, queries, groups * shared, 4)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_long_rows_lose_nothing_that_short_ones_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [drawn(seed, 2, 3, LONG + 9, 8).bfloat16() for seed in range(3)]
    exact = product_attention(*(each.double() for each in states), None)
    long = product_attention(*states, None)
    monkeypatch.setattr(products, "LONG", 10**6)
    short = product_attention(*states, None)
    assert long.dtype == short.dtype == torch.bfloat16
    assert (long == short).double().mean() > 0.99
    errors = [(found.double() - exact).square().mean().sqrt().item() for found in (long, short)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("length", [LONG + 9, LONG + 20])
def test_gradients_in_bf16_are_those_of_float32_within_its_rounding(length: int) -> None:
    whole = [drawn(seed, 2, 3, length, 8).requires_grad_() for seed in range(3)]
    half = [states.detach().bfloat16().requires_grad_() for states in whole]
    for states in (whole, half):
        product_attention(*states, None).square().sum().backward()
    for one, other in zip(whole, half, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert functional.cosine_similarity(one.grad.flatten(), other.grad.float().flatten(), dim=0) > 0.999
