"""Class statistics: what is measured, and that draws converge to it in every form."""

import pytest
import torch
from torch import Tensor

from contune.errors import ConfigError
from contune.rule.align.statistics import (
    Form,
    Gaussians,
    Sampler,
    covariance,
    joined_gaussians,
    low_rank_factors,
    measured,
    square_root,
)

WIDTH = 5


def rows(count: int, seed: int = 0) -> Tensor:
    """Correlated rows with a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    return torch.randn(count, WIDTH, generator=generator) @ mixing + torch.arange(WIDTH)


def one_class(features: Tensor, form: Form, rank: int = 8) -> Gaussians:
    zeros = torch.zeros(len(features), dtype=torch.int64)
    return measured(features, zeros, zeros, form, rank)


def expected_covariance(features: Tensor, form: Form, rank: int) -> Tensor:
    whole = torch.cov(features.double().T)
    if form == "diagonal":
        return whole.diagonal().diag()
    if form == "low-rank" and rank < WIDTH:
        values, vectors = torch.linalg.eigh(whole)
        values[:-rank] = values[:-rank].mean()
        return vectors @ values.diag() @ vectors.T
    return whole


@pytest.mark.parametrize(
    ("form", "rank"), [("full", 1), ("shared", 1), ("diagonal", 1), ("low-rank", 2), ("low-rank", 9)]
)
def test_a_hundred_thousand_draws_have_the_mean_and_covariance(form: Form, rank: int) -> None:
    features = rows(60)
    gaussians = one_class(features, form, rank)
    generator = torch.Generator().manual_seed(1)
    drawn = Sampler(gaussians, jitter=1e-4).draw(0, 100_000, generator, mean_factor=0.9)
    assert drawn.dtype == torch.float32
    drawn = drawn.double()
    expected = expected_covariance(features, form, rank) + 1e-4 * torch.eye(WIDTH)
    spread = expected.diagonal().max()
    assert (drawn.mean(dim=0) - 0.9 * features.double().mean(dim=0)).abs().max() < 0.02 * spread.sqrt()
    assert (torch.cov(drawn.T) - expected).abs().max() < 0.03 * spread


def test_draws_are_seeded_and_differ_between_seeds() -> None:
    gaussians = one_class(rows(20), "full")
    first, again, other = (Sampler(gaussians).draw(0, 3, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_covariance_is_that_of_torch_and_zero_for_one_row() -> None:
    features = rows(12).double()
    torch.testing.assert_close(covariance(features), torch.cov(features.T))
    assert covariance(features[:1]).abs().max() == 0


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_low_rank_keeps_the_top_eigenvalues_and_the_trace(count: int) -> None:
    features = rows(count).double()
    factors, rest = low_rank_factors(features, 3)
    rebuilt = factors.T @ factors + rest * torch.eye(WIDTH, dtype=torch.float64)
    whole = covariance(features)
    assert factors.shape == (3, WIDTH)
    torch.testing.assert_close(rebuilt.trace(), whole.trace())
    torch.testing.assert_close(torch.linalg.eigvalsh(rebuilt)[-3:], torch.linalg.eigvalsh(whole)[-3:])


def test_every_class_and_task_has_its_own_gaussian() -> None:
    features = rows(9)
    labels, tasks = torch.tensor([2, 2, 2, 0, 0, 0, 2, 2, 2]), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    gaussians = measured(features, labels, tasks, "full")
    assert gaussians.labels.tolist() == [0, 2, 2]
    assert gaussians.tasks.tolist() == [0, 0, 1]
    assert gaussians.counts.tolist() == [3, 3, 3]
    torch.testing.assert_close(gaussians.means, torch.stack([features[3:6], features[:3], features[6:]]).mean(dim=1))
    torch.testing.assert_close(gaussians.spreads[1], torch.cov(features[:3].T))


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank", "shared"])
def test_measuring_in_two_parts_is_measuring_at_once(form: Form) -> None:
    features, labels = rows(24), torch.arange(24) % 3
    tasks = torch.zeros(24, dtype=torch.int64)
    whole = measured(features, labels, tasks, form)
    parts = [measured(features[chosen], labels[chosen], tasks[chosen], form) for chosen in (labels < 1, labels >= 1)]
    both = joined_gaussians(joined_gaussians(None, parts[0]), parts[1])
    assert both.labels.tolist() == whole.labels.tolist()
    torch.testing.assert_close(both.means, whole.means)
    torch.testing.assert_close(both.spreads, whole.spreads)
    torch.testing.assert_close(both.rest, whole.rest)


def test_shared_covariance_is_the_pooled_one_within_classes() -> None:
    features, labels = rows(20), torch.arange(20) % 2
    shared = measured(features, labels, torch.zeros(20, dtype=torch.int64), "shared").spreads
    scatter = sum(9 * torch.cov(features[labels == label].double().T) for label in (0, 1))
    torch.testing.assert_close(shared[0].double(), scatter / 18, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank", "shared"])
def test_one_example_of_a_class_is_drawn_closely_around(form: Form) -> None:
    gaussians = one_class(rows(1), form)
    drawn = Sampler(gaussians).draw(0, 1000, torch.Generator().manual_seed(0))
    assert (drawn - gaussians.means[0]).abs().max() < 0.06
    assert drawn.std() > 0


def test_memory_is_what_the_form_promises() -> None:
    sizes = {form: one_class(rows(30), form, rank=2).spreads.numel() for form in ("full", "diagonal", "low-rank")}
    assert sizes == {"full": WIDTH * WIDTH, "diagonal": WIDTH, "low-rank": 2 * WIDTH}


def test_state_gives_the_same_draws_back() -> None:
    gaussians = one_class(rows(30), "low-rank", rank=2)
    again = Gaussians.from_state(gaussians.state())
    first, second = (Sampler(g).draw(0, 4, torch.Generator().manual_seed(3)) for g in (gaussians, again))
    assert torch.equal(first, second)


def test_a_square_root_of_a_rounded_matrix_is_still_one() -> None:
    """A covariance kept in float32 may have a slightly negative eigenvalue; no jitter saves it here."""
    spread = torch.diag(torch.tensor([1.0, -1e-9], dtype=torch.float64))
    root = square_root(spread, 0.0)
    assert (root @ root.T - spread).abs().max() < 1e-8


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank is 0"):
        one_class(rows(3), "low-rank", rank=0)


def test_a_planted_fault_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cholesky's factor used the wrong way round draws from another covariance."""
    right = square_root

    def wrong(spread: Tensor, jitter: float) -> Tensor:
        return right(spread, jitter).T

    monkeypatch.setattr("contune.rule.align.statistics.square_root", wrong)
    with pytest.raises(AssertionError):
        test_a_hundred_thousand_draws_have_the_mean_and_covariance("full", 1)
