"""DualPrompt: what the card says must hold, and the released code's numbers for keys and prefixes.

The golden numbers are from google-research/l2p at dd8836e6e3: `Prompt` (models/prompt.py) and
`MultiHeadDotProductAttention` (models/prefix_attention.py), run once on the tensors that `numbers` makes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_tasks import experience
from resume_helpers import difference_after_a_stop
from tiny_models import save_tiny
from torch import Tensor, nn
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.prompt.prefix_per_task import PrefixPerTask, joined_prefixes
from contune.adapter.task_sets import TaskSets
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.contract.parts import Tensors
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.method.catalog import build_method, compose
from contune.numerics.keys import nearest_keys
from contune.router.keys import Keys, frozen_queries
from contune.stream.task import Task

HARSH = {**SETTINGS, "lr": 0.02, "optimizer": "adamw", "weight_decay": 0.1}
CASES = ["digits", "bert"]


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def dual_learner(case: str = "digits", train: dict[str, Any] = SETTINGS, kind: Any = None, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else tiny_folder(case)
    method = build_method("dualprompt", options)
    return Learner(model, method, train=train, kind=kind or "class-incremental")


def adapter_of(learner: Learner) -> PrefixPerTask:
    adapter = learner.method.adapter
    assert isinstance(adapter, PrefixPerTask)
    return adapter


def tensors_of(learner: Learner, start: str) -> dict[str, Tensor]:
    return {name: value for name, value in copied(learner.state()).tensors.items() if name.startswith(start)}


def per_task(learner: Learner) -> dict[str, Tensor]:
    """Experts and keys of all tasks."""
    return tensors_of(learner, "adapter/experts/") | tensors_of(learner, "router/")


def old_ones_that_moved(learner: Learner, tasks: list[Task]) -> set[str]:
    """Experts and keys of finished tasks that a later task has changed."""
    moved: set[str] = set()
    for task in tasks:
        before = per_task(learner)
        learner.learn(task)
        after = per_task(learner)
        moved |= {name for name, value in before.items() if not torch.equal(value, after[name])}
    return moved


def numbers(*shape: int, step: int) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * step % 23 - 11) / 10).reshape(shape)


@pytest.mark.parametrize("case", CASES)
def test_other_experts_and_keys_keep_every_bit(case: str) -> None:
    learner = dual_learner(case, HARSH)
    assert old_ones_that_moved(learner, tasks_of(case)) == set()
    names = per_task(learner)
    experts = {name.split("/")[2] for name in names if name.startswith("adapter")}
    assert experts == {"task0", "task1", "task2"}
    assert {name for name in names if name.startswith("router")} == {f"router/key{task}" for task in range(3)}
    assert len({tuple(values.flatten().tolist()) for values in names.values()}) == len(names), "each has learned"


def test_an_expert_that_shares_storage_with_the_last_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: TaskSets, values: Tensors, device: torch.device, first_task: int) -> None:
        self._sets.append({name: nn.Parameter(value.detach()) for name, value in values.items()})
        self._starts.append(first_task)

    monkeypatch.setattr(TaskSets, "append", append)
    moved = old_ones_that_moved(dual_learner(train=HARSH), list(digit_tasks()[:2]))
    assert any(name.startswith("adapter/experts/task0/") for name in moved)


def test_a_key_that_trains_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_task(self: Keys, context: Context) -> None:
        self._keys[0] = self._keys.get(0, nn.Parameter(torch.rand(context.model.backbone.feature_size)))
        self._current = 0

    monkeypatch.setattr(Keys, "begin_task", begin_task)
    assert old_ones_that_moved(dual_learner(train=HARSH), list(digit_tasks()[:2])) == {"router/key0"}


@pytest.mark.parametrize("case", CASES)
def test_an_expert_starts_as_the_last_one_and_a_key_does_not(case: str) -> None:
    learner = dual_learner(case)
    experts, keys = adapter_of(learner)._experts, learner.method.router
    assert isinstance(keys, Keys)
    for number, task in enumerate(tasks_of(case)):
        context = learner.begin(task)
        start = keys._keys[number].detach()
        assert 0 <= float(start.min()) < float(start.max()) < 0.01
        if number:
            assert experts[number].keys() == experts[number - 1].keys()
            assert all(torch.equal(value, experts[number - 1][name]) for name, value in experts[number].items())
            assert not torch.allclose(start, keys._keys[number - 1], atol=1e-3)
        learner.fit(context, lambda report: None)
        learner.end(context)
    assert not torch.equal(experts[0]["keys.2"], experts[1]["keys.2"])


def test_a_fresh_expert_starts_in_its_own_place() -> None:
    config = {"adapter": {"prefix-per-task": {"start": "fresh"}}, "head": "linear", "router": "keys"}
    learner = Learner(tiny_model(), compose(config), train=SETTINGS)
    for task in digit_tasks()[:2]:
        context = learner.begin(task)
        values = adapter_of(learner)._experts[len(adapter_of(learner)._experts) - 1]["keys.2"].detach()
        assert 0 <= float(values.min()) < float(values.max()) < 0.01
        learner.fit(context, lambda report: None)
        learner.end(context)
    assert not torch.allclose(*(adapter_of(learner)._experts[t]["keys.2"] for t in (0, 1)), atol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_no_prefix_is_the_plain_model_and_a_prefix_of_zeros_is_not(name: str) -> None:
    backbone, inputs = tiny_backbone(name), few_inputs(tiny_backbone(name))
    width = backbone.kv_width(1)
    with torch.no_grad():
        plain = backbone.features(inputs)
        for length, same in ((0, True), (2, False)):
            zeros = (torch.zeros(length, width), torch.zeros(length, width))
            with backbone.prefixes({1: zeros, 2: zeros}):
                assert torch.equal(backbone.features(inputs), plain) is same
                assert torch.allclose(backbone.features(inputs), plain, atol=1e-4) is same


def test_without_prefixes_the_method_is_a_linear_probe_of_the_frozen_model() -> None:
    learner = dual_learner(general_length=0, expert_length=0)
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    assert not any(name.startswith("adapter") for name in context.model.trained())
    assert torch.equal(
        context.passes.module_features(context.task.data, 0), context.passes.base_features(context.task.data)
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_prefixes_leave_the_number_of_tokens_as_it_was_at_every_layer(name: str) -> None:
    backbone, inputs = tiny_backbone(name), few_inputs(tiny_backbone(name))
    lengths: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: Any) -> None:
        lengths.append((output if isinstance(output, Tensor) else output[0]).shape[1])

    for layer in backbone.layers:
        layer.register_forward_hook(note)
    pair = (torch.ones(2, backbone.kv_width(0)), torch.ones(2, backbone.kv_width(0)))
    with torch.no_grad():
        backbone.features(inputs)
        plain, lengths[:] = list(lengths), []
        with backbone.prefixes(
            joined_prefixes({"keys.0": pair[0], "values.0": pair[1]}, {}, {"general": [0], "expert": []})
        ):
            backbone.features(inputs)
        assert lengths == plain
        lengths[:] = []
        backbone.features(inputs, prompts=torch.zeros(2, backbone.parts.prompt_width))
        assert lengths == [length + 2 for length in plain], "prompts at the input, as in L2P, do lengthen it"


@pytest.mark.parametrize("case", CASES)
def test_with_the_task_known_old_answers_change_through_the_general_prefix_and_the_head_alone(case: str) -> None:
    learner = dual_learner(case, HARSH)
    first, second, _ = tasks_of(case)
    learner.learn(first)
    data = learner.test_dataset(first)
    context = learner.reading(data)
    before = context.passes.module_features(data, 0)
    general = {f"adapter.general.{name}": p.detach().clone() for name, p in adapter_of(learner)._general.items()}
    learner.learn(second)
    context = learner.reading(data)
    assert not torch.allclose(context.passes.module_features(data, 0), before, atol=1e-4)
    with context.model.swapped(general):
        assert torch.equal(context.passes.module_features(data, 0), before)


@pytest.mark.parametrize("case", CASES)
def test_without_a_general_prefix_named_tasks_are_answered_as_at_first(case: str) -> None:
    learner = dual_learner(case, kind="task-incremental", general_length=0)
    tasks, kept = tasks_of(case), []
    for index, task in enumerate(tasks):
        learner.learn(task)
        data = learner.test_dataset(task, index)
        kept.append((learner.reading(data).passes.features(data), learner.answers(data, learner.columns(task))))
    for index, task in enumerate(tasks):
        data = learner.test_dataset(task, index)
        features, answers = kept[index]
        assert torch.equal(learner.reading(data).passes.features(data), features)
        assert learner.answers(data, learner.columns(task)).tolist() == answers.tolist()


def test_old_head_rows_rest() -> None:
    learner = dual_learner()
    first, second, _ = digit_tasks()
    learner.learn(first)
    before = learner.state().tensors["head/weight"].clone()
    learner.learn(second)
    assert torch.equal(learner.state().tensors["head/weight"][:2], before)


def test_every_prompt_starts_uniform_up_to_a_hundredth() -> None:
    adapter = PrefixPerTask()
    backbone = tiny_backbone("vit")
    adapter.attach(backbone, 0)
    values = torch.cat([value.detach().flatten() for value in adapter.trained().values()])
    assert len(values) == 2 * 2 * 5 * 32
    assert 0 <= float(values.min()) < 0.001
    assert 0.009 < float(values.max()) < 0.01


def test_weights_per_task_are_two_lengths_of_width_per_layer_and_a_key() -> None:
    learner = dual_learner(expert_length=3, expert_layers=[1, 2])
    learner.learn(digit_tasks()[0])
    one = sum(value.numel() for value in per_task(learner).values())
    assert one == 2 * 2 * 3 * 32 + 32
    learner.learn(digit_tasks()[1])
    assert sum(value.numel() for value in per_task(learner).values()) == 2 * one


def test_the_key_loss_is_minus_the_mean_cosine_of_the_own_key() -> None:
    learner = dual_learner(pull=0.5)
    first, second, _ = digit_tasks()
    learner.learn(first)
    context = learner.begin(second)
    batch = context.passes.batch([(context.task.data, np.arange(6))])
    keys = learner.method.router
    assert isinstance(keys, Keys)
    queries = context.passes.base_features(context.task.data)[:6]
    key = keys._keys[1]
    own = key.detach()
    expected = -0.5 * sum(float(q @ own / q.norm() / own.norm()) for q in queries) / 6
    loss = keys.loss(context, batch)
    assert loss is not None
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert key.grad is not None
    assert keys._keys[0].grad is None


def test_queries_are_of_the_augmented_images_the_step_shows() -> None:
    learner = dual_learner(train={**SETTINGS, "augment": True})
    context = learner.begin(digit_tasks()[0])
    rows = np.arange(5)
    batch = context.passes.batch([(context.task.data, rows)], augment=torch.Generator().manual_seed(1))
    found = frozen_queries(batch)
    with torch.no_grad():
        assert torch.equal(found, context.model.backbone.features(batch.inputs))
    assert not torch.allclose(found, context.passes.base_features(context.task.data)[:5], atol=1e-2)


def test_only_keys_of_tasks_that_were_met_compete() -> None:
    learner = dual_learner()
    tasks = digit_tasks()
    for count, task in enumerate(tasks, start=1):
        learner.learn(task)
        for other in tasks[:count]:
            data = learner.test_dataset(other)
            routes = learner.reading(data).passes.routes(data)
            assert int(routes.max()) < count


@pytest.mark.parametrize("case", CASES)
def test_it_learns_and_the_keys_find_most_tasks(case: str) -> None:
    train = {**SETTINGS, "epochs": 10, "lr": 0.02}
    learner, tasks = dual_learner(case, train), tasks_of(case)
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 0.25
    found = [learner.reading(d).passes.routes(d) == t for t, d in enumerate(map(learner.test_dataset, tasks))]
    assert float(torch.cat(found).float().mean()) > 0.45


def test_tasks_learned_as_one_share_a_module_and_later_ones_do_not_shift_it() -> None:
    learner = dual_learner()
    first, second, third = digit_tasks()
    learner.learn([first, second])
    learner.learn(third)
    adapter = adapter_of(learner)
    assert adapter.modules() == 2
    assert adapter.routes(torch.tensor([2, 0, 1, 5])).tolist() == [1, 0, 0, 1]
    router = learner.method.router
    assert isinstance(router, Keys)
    assert sorted(router._keys) == [0, 1]
    again = dual_learner()
    again.load_state(copied(learner.state()))
    assert adapter_of(again).routes(torch.tensor([2, 0, 1])).tolist() == [1, 0, 0]


def test_where_it_learns_in_the_first_task_only_all_go_through_its_expert() -> None:
    config = {"adapter": "prefix-per-task", "head": "linear", "router": "keys", "adapt": "first-task"}
    learner = Learner(tiny_model(), compose(config), train=SETTINGS)
    learner.learn(digit_tasks()[0])
    before = per_task(learner) | tensors_of(learner, "adapter/general")
    for task in digit_tasks()[1:]:
        learner.learn(task)
    after = per_task(learner) | tensors_of(learner, "adapter/general")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    data = learner.test_dataset(digit_tasks()[2])
    assert learner.reading(data).passes.routes(data).unique().tolist() == [0]


@pytest.mark.parametrize("case", ["digits", "bert", "modernbert"])
def test_it_resumes_exactly_inside_the_second_task(case: str) -> None:
    learner, again = dual_learner(case), dual_learner(case)
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None
    assert learner.base_unchanged()


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="give 0 or more"):
        PrefixPerTask(general_length=-1)


def test_keys_choose_and_lose_as_in_the_released_code() -> None:
    keys, queries = numbers(3, 8, step=7), numbers(4, 8, step=5)
    found, _ = nearest_keys(queries, keys, 1)
    assert found.flatten().tolist() == [0, 1, 0, 0]
    _, cosines = nearest_keys(queries, keys, 3)
    top = [0.207405, 0.773574, 0.240401, 0.548382]
    assert cosines[:, 0].tolist() == pytest.approx(top, abs=1e-5)
    own = torch.nn.functional.cosine_similarity(queries, keys[1:2], dim=1).mean()
    assert float(own) == pytest.approx(-0.0471158, abs=1e-6)


def one_layer(folder: Path) -> Backbone:
    """A transformer of one layer, width 8 and two heads, whose projections are those of the golden run."""
    save_tiny("vit", folder, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    backbone = Backbone.load(ModelConfig(path=str(folder)))
    steps = {"query": 4, "q_proj": 4, "key": 6, "k_proj": 6, "value": 9, "v_proj": 9}
    with torch.no_grad():
        for name, module in backbone.attention[0].named_modules():
            if isinstance(module, nn.Linear):
                step = steps.get(name.rsplit(".", 1)[-1])
                module.weight.copy_(torch.eye(8) if step is None else numbers(8, 8, step=step).T)
                module.bias.zero_()
    return backbone


def test_prefixes_attend_as_in_the_released_code(tmp_path: Path) -> None:
    backbone = one_layer(tmp_path / "model")
    pool, general = numbers(2, 2, 3, 2, 8, step=3), numbers(2, 2, 8, step=13)
    own = {"keys.0": pool[0, 0, 1], "values.0": pool[0, 1, 1]}
    shared = {"keys.0": general[0], "values.0": general[1]}
    pairs = joined_prefixes(shared, own, {"general": [0], "expert": [0]})
    with torch.no_grad(), backbone.prefixes(pairs):
        found = backbone.attention[0](numbers(4, 3, 8, step=11))
    states = found if isinstance(found, Tensor) else found[0]
    first = [0.76307, 1.01687, -1.72787, 1.84777, -0.33652, 0.15727, 0.84208, -0.57485]
    last = [-0.2973, -0.10034, 0.22395, 0.20304, 0.55375, -0.3309, -0.3708, 0.28956]
    assert states[0, 0].tolist() == pytest.approx(first, abs=2e-5)
    assert states[3, 2].tolist() == pytest.approx(last, abs=2e-5)


def test_state_holds_nothing_but_prefixes_and_keys() -> None:
    learner = dual_learner()
    learner.learn(digit_tasks()[0])
    state: State = learner.method.adapter.state()
    assert {name.split("/")[0] for name in state.tensors} == {"general", "experts"}


def test_in_language_every_token_of_an_answer_has_the_feature_of_its_text() -> None:
    method = compose({"adapter": "prefix-per-task", "head": "linear", "router": "keys"})
    learner = Learner(str(tiny_folder("llama-writer")), method, objective="write", train=SETTINGS)
    context = learner.begin(experience("big"))
    batch = context.passes.batch([(context.task.data, np.arange(3))])
    assert batch.queries is not None
    assert len(batch.queries) == 3
    expected = batch.queries.repeat_interleave(torch.bincount(batch.inputs.target_rows()), dim=0)
    assert torch.equal(frozen_queries(batch), expected)
    assert len(expected) == len(batch.labels)
