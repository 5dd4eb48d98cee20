"""Optimizer, learning rate and the order of examples: what the gradient loop is made of."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from contune.contract.context import Context
from contune.contract.data import Rows
from contune.contract.settings import TrainSettings


def make_optimizer(context: Context) -> torch.optim.Optimizer:
    """An optimizer over what is trained and nothing else; a group has the tensors of a part that share a rate."""
    settings = context.task.settings
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in context.model.trained().items():
        part, _, own = name.partition(".")
        groups.setdefault((part, rate_of(context, part, own)), []).append(parameter)
    rates = [settings.lr * rate for _, rate in groups]
    made = [{"params": each, "lr": lr, "full_lr": lr} for each, lr in zip(groups.values(), rates, strict=True)]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(made, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(made, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(made, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def rate_of(context: Context, part: str, name: str) -> float:
    """The learning rate of a part's tensor, as a multiple of the whole one."""
    if part == "adapter":
        return context.model.adapter.rate(name)
    if part == "head":
        return context.model.head.lr_scale
    assert context.model.router is not None
    return context.model.router.lr_scale


def rate_factor(settings: TrainSettings, step: int, steps: int, *, task: int = 0) -> float:
    """Share of the full learning rate at `step` of a task's `steps` (from 0), by `schedule`.

    Linear warm-up, then `constant`, or half a cosine down to `floor` (re-warming and re-decaying in every task), or its
    first quarter alone, which falls ever faster (CODA-Prompt's released schedule), or `infinite` (arXiv 2403.08763,
    section 7): the first task warms up and cools down to `floor` within the share `cooldown` of its steps, and from there
    the rate stays, in all later tasks too. At the end of the task `anneal_task` it falls exponentially to a tenth of that,
    within the share `annealing` of that task's steps.

    >>> infinite = TrainSettings(schedule="infinite", floor=0.1, warmup=0.25, cooldown=0.5)
    >>> [round(rate_factor(infinite, step, 8), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.87, 0.55, 0.23, 0.1, 0.1]
    >>> [round(rate_factor(TrainSettings(schedule="quarter-cosine"), step, 4), 2) for step in range(4)]
    [1.0, 0.92, 0.71, 0.38]
    >>> last = TrainSettings(schedule="infinite", floor=0.1, anneal_task=2, annealing=0.5)
    >>> [round(rate_factor(last, step, 4, task=1), 4) for step in range(4)]
    [0.1, 0.1, 0.0316, 0.01]
    """
    level = scheduled(settings, step, steps, first=task == 0)
    if settings.anneal_task != task + 1:
        return level
    start = steps - max(1, int(settings.annealing * steps))
    return level * math.pow(0.1, max(0, step + 1 - start) / (steps - start))


def scheduled(settings: TrainSettings, step: int, steps: int, *, first: bool) -> float:
    """The same without annealing."""
    if settings.schedule == "infinite" and not first:
        return settings.floor
    warm = int(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    falling = int(settings.cooldown * steps) if settings.schedule == "infinite" else steps - warm
    share = min((step - warm) / max(1, falling), 1.0)
    quarter = settings.schedule == "quarter-cosine"
    left = math.cos(math.pi / 2 * share) if quarter else 0.5 * (1 + math.cos(math.pi * share))
    return settings.floor + (1 - settings.floor) * left


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` of its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's memory by parameter name."""
    tensors = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}|{key}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimizer back what `optimizer_tensors` took."""
    for label, value in tensors.items():
        name, key = label.rsplit("|", 1)
        parameter = trained[name]
        optimizer.state[parameter][key] = value.clone() if key == "step" else value.clone().to(parameter.device)


def epoch_batches(
    lengths: Rows, size: int, generator: np.random.Generator, *, group: bool, count: int | None = None
) -> list[Rows]:
    """All rows once in random batches; with `group`, batches of similar length in random order.

    With `count`, so many batches, all of `size` rows or of all there are: passes over the rows follow one another, each
    without its shorter last batch. Grouping sorts by length within pools of 50 batches, so that which examples meet stays
    random.
    """
    if count is not None:
        found: list[Rows] = []
        while len(found) < count:
            once = epoch_batches(lengths, size, generator, group=group)
            found += [batch for batch in once if len(batch) == min(size, len(lengths))]
        return found[:count]
    order = generator.permutation(len(lengths))
    if group and len(set(lengths.tolist())) > 1:
        pool = 50 * size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([p[np.argsort(-lengths[p], kind="stable")] for p in pools])
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batches[i] for i in generator.permutation(len(batches))]
