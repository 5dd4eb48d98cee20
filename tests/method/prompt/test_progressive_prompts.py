"""Progressive Prompts: what the card says must hold, with images, texts and language."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from language_tasks import experience
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.prompt.progressive import ProgressivePrompts, fresh_network, reparametrised
from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, tiny_model
from contune.contract.data import Dataset
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method, compose
from contune.stream.task import Task

HARSH = {**SETTINGS, "optimizer": "adamw", "weight_decay": 0.1, "lr": 0.02}
LONGER = {**SETTINGS, "epochs": 12, "lr": 0.05, "batch_size": 4}
WRITER = {"epochs": 2, "batch_size": 4, "lr": 5e-3}
CASES = ["digits", "bert", "llama-writer"]


def tasks_of(case: str) -> list[Task]:
    if case.endswith("writer"):
        return [experience("big"), experience("red", "red", "blue"), experience("old", "old", "new")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def learner_of(
    case: str = "digits", kind: str | None = None, train: dict[str, Any] | None = None, **options: Any
) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    objective, chosen = "write" if case.endswith("writer") else "classify", cast(Any, kind)
    settings = train or (WRITER if case.endswith("writer") else SETTINGS)
    return Learner(
        model, build_method("progressive-prompts", options), objective=objective, kind=chosen, train=settings
    )


def adapter_of(learner: Learner) -> ProgressivePrompts:
    adapter = learner.method.adapter
    assert isinstance(adapter, ProgressivePrompts)
    return adapter


def outputs_of(learner: Learner, dataset: Dataset, module: int) -> Tensor:
    """What answers all examples through one module, in batches of one shape: scores of words, else features."""
    context = learner.reading(dataset)
    rows = torch.full((len(dataset),), module)
    batch = context.passes.encoding_batch(dataset, np.arange(len(dataset)), rows)
    with torch.no_grad():
        outputs = context.model.forward(batch)
    return outputs.logits if learner.objective.name == "write" else outputs.features


def head_rows(learner: Learner, task: Task) -> list[Tensor]:
    """Head rows of a task's classes; a language head has none that is trained."""
    columns = [] if learner.objective.name == "write" else list(learner.columns(task))
    return [value.detach()[columns].clone() for value in learner.method.head.trained().values()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"bottleneck": 8}, {"router": "keys"}], ids=str)
def test_later_tasks_do_not_move_a_bit_of_an_answer(case: str, options: dict[str, Any]) -> None:
    learner, tasks = learner_of(case, **options), tasks_of(case)
    kept: list[tuple[Dataset, Tensor, list[Tensor]]] = []
    for number, task in enumerate(tasks):
        learner.learn(task)
        data = learner.test_dataset(task)
        kept.append((data, outputs_of(learner, data, number), head_rows(learner, task)))
        for module, (dataset, outputs, rows) in enumerate(kept):
            assert torch.equal(outputs_of(learner, dataset, module), outputs)
            assert all(torch.equal(*pair) for pair in zip(head_rows(learner, tasks[module]), rows, strict=True))
    assert not torch.equal(outputs_of(learner, kept[0][0], 2), kept[0][1])  # the newest module answers otherwise
    assert learner.base_unchanged()


def test_old_prompts_hold_still_under_momentum_and_decay() -> None:
    learner = learner_of("bert", train=HARSH, bottleneck=4)
    first, second, _ = tasks_of("bert")
    learner.learn(first)
    old = adapter_of(learner).prompts(0).clone()
    context = learner.begin(second)
    names = {name for name in context.model.trained() if name.startswith("adapter.")}
    assert names == {f"adapter.task1.{name}" for name in ("tokens", *(f"network.{n}" for n in fresh_network(1, 1, 0)))}
    context.model.forward(context.passes.batch([(context.task.data, np.arange(4))])).logits.sum().backward()
    frozen = adapter_of(learner)._prompts[0]["tokens"]
    assert frozen.grad is None
    assert not frozen.requires_grad
    assert all(value.grad is not None for name, value in context.model.trained().items() if name in names)
    learner.fit(context, lambda report: None)
    learner.end(context)
    assert torch.equal(adapter_of(learner).prompts(0), old)
    assert torch.equal(adapter_of(learner).prompts(1)[10:], old)


def test_the_newest_prompt_comes_first() -> None:
    learner = learner_of("bert", length=2)
    for task in tasks_of("bert"):
        learner.learn(task)
    adapter = adapter_of(learner)
    each = [adapter._prompts[task]["tokens"] for task in range(3)]
    assert torch.equal(adapter.prompts(2), torch.cat([each[2], each[1], each[0]]))
    assert torch.equal(adapter.prompts(1), torch.cat([each[1], each[0]]))
    backbone = learner.backbone
    inputs = few_inputs(backbone)
    with torch.no_grad():
        right = backbone.features(inputs, prompts=torch.cat([each[1], each[0]]))
        wrong = backbone.features(inputs, prompts=torch.cat([each[0], each[1]]))
        shown = backbone.features(inputs, prompts=adapter.prompts(1))
    assert torch.equal(shown, right)
    assert not torch.allclose(shown, wrong, atol=1e-4)  # the order is not lost: the card's trap


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_without_tokens_it_is_the_frozen_model(case: str) -> None:
    learner, plain = learner_of(case, length=0, router="none"), learner_of(case, length=0, router="none")
    for task in tasks_of(case):
        learner.learn(task)
    data = learner.test_dataset(tasks_of(case)[0])
    context = learner.reading(data)
    assert torch.equal(context.passes.module_features(data, 2), context.passes.base_features(data))
    assert adapter_of(learner).lowest_layer(learner.backbone) == learner.backbone.depth
    assert plain.base_unchanged()


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "gpt2-writer", "t5-writer"])
def test_a_prompt_starts_from_words(name: str) -> None:
    writer = name.endswith("writer")
    learner = learner_of(name)
    learner.begin(experience("big") if writer else tasks_of(name)[0])
    words = learner.backbone.model.get_input_embeddings()
    known = words(torch.arange(words.weight.shape[0])).detach()
    start = adapter_of(learner).prompts(0)
    assert all((known == row).all(dim=1).any() for row in start)
    assert len({tuple(row.tolist()) for row in start}) > 1


def test_prompts_of_images_and_of_other_tasks_start_apart() -> None:
    learner = learner_of("digits")
    starts = []
    for task in tasks_of("digits")[:2]:
        context = learner.begin(task)
        starts.append(adapter_of(learner)._prompts[len(starts)]["tokens"].detach().clone())
        learner.fit(context, lambda report: None)
        learner.end(context)
    assert not torch.equal(*starts)
    assert all(0.005 < start.std() < 0.05 for start in starts)


@pytest.mark.parametrize("case", CASES)
def test_the_network_is_folded_without_changing_an_answer(case: str) -> None:
    learner, task = learner_of(case, bottleneck=8), tasks_of(case)[0]
    context = learner.begin(task)
    network = {n: p.detach().clone() for n, p in context.model.trained().items() if ".network." in n}
    learner.fit(context, lambda report: None)
    moved = [n for n, p in context.model.trained().items() if ".network." in n and not torch.equal(p, network[n])]
    assert len(moved) == len(network) == 4
    batch = context.passes.batch([(context.task.data, np.arange(6))])
    with torch.no_grad():
        before = context.model.encode(batch)[0]
        expected = reparametrised(adapter_of(learner)._prompts[0]["tokens"], adapter_of(learner)._network)
    learner.end(context)
    with torch.no_grad():
        assert torch.equal(context.model.encode(batch)[0], before)
    assert torch.equal(adapter_of(learner).prompts(0), expected)
    assert not any("network" in name for name in learner.state().tensors)


def test_an_unfolded_network_would_be_noticed() -> None:
    tokens = torch.ones(2, 3)
    network = fresh_network(3, 5, 0)
    assert not torch.allclose(reparametrised(tokens, network), tokens, atol=1e-2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bottleneck", [0, 4])
def test_it_resumes_exactly_inside_the_second_task(case: str, bottleneck: int) -> None:
    learner, again = learner_of(case, bottleneck=bottleneck), learner_of(case, bottleneck=bottleneck)
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None


def test_module_features_depend_on_all_prompts_before() -> None:
    learner = learner_of("bert")
    for task in tasks_of("bert")[:2]:
        learner.learn(task)
    state = adapter_of(learner).module_state(1)
    assert state is not None
    assert {name.split("/")[0] for name in state.tensors} == {"task0", "task1"}
    learner.begin(tasks_of("bert")[2])
    assert adapter_of(learner).module_state(2) is None


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_it_works_by_itself_where_tasks_are_named(case: str) -> None:
    learner, tasks = (
        learner_of(case, "task-incremental", LONGER if case == "bert" else SETTINGS, router="none"),
        tasks_of(case),
    )
    before: list[list[str]] = []
    for task in tasks:
        learner.learn(task)
        before.append(learner.predict(task.test.inputs, task=len(before)))
    for index, task in enumerate(tasks):
        assert learner.predict(task.test.inputs, task=index) == before[index]
        names = [task.class_names[label] for label in task.test.labels.tolist()]
        right = np.mean([one == other for one, other in zip(before[index], names, strict=True)])
        assert right > 1 / len(task.class_names) + 0.1 or len(task.class_names) == 1


def test_language_needs_a_router() -> None:
    with pytest.raises(CombinationError, match="add a router"):
        learner_of("llama-writer", router="none")


@pytest.mark.parametrize("router", ["centroids", "keys", "mahalanobis"])
def test_the_router_finds_new_classes(router: str) -> None:
    learner, tasks = learner_of("bert", train=LONGER, router=router), tasks_of("bert")
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 1 / 6 + 0.1


def test_own_heads_protect_shared_classes() -> None:
    learner = learner_of("bert", own_heads=True)
    first = tasks_of("bert")[0]
    learner.learn(first)
    data = learner.test_dataset(first)
    before = outputs_of(learner, data, 0)
    learner.learn(Task("again", first.class_names, first.test, first.train))
    assert torch.equal(outputs_of(learner, data, 0), before)


@pytest.mark.parametrize("name", ["gpt2-writer", "t5-writer", "bart-writer"])
def test_other_families_write(name: str) -> None:
    learner = learner_of(name)
    for task in tasks_of(name)[:2]:
        learner.learn(task)
    assert len(learner.predict(["Is sun big", "Is moon red"])) == 2
    saved = copied(learner.state())
    again = learner_of(name)
    again.load_state(saved)
    assert again.predict(["Is sun big"]) == learner.predict(["Is sun big"])


def test_what_does_not_fit_is_said_before_a_step() -> None:
    learner = learner_of("bert", length=60)
    first, second, _ = tasks_of("bert")
    learner.learn(first)
    with pytest.raises(CombinationError, match=r"120 tokens of prompts .* 128 positions"):
        learner.begin(second)
    writer = learner_of("gpt2-writer", length=90)
    writer.learn(experience("big"))
    with pytest.raises(CombinationError, match=r"set model.max_length"):
        writer.predict(["a much longer question than those that were learned"])


def test_wrong_options_are_refused() -> None:
    for options in ({"length": -1}, {"bottleneck": -1}):
        with pytest.raises(ConfigError, match="give 0 or more"):
            build_method("progressive-prompts", options)
    with pytest.raises(CombinationError):
        build_method("progressive-prompts", {"own_heads": True, "router": "none"})


def test_first_task_adaptation_goes_through_the_first_prompt() -> None:
    method = compose({"adapter": "progressive-prompts", "adapt": "first-task", "router": "centroids"})
    learner = Learner(str(tiny_folder("bert")), method, train=SETTINGS)
    for task in tasks_of("bert"):
        learner.learn(task)
    assert method.adapter.modules() == 1
    assert tiny_backbone("bert").depth > 0
