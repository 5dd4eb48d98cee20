"""ConPET: as many steps for every task, old tasks equally often, experts that never change, and a selector that learns."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from language_tasks import experience
from resume_helpers import go_on, learn_keeping
from torch import Tensor, nn
from torch.nn import functional
from word_tasks import tiny_backbone, tiny_folder, word_tasks

from contune.adapter.lora.experts import LoraExperts
from contune.backbone.backbone import Backbone
from contune.checks.run import SETTINGS, accuracy, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Selection
from contune.engine.learner import Learner
from contune.engine.steps.loop import objective_loss
from contune.engine.steps.optimizer import epoch_batches
from contune.errors import CombinationError, ConfigError
from contune.head.linear_per_task import LinearPerTask
from contune.method.catalog import build_method, compose
from contune.router import selector as selector_module
from contune.router.selector import Selector, with_new_row
from contune.router.side_lora import SideLora, base_matrices
from contune.rule.replay.task_replay import TaskReplay, drawn_rows, old_beside
from contune.stream.task import Task

NAMES = ("conpet-static", "conpet-dynamic")
TRAIN = {**SETTINGS, "batches": 6, "batch_size": 8, "weight_decay": 0.1}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def learner_of(name: str, case: str = "digits", train: dict[str, Any] | None = None, **options: Any) -> Learner:
    return Learner(model_of(case), build_method(name, options), train={**TRAIN, **(train or {})})


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def replay_of(learner: Learner) -> TaskReplay:
    (rule,) = learner.method.rules
    assert isinstance(rule, TaskReplay)
    return rule


def selector_of(learner: Learner) -> Selector:
    router = learner.method.router
    assert isinstance(router, Selector)
    return router


def few(task: Task, count: int) -> Task:
    """The task with `count` of its training examples."""
    rows = np.linspace(0, len(task.train) - 1, count).astype(np.int64)
    return Task(task.name, task.class_names, task.train.take(rows), task.test)


@pytest.mark.parametrize(("count", "size"), [(7, 4), (3, 30), (1, 10), (25, 3)])
def test_so_many_full_batches_of_rows_that_come_equally_often(count: int, size: int) -> None:
    lengths = np.full(10, 5)
    found = epoch_batches(lengths, size, np.random.default_rng(0), group=True, count=count)
    assert [len(batch) for batch in found] == [min(size, 10)] * count
    assert all(len(set(batch.tolist())) == len(batch) for batch in found)
    often = np.bincount(np.concatenate(found), minlength=10)
    assert often.max() - often.min() <= -(-count // (10 // min(size, 10)))


def test_without_a_count_every_row_comes_once() -> None:
    lengths = np.arange(1, 12)
    found = epoch_batches(lengths, 4, np.random.default_rng(1), group=True)
    assert sorted(np.concatenate(found).tolist()) == list(range(11))
    again = epoch_batches(lengths, 4, np.random.default_rng(1), group=True, count=2)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in found if len(batch) == 4][:2]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_as_many_steps_and_rows_whatever_its_size(name: str) -> None:
    """Counted by the steps that are taken: of the second task and of all after it."""
    learner = learner_of(name)
    first, second, third = digit_tasks()
    counts, rows = [], []
    for task in (first, few(second, 9), few(third, 40)):
        context, taken = learner.begin(task), list[int]()
        learner.fit(context, lambda report, taken=taken: taken.append(report.examples))  # type: ignore[misc]
        learner.end(context)
        assert len(taken) == learner.steps(context)
        counts.append(len(taken))
        rows.append(set(taken))
    assert counts == [18, 18, 18]
    assert rows == [{8}, {16}, {16}]


def test_without_batches_steps_follow_the_size_of_the_task() -> None:
    learner = learner_of("conpet-static", train={"batches": None})
    assert [
        learner.steps(learner.begin(few(task, count))) for task, count in zip(digit_tasks(), (8, 40), strict=False)
    ] == [
        3,
        15,
    ]


@pytest.mark.parametrize(("ratio", "old"), [(1.0, 8), (2.0, 4), (0.5, 16), (3.0, 3)])
def test_new_rows_to_old_ones_are_as_the_ratio_says_in_every_step(ratio: float, old: int) -> None:
    learner = learner_of("conpet-static", ratio=ratio)
    learner.learn(digit_tasks()[0])
    assert replay_of(learner).select(learner.begin(digit_tasks()[1]), 0, 0)["task-replay"].rows.shape == (old,)
    fresh = learner_of("conpet-static", ratio=ratio)
    assert replay_of(fresh).select(fresh.begin(digit_tasks()[0]), 0, 0) == {}


def histogram(learner: Learner, context: Context) -> list[int]:
    """How often each old task is drawn in many steps."""
    found = np.zeros(context.task.index, dtype=np.int64)
    for step in range(400):
        (chosen,) = replay_of(learner).select(context, 0, step).values()
        found += np.bincount(chosen.dataset.tasks[chosen.rows], minlength=context.task.index)
    return found.tolist()


def uneven(**options: Any) -> tuple[Learner, Context]:
    """A learner in the third task, after one of 5 examples and one of 48."""
    learner = learner_of("conpet-static", train={"epochs": 0}, **options)
    for task in (few(digit_tasks()[0], 5), digit_tasks()[1]):
        learner.learn(task)
    return learner, learner.begin(digit_tasks()[2])


def test_small_old_tasks_are_drawn_as_often_as_large_ones() -> None:
    first, second = histogram(*uneven())
    assert first + second == 3200
    assert abs(first - 1600) < 4 * (3200 * 0.25) ** 0.5


def test_draws_over_samples_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(tasks: Any, count: int, generator: np.random.Generator) -> Any:
        return generator.integers(len(tasks), size=count)

    monkeypatch.setattr("contune.rule.replay.task_replay.drawn_rows", wrong)
    assert histogram(*uneven())[0] < 600


def test_examples_of_a_task_are_drawn_alike_and_draws_depend_on_the_step() -> None:
    rows = drawn_rows(np.array([3, 3, 3, 3, 8]), 8000, np.random.default_rng(0))
    often = np.bincount(rows)
    assert np.abs(often - [1000, 1000, 1000, 1000, 4000]).max() < 200
    learner, context = uneven()
    draws = [replay_of(learner).select(context, 0, step)["task-replay"].rows.tolist() for step in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]


@pytest.mark.parametrize(("size", "kept"), [(None, [5, 48]), (20, [5, 15]), (8, [4, 4]), (0, None)])
def test_all_examples_are_kept_or_equal_shares_of_the_tasks(size: int | None, kept: list[int] | None) -> None:
    learner, context = uneven(size=size)
    chosen = replay_of(learner).select(context, 0, 0)
    if kept is None:
        assert not chosen
        return
    assert np.bincount(chosen["task-replay"].dataset.tasks).tolist() == kept


def test_old_rows_join_the_mean_of_a_static_step() -> None:
    learner = learner_of("conpet-static")
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    new = Selection(context.task.data, np.arange(8))
    selections = {TASK: new, **replay_of(learner).select(context, 0, 0)}
    batch = batch_of(context, selections)
    outputs = context.model.forward(batch)
    expected = functional.cross_entropy(outputs.logits, batch.labels)
    assert objective_loss(context, batch, outputs, selections).item() == pytest.approx(expected.item(), rel=1e-5)


def batch_of(context: Context, selections: dict[str, Selection]) -> Batch:
    segments, counts, start = {}, {}, 0
    for name, selection in selections.items():
        counts[name] = selection.dataset.prepared.units(selection.rows)
        segments[name] = slice(start, start + counts[name])
        start += counts[name]
    parts = [(selection.dataset, selection.rows) for selection in selections.values()]
    return context.passes.batch(parts, segments=segments, counts=counts)


def test_old_rows_teach_the_selector_and_not_the_expert() -> None:
    learner = learner_of("conpet-dynamic")
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    selections = {TASK: Selection(context.task.data, np.arange(8)), **replay_of(learner).select(context, 0, 0)}
    batch = batch_of(context, selections)
    outputs = context.model.forward(batch)
    rows = functional.cross_entropy(outputs.logits[:8, 2:], batch.labels[:8] - 2)
    loss = objective_loss(context, batch, outputs, selections)
    assert loss.item() == pytest.approx(rows.item(), rel=1e-5)
    router = selector_of(learner)
    with torch.no_grad():  # at zero the new row would hide the difference
        router._weight.copy_(torch.randn(router._weight.shape, generator=torch.Generator().manual_seed(0)))
    found = router.loss(context, batch)
    assert found is not None
    scores = router.scores(context, batch)
    assert found.item() == pytest.approx(
        functional.cross_entropy(scores, torch.tensor([1] * 8 + [0] * 8)).item(), rel=1e-5
    )
    reached = torch.autograd.grad(found, list(context.model.trained().values()), allow_unused=True)
    names = [name for name, gradient in zip(context.model.trained(), reached, strict=True) if gradient is not None]
    assert names
    assert all(name.startswith("router.") for name in names)


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_finished_experts_and_heads_keep_every_bit(case: str) -> None:
    learner = learner_of("conpet-dynamic", case)
    kept: list[dict[str, Tensor]] = []
    for number, task in enumerate(tasks_of(case)):
        learner.learn(task)
        for module, before in enumerate(kept):
            assert all(torch.equal(value, before[name]) for name, value in module_tensors(learner, module).items())
        kept.append({name: value.clone() for name, value in module_tensors(learner, number).items()})
        assert len(kept[-1]) == 14  # A and B of two matrices in three layers, weight and bias
    assert learner.base_unchanged()


def module_tensors(learner: Learner, module: int) -> dict[str, Tensor]:
    adapter, head = learner.method.adapter, learner.method.head
    assert isinstance(adapter, LoraExperts)
    assert isinstance(head, LinearPerTask)
    return {
        **{f"adapter {name}": value for name, value in adapter.state().inner(f"set{module}").tensors.items()},
        **{f"head {name}": value for name, value in head.state().inner(str(module)).tensors.items()},
    }


def test_the_experts_together_score_every_class_once_and_the_chosen_one_answers() -> None:
    """All experts, nothing hidden: the scores side by side are those of all heads; at m = 1 one head's remain."""
    learner = learner_of("conpet-dynamic")
    for task in digit_tasks():
        learner.learn(task)
    data = learner.test_dataset(digit_tasks()[0])
    context = learner.reading(data)
    head = learner.method.head
    every = torch.full((len(data), 6), float("-inf"))
    for module in range(3):
        features = context.passes.module_features(data, module)
        scores = head.routed_logits(features, torch.full((len(data),), module), training=False)
        own = head.state().inner(str(module)).tensors
        torch.testing.assert_close(scores[:, 2 * module : 2 * module + 2], features @ own["weight"].T + own["bias"])
        assert int(torch.isfinite(scores).sum()) == 2 * len(data)
        every = torch.maximum(every, scores)
    assert torch.isfinite(every).all()
    routes = context.passes.routes(data)
    with torch.no_grad():
        answered = context.passes.logits(data)
    for row, module in enumerate(routes.tolist()):
        expected = torch.full((6,), float("-inf"))
        expected[2 * module : 2 * module + 2] = every[row, 2 * module : 2 * module + 2]
        torch.testing.assert_close(answered[row], expected, atol=1e-4, rtol=1e-4)


def test_the_selector_keeps_old_rows_and_begins_new_ones_at_zero() -> None:
    learner = learner_of("conpet-dynamic")
    router, seen = selector_of(learner), list[Tensor]()
    for number, task in enumerate(digit_tasks()):
        context = learner.begin(task)
        weight = router.state().tensors["weight"]
        assert weight.shape == (number + 1, 32)
        assert (weight[-1] == 0).all()
        assert number == 0 or torch.equal(weight[:-1], seen[-1])
        assert bool(router.trained()) == (number > 0)
        learner.fit(context, lambda report: None)
        learner.end(context)
        seen.append(router.state().tensors["weight"].clone())
    assert (seen[0] == 0).all()
    assert (seen[2] != 0).all()


@cache
def taught(name: str, size: int | None) -> Learner:
    """A learner of all three tasks; it must not learn more."""
    options = {} if name == "lora" else {"size": size}
    train = {**TRAIN, "epochs": 1, "batches": 25, "lr": 2e-2}
    learner = Learner(tiny_model(), build_method(name, options), train=train)
    for task in digit_tasks():
        learner.learn(task)
    return learner


def test_the_selector_learns_all_tasks_and_forgets_without_old_rows() -> None:
    """Share of test examples of all tasks that reach the module of their task."""
    found = {}
    for size in (None, 0):
        learner = taught("conpet-dynamic", size)
        data = [learner.test_dataset(task) for task in digit_tasks()]
        right = [selector_of(learner).route(learner.reading(one), one) == number for number, one in enumerate(data)]
        found[size] = float(torch.cat(right).float().mean())
    assert found[None] > 0.6
    assert found[0] < 0.5


def test_old_tasks_are_kept_better_than_by_plain_lora() -> None:
    scores = {name: accuracy(taught(name, None), digit_tasks()) for name in ("lora", *NAMES)}
    assert min(scores["conpet-static"], scores["conpet-dynamic"]) > scores["lora"] + 0.1


@pytest.mark.parametrize("name", ["vit", "bert", "distilbert", "modernbert", "gpt2"])
def test_updates_on_the_side_are_those_of_changed_weights_and_only_inside_the_block(name: str) -> None:
    backbone = tiny_backbone(name)
    places = base_matrices(backbone, "query-value", "all")
    side = SideLora(places, 2, 6.0, 0, backbone.device)
    inputs = inputs_of(backbone)
    plain = backbone.features(inputs)
    with side.active():
        assert torch.equal(backbone.features(inputs), plain)
    generator = torch.Generator().manual_seed(0)
    side.load({n: 0.3 * torch.randn(v.shape, generator=generator) for n, v in side.parameters().items()})
    with torch.no_grad(), side.active():
        found = backbone.features(inputs)
    assert torch.equal(backbone.features(inputs), plain)
    assert float((found - plain).abs().max()) > 1e-2
    values = side.parameters()
    for place, module in places.items():
        change = 3.0 * values[f"{place}.B"].detach() @ values[f"{place}.A"].detach()
        weight = module.get_parameter("weight")
        weight.data += change if isinstance(module, nn.Linear) else change.T
    torch.testing.assert_close(backbone.features(inputs), found, atol=1e-4, rtol=1e-4)


def inputs_of(backbone: Backbone) -> Any:
    if backbone.modality == "image":
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        return backbone.collate([(backbone.prepare(list(pixels)), np.arange(3))])
    return backbone.collate([(backbone.prepare(["a", "some words", "and a few more words"]), np.arange(3))])


def test_the_models_own_matrices_have_the_same_names_with_an_adapter_around_them() -> None:
    plain = base_matrices(tiny_backbone("bert"), "all-linear", "all")
    learner = Learner(str(tiny_folder("bert")), build_method("o-lora", {"targets": "all-linear"}), train=TRAIN)
    wrapped = base_matrices(learner.backbone, "all-linear", "all")
    assert plain.keys() == wrapped.keys()
    assert all(module.get_parameter("weight").shape == plain[name].weight.shape for name, module in wrapped.items())
    with pytest.raises(ConfigError, match="names no linear layer"):
        base_matrices(learner.backbone, ["nothing"], "all")


def test_the_selector_looks_at_the_model_without_any_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of("conpet-dynamic")
    for task in digit_tasks()[:2]:
        learner.learn(task)
    router = selector_of(learner)
    data = learner.test_dataset(digit_tasks()[1])
    context = learner.reading(data)
    batch = context.passes.batch([(data, np.arange(4))])
    with torch.no_grad():
        before = router.scores(context, batch)
        for parameter in learner.method.adapter.trained().values():
            parameter.data.add_(1.0)
        assert torch.equal(router.scores(context, batch), before)
        monkeypatch.setattr(learner.method.adapter, "disabled", lambda: torch.no_grad())
        assert not torch.equal(router.scores(context, batch), before)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_any_size_of_texts_are_learned_and_resumed_exactly(name: str) -> None:
    learner, again = learner_of(name, "bert"), learner_of(name, "bert")
    first, second, third = tasks_of("bert")
    learner.learn(first)
    halfway = learn_keeping(learner, second, 4)
    learner.learn(third)
    go_on(again, halfway)
    again.learn(third)
    assert same_state(learner.state(), again.state()) is None
    assert len(learner.predict(["aaaa 3", "zz", "QRS"])) == 3


def test_decoders_are_learned_by_their_features() -> None:
    learner = learner_of("conpet-dynamic", "gpt2")
    for task in word_tasks((2, 2)):
        learner.learn(task)
    assert accuracy(learner, word_tasks((2, 2))) > 0.3
    assert learner.base_unchanged()


def test_language_is_learned_by_the_static_form_and_by_the_parts_of_the_dynamic_one() -> None:
    writer = str(tiny_folder("llama-writer"))
    with pytest.raises(CombinationError, match="linear-per-task"):
        Learner(writer, "conpet-dynamic", objective="write")
    parts = {
        "adapter": "lora-experts",
        "head": "linear",
        "router": "selector",
        "rules": [{"task-replay": {"weight": 0.0}}],
    }
    for method in (build_method("conpet-static", {}), compose(parts)):
        learner = Learner(writer, method, objective="write", train={**TRAIN, "batches": 3, "batch_size": 4})
        for task in (experience("big"), experience("red", "red", "blue")):
            learner.learn(task)
        assert all(isinstance(text, str) for text in learner.predict(["Is sun big", "Is sun red"]))
    context = learner.begin(experience("old", "new", "old"))
    batch = context.passes.batch([(context.task.data, np.arange(3))])
    router = selector_of(learner)
    scores = router.scores(context, batch)
    assert scores.shape == (3, 3)
    tokens = torch.bincount(batch.inputs.target_rows())
    rows = functional.cross_entropy(scores, torch.full((3,), 2), reduction="none")
    found = router.loss(context, batch)
    assert found is not None
    assert found.item() == pytest.approx(float((rows * tokens).sum() / tokens.sum()), rel=1e-5)


def test_a_selector_chooses_among_modules_of_other_adapters() -> None:
    parts = {"adapter": "prompt-per-task", "head": "linear-per-task", "router": "selector"}
    method = compose({**parts, "rules": [{"task-replay": {"weight": 0.0}}]})
    learner = Learner(tiny_model(), method, train=TRAIN)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    data = learner.test_dataset(digit_tasks()[1])
    assert set(selector_of(learner).route(learner.reading(data), data).tolist()) <= {0, 1}
    assert learner.base_unchanged()


def test_a_new_row_that_moved_old_ones_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        grown, shifts = with_new_row(weight, bias)
        return grown + 1e-3, shifts

    monkeypatch.setattr(selector_module, "with_new_row", wrong)
    with pytest.raises(AssertionError):
        test_the_selector_keeps_old_rows_and_begins_new_ones_at_zero()


def test_rows_are_counted_with_at_least_one_old() -> None:
    assert [old_beside(new, ratio) for new, ratio in ((8, 1.0), (8, 0.25), (3, 2.0), (1, 100.0))] == [8, 32, 2, 1]


def test_what_makes_no_sense_is_refused() -> None:
    for name, options in (
        ("conpet-static", {"ratio": 0.0}),
        ("conpet-dynamic", {"size": -1}),
        ("conpet-dynamic", {"rank": 0}),
    ):
        with pytest.raises(ConfigError):
            learner_of(name, **options)
    with pytest.raises(CombinationError, match="several modules to answer with, and 'lora' is none"):
        compose({"adapter": "lora", "router": "selector"})
