"""Seeding: draws depend on the seed alone, on whatever device they are made."""

import pytest
import torch

from contune.contract.randomness import seed_global


def test_draws_after_seeding_are_those_of_torchs_own_way() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_global(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_every_gpu_is_seeded_not_the_current_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_global(7, torch.device("cuda:1"))
    assert seeds == [7]
    assert torch.initial_seed() == 7


def test_other_devices_are_seeded_by_torchs_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    seed_global(9, torch.device("mps"))
    assert seeds == [9]
