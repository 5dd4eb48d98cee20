"""S-Prompts: what the card says must hold, with images and texts, in new domains and with new classes."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor, nn
from torch.nn import functional
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.prompt.per_task import PromptPerTask
from contune.adapter.task_sets import TaskSets
from contune.backbone.layers import changed_input
from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, tiny_model
from contune.contract.parts import Tensors
from contune.engine.learner import Learner
from contune.engine.steps.loop import objective_loss
from contune.errors import CombinationError, ConfigError
from contune.head.linear_per_task import LinearPerTask, placed_scores
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.router.centroids import Centroids
from contune.stream.task import Examples, Task

HARSH = {**SETTINGS, "optimizer": "adamw", "weight_decay": 0.1, "lr": 0.02}
CASES = ["digits", "bert"]


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def domains_of(case: str) -> list[Task]:
    """The same classes in three domains: digits plain, inverted and on their side; words plain, shouted and bracketed."""
    first = tasks_of(case)[0]

    def changed(number: int, item: Any) -> Any:
        if isinstance(item, str):
            return (item, item.upper() + "!!!!", f"[[{item}]] 777")[number]
        return (item, 255 - item, np.ascontiguousarray(np.rot90(item)))[number]

    domains = []
    for number in range(3):
        train, test = (
            Examples([changed(number, item) for item in e.inputs], e.labels, e.ids + 1000 * number, e.modality)
            for e in (first.train, first.test)
        )
        domains.append(Task(f"domain {number}", first.class_names, train, test))
    return domains


def s_learner(case: str = "digits", train: dict[str, Any] = HARSH, kind: Any = None, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else tiny_folder(case)
    method = build_method("s-prompts", options)
    return Learner(model, method, train=train, kind=kind or "class-incremental")


def adapter_of(learner: Learner) -> PromptPerTask:
    adapter = learner.method.adapter
    assert isinstance(adapter, PromptPerTask)
    return adapter


def all_tensors(learner: Learner) -> dict[str, Tensor]:
    return dict(copied(learner.state()).tensors)


def old_ones_that_moved(learner: Learner, tasks: list[Task]) -> set[str]:
    """Tensors of finished tasks, centres too, that a later task has changed."""
    moved: set[str] = set()
    for task in tasks:
        before = all_tensors(learner)
        learner.learn(task)
        after = all_tensors(learner)
        moved |= {n for n, value in before.items() if len(value) and not torch.equal(value, after[n][: len(value)])}
    return moved


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stream", [tasks_of, domains_of], ids=["classes", "domains"])
def test_a_domain_leaves_all_others_to_the_bit(case: str, stream: Any) -> None:
    learner = s_learner(case)
    assert old_ones_that_moved(learner, stream(case)) == set()
    names = set(all_tensors(learner))
    assert {f"adapter/task{t}/tokens" for t in range(3)} <= names
    assert {f"head/{t}/{part}" for t in range(3) for part in ("weight", "bias")} <= names


def test_prompts_that_share_storage_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: TaskSets, values: Tensors, device: torch.device, first_task: int) -> None:
        kept = self._sets[0]["tokens"] if self._sets else values["tokens"].detach()
        self._sets.append({"tokens": nn.Parameter(kept.data)})
        self._starts.append(first_task)

    monkeypatch.setattr(TaskSets, "append", append)
    assert "adapter/task0/tokens" in old_ones_that_moved(s_learner(), list(digit_tasks()[:2]))


def test_a_head_that_serves_two_domains_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_task(self: LinearPerTask, context: Any) -> None:
        if not self._heads:
            self._columns[0], self._seen = list(context.task.classes), context.task.seen
            width = context.model.feature_size()
            self._set(0, {"weight": torch.zeros(2, width), "bias": torch.zeros(2)}, context.model.backbone.device)
        module = len(self._heads) - 1 if context.task.index == 0 else 1
        self._heads[module], self._columns[module] = self._heads[0], self._columns[0]
        self._choose(module)
        for parameter in self._heads[module].values():
            parameter.requires_grad_(True)

    monkeypatch.setattr(LinearPerTask, "begin_task", begin_task)
    assert "head/0/weight" in old_ones_that_moved(s_learner(), domains_of("digits")[:2])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stream", [tasks_of, domains_of], ids=["classes", "domains"])
def test_with_the_domain_known_answers_stay_those_right_after_it(case: str, stream: Any) -> None:
    learner, tasks, kept = s_learner(case, kind="task-incremental"), stream(case), []
    for index, task in enumerate(tasks):
        learner.learn(task)
        data = learner.test_dataset(task, index)
        kept.append(learner.reading(data).passes.logits(data)[:, learner.columns(task)])
    for index, task in enumerate(tasks):
        data = learner.test_dataset(task, index)
        again = learner.reading(data).passes.logits(data)[:, learner.columns(task)]
        assert torch.allclose(again, kept[index], atol=1e-6)
        assert again.argmax(dim=1).tolist() == kept[index].argmax(dim=1).tolist()
    assert not torch.allclose(kept[0][:6], kept[1][:6, : kept[0].shape[1]], atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_without_a_prompt_it_is_a_linear_probe_of_the_frozen_model(case: str) -> None:
    learner = s_learner(case, length=0)
    tasks = tasks_of(case)
    for task in tasks:
        learner.learn(task)
    data = learner.test_dataset(tasks[1])
    context = learner.reading(data)
    base = context.passes.base_features(data)
    assert adapter_of(learner).modules() == 3
    for module in range(3):
        assert torch.equal(context.passes.module_features(data, module), base)


@pytest.mark.parametrize("name", ENCODERS)
def test_prompts_change_the_features_of_every_encoder(name: str) -> None:
    backbone, inputs = tiny_backbone(name), few_inputs(tiny_backbone(name))
    tokens = 0.5 * torch.randn(3, backbone.parts.prompt_width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone.features(inputs, prompts=tokens[:0]), backbone.features(inputs))
        assert not torch.allclose(backbone.features(inputs, prompts=tokens), backbone.features(inputs), atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_behind_the_class_token_prompts_do_the_same(name: str) -> None:
    """The released code puts them there: [class; prompts; patches], none of them with a position."""
    backbone, inputs = tiny_backbone(name), few_inputs(tiny_backbone(name))
    tokens = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    rows = tokens.expand(len(inputs), -1, -1)

    def behind(states: Tensor) -> Tensor:
        return torch.cat([states[:, :1], rows, states[:, 1:]], dim=1)

    with torch.no_grad():
        front = backbone.features(inputs, prompts=tokens)
        with changed_input(backbone.layers[0], behind):
            encoded = backbone.encode(inputs)
        assert torch.allclose(encoded.states[:, 0], front, atol=1e-5)
        assert not torch.allclose(backbone.features(inputs), front, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_domains_of_the_same_classes_have_heads_of_their_own(case: str) -> None:
    learner = s_learner(case, {**HARSH, "epochs": 8}, kind="domain-incremental")
    domains = domains_of(case)
    for domain in domains:
        learner.learn(domain)
    head = learner.method.head
    assert isinstance(head, LinearPerTask)
    assert learner.class_names == list(domains[0].class_names)
    assert [head._columns[module] for module in range(3)] == [[0, 1]] * 3
    weights = [head._heads[module]["weight"].detach() for module in range(3)]
    assert not any(torch.allclose(weights[0], other, atol=1e-3) for other in weights[1:])
    assert accuracy(learner, domains) > 0.6
    data = [learner.test_dataset(domain) for domain in domains]
    right = torch.cat([learner.reading(d).passes.routes(d) == number for number, d in enumerate(data)])
    assert float(right.float().mean()) > 0.7


def test_the_loss_is_over_the_domains_own_head_alone() -> None:
    learner = s_learner()
    first, second, _ = digit_tasks()
    learner.learn(first)
    context = learner.begin(second)
    rows = np.arange(8)
    batch = context.passes.batch([(context.task.data, rows)])
    outputs = context.model.forward(batch)
    found = objective_loss(context, batch, outputs, {"task": _selection(context, rows)})
    head = learner.method.head
    assert isinstance(head, LinearPerTask)
    own = functional.linear(outputs.features, head._heads[1]["weight"], head._heads[1]["bias"])
    wanted = functional.cross_entropy(own, torch.from_numpy(second.train.labels[:8]))
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)
    found.backward()
    assert head._heads[0]["weight"].grad is None
    assert adapter_of(learner)._prompts[0]["tokens"].grad is None
    assert adapter_of(learner)._prompts[1]["tokens"].grad is not None


def _selection(context: Any, rows: Any) -> Any:
    from contune.contract.data import Selection

    return Selection(context.task.data, rows)


def test_each_domain_starts_from_values_of_its_own() -> None:
    learner = s_learner()
    starts = []
    for task in digit_tasks():
        context = learner.begin(task)
        starts.append(adapter_of(learner)._prompts[len(starts)]["tokens"].detach().clone())
        learner.fit(context, lambda report: None)
        learner.end(context)
    assert all(start.shape == (10, 32) for start in starts)
    assert all(0.01 < float(start.std()) < 0.03 for start in starts)
    assert not torch.allclose(starts[0], starts[1], atol=1e-2)
    assert not torch.allclose(starts[1], starts[2], atol=1e-2)


def test_what_is_kept_per_domain() -> None:
    learner, sizes = s_learner(length=4, count=3), []
    for domain in domains_of("digits"):
        learner.learn(domain)
        sizes.append(sum(value.numel() for value in all_tensors(learner).values()))
    one = 4 * 32 + 2 * 33 + 3 * 32 + 3  # prompt, head, centres, and whose centre it is
    assert sizes == [one, 2 * one, 3 * one]


def test_scores_are_placed_in_the_columns_of_the_module() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 4, generator=generator)
    heads = {
        0: (torch.randn(2, 4, generator=generator), torch.randn(2, generator=generator), [2, 0]),
        3: (torch.randn(1, 4, generator=generator), torch.randn(1, generator=generator), [1]),
    }
    routes = torch.tensor([3, 0, 0, 3, 0])
    found = placed_scores(features, routes, heads, 4)
    for row, module in enumerate(routes.tolist()):
        weight, bias, columns = heads[module]
        scores = dict(zip(columns, (features[row] @ weight.T + bias).tolist(), strict=True))
        for column in range(4):
            assert found[row, column].item() == pytest.approx(scores.get(column, float("-inf")), abs=1e-6)


def test_a_head_of_many_modules_needs_an_adapter_with_many_and_a_way_to_choose() -> None:
    with pytest.raises(CombinationError, match="needs an adapter that has several modules"):
        compose({"adapter": "lora", "head": "linear-per-task"})
    with pytest.raises(CombinationError):
        compose({"adapter": "prompt-per-task", "head": "linear-per-task"})
    with pytest.raises(CombinationError, match="without the module they came through"):
        LinearPerTask().logits(torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="give 0 or more tokens"):
        PromptPerTask(length=-1)


@pytest.mark.parametrize("case", CASES)
def test_where_the_prompt_learns_in_the_first_task_only_its_head_grows(case: str) -> None:
    method = Method(PromptPerTask(), LinearPerTask(), router=Centroids(), adapt="first-task")
    model = tiny_model() if case == "digits" else tiny_folder(case)
    learner = Learner(model, method, train=SETTINGS)
    tasks = tasks_of(case)
    learner.learn(tasks[0])
    prompt = adapter_of(learner)._prompts[0]["tokens"].detach().clone()
    for task in tasks[1:]:
        learner.learn(task)
    head = learner.method.head
    assert isinstance(head, LinearPerTask)
    assert adapter_of(learner).modules() == 1
    assert torch.equal(adapter_of(learner)._prompts[0]["tokens"], prompt)
    assert head._columns == {0: list(range(len(learner.class_names)))}
    assert len(head._heads[0]["weight"]) == len(learner.class_names)


def test_tasks_learned_as_one_share_prompt_and_head() -> None:
    learner = s_learner()
    first, second, third = digit_tasks()
    learner.learn([first, second])
    learner.learn(third)
    head = learner.method.head
    assert isinstance(head, LinearPerTask)
    assert head._columns == {0: [0, 1, 2, 3], 1: [4, 5]}
    assert adapter_of(learner).routes(torch.tensor([0, 1, 2])).tolist() == [0, 0, 1]
    data = learner.test_dataset(second)
    assert set(learner.reading(data).passes.routes(data).tolist()) <= {0, 1}


@pytest.mark.parametrize("case", ["digits", "bert", "modernbert"])
@pytest.mark.parametrize("stream", [tasks_of, domains_of], ids=["classes", "domains"])
def test_it_resumes_exactly_inside_the_second_task(case: str, stream: Any) -> None:
    learner, again = s_learner(case), s_learner(case)
    assert difference_after_a_stop(learner, again, stream(case)) is None
    assert learner.base_unchanged()


@pytest.mark.parametrize("case", CASES)
def test_it_learns_new_classes_as_well(case: str) -> None:
    learner, tasks = s_learner(case, {**HARSH, "epochs": 10}), tasks_of(case)
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 1 / 6 + 0.1
