"""LAE: what the card says must hold, and the released code's numbers for its LoRA and its two votes.

The golden numbers are from gqk/LAE at 1680e496b7: `KVLoRA` (libml/model/pet/lora.py) and `MyModule.eval_epoch`
(main.py), run once on the tensors that `numbers` makes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor, nn
from torch.nn import functional
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.around.ema import EmaAdapter, ema_adapter
from contune.adapter.lora.calibrated import CalibratedLora
from contune.checks.run import SETTINGS, accuracy, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.rule.mask.freeze_first import FreezeFirst
from contune.stream.task import Task

FIVE = {**SETTINGS, "epochs": 5}
CASES = ["digits", "bert"]


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def lae_learner(case: str = "digits", train: dict[str, Any] = FIVE, kind: Any = None, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else tiny_folder(case)
    method = build_method("lae", {"decay": 0.9, **options})
    return Learner(model, method, train=train, kind=kind or "class-incremental")


def adapter_of(learner: Learner) -> EmaAdapter:
    adapter = learner.method.adapter
    assert isinstance(adapter, EmaAdapter)
    return adapter


def online(learner: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in adapter_of(learner).trained().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def numbers(*shape: int, step: int) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * step % 23 - 11) / 10).reshape(shape)


def answers_with(context: Context, features: Tensor) -> Tensor:
    """Log softmax over all seen classes of one module's features."""
    head = context.model.head.trained()
    return functional.linear(features, head["weight"], head["bias"]).log_softmax(dim=1).detach()


@pytest.mark.parametrize("case", CASES)
def test_in_the_first_task_the_online_adapter_answers_alone(case: str) -> None:
    learner, first = lae_learner(case), tasks_of(case)[0]
    learner.learn(first)
    data = learner.test_dataset(first)
    context = learner.reading(data)
    assert adapter_of(learner).modules() == 1
    alone = answers_with(context, context.passes.module_features(data, 0)).argmax(dim=1)
    assert learner.answers(data).tolist() == alone.tolist()


@pytest.mark.parametrize("case", CASES)
def test_when_the_second_task_begins_the_two_are_one(case: str) -> None:
    learner = lae_learner(case)
    first, second, _ = tasks_of(case)
    learner.learn(first)
    context = learner.begin(second)
    assert adapter_of(learner).modules() == 2
    assert equal(dict(adapter_of(learner).offline()), online(learner))
    data = learner.test_dataset(first)
    each = [context.passes.module_features(data, module) for module in (0, 1)]
    assert torch.equal(each[0], each[1])
    assert torch.allclose(context.passes.logits(data), answers_with(context, each[0]), atol=1e-6)
    learner.fit(context, lambda report: None)
    assert not torch.allclose(
        context.passes.module_features(data, 0), context.passes.module_features(data, 1), atol=1e-4
    )


@pytest.mark.parametrize("case", CASES)
def test_the_offline_copy_draws_near_geometrically_while_the_online_one_rests(case: str) -> None:
    learner = lae_learner(case, rest=1.0)
    first, second, _ = tasks_of(case)
    learner.learn(first)
    context = learner.begin(second)
    moved = {f"adapter.{name}": value + 1.0 for name, value in online(learner).items()}
    context.model.write(moved)
    still, errors = online(learner), []

    def note(_report: Any) -> None:
        offline = adapter_of(learner).offline()
        errors.append(max(float((offline[name] - value).abs().max()) for name, value in still.items()))

    learner.fit(context, note)
    assert equal(still, online(learner))
    assert errors == pytest.approx([0.9**n for n in range(1, len(errors) + 1)], abs=1e-5)


def test_the_offline_copy_follows_every_step_and_is_taken_once() -> None:
    learner = lae_learner(rest=0.0)
    first, second, third = digit_tasks()
    learner.learn(first)
    expected, apart = online(learner), []

    def follow(_report: Any) -> None:
        for name, value in online(learner).items():
            expected[name] = 0.9 * expected[name] + 0.1 * value
        found = adapter_of(learner).offline()
        apart.append(max(float((found[name] - value).abs().max()) for name, value in expected.items()))

    for task in (second, third):
        context = learner.begin(task)
        learner.fit(context, follow)
        learner.end(context)
        assert max(apart) < 1e-6
        assert not equal(dict(adapter_of(learner).offline()), online(learner))


@pytest.mark.parametrize(("decay", "same_as"), [(0.0, "online"), (1.0, "first task")])
def test_the_ends_of_the_decay(decay: float, same_as: str) -> None:
    learner = lae_learner(decay=decay, rest=0.0)
    first, second, _ = digit_tasks()
    learner.learn(first)
    before = online(learner)
    learner.learn(second)
    wanted = online(learner) if same_as == "online" else before
    assert equal(dict(adapter_of(learner).offline()), wanted)


def resting_bits(learner: Learner, tasks: list[Task]) -> dict[int, list[int]]:
    """For every task, the epochs in which an adapter tensor has moved."""
    found: dict[int, list[int]] = {}
    for number, task in enumerate(tasks):
        context, moved, last = learner.begin(task), set(), online(learner)

        def note(report: Any, moved: set[int] = moved, last: dict[str, Tensor] = last) -> None:
            now = online(learner)
            if not equal(now, last):
                moved.add(report.epoch)
            last.update(now)

        learner.fit(context, note)
        learner.end(context)
        found[number] = sorted(moved)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_adapter_keeps_every_bit_in_the_first_epochs_of_later_tasks(case: str, optimizer: str) -> None:
    train = {**FIVE, "optimizer": optimizer, "weight_decay": 0.1}
    learner = lae_learner(case, train)
    assert resting_bits(learner, tasks_of(case)) == {0: [0, 1, 2, 3, 4], 1: [3, 4], 2: [3, 4]}


def test_without_the_rest_it_moves_at_once() -> None:
    learner = Learner(tiny_model(), Method(ema_adapter(), Linear(loss_over="own-task")), train=FIVE)
    assert resting_bits(learner, list(digit_tasks()[:2])) == {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("rest", [0.0, 0.6])
def test_old_head_rows_rest(rest: float) -> None:
    learner = lae_learner(rest=rest)
    first, second, _ = digit_tasks()
    learner.learn(first)
    old = learner.state().tensors["head/weight"].clone()
    context = learner.begin(second)
    new = learner.state().tensors["head/weight"][2:].clone()
    learner.fit(context, lambda report: None)
    after = learner.state().tensors["head/weight"]
    assert torch.equal(after[:2], old)
    assert bool(((after[2:] - new).abs().amax(dim=1) > 0).all())


def test_how_long_it_rests() -> None:
    learner = Learner(tiny_model(), build_method("lae", {}), train={**FIVE, "epochs": 4})
    assert resting_bits(learner, list(digit_tasks()[:2]))[1] == [2, 3]
    fixed = Method(ema_adapter(), Linear(), (FreezeFirst(epochs=9),))
    assert resting_bits(Learner(tiny_model(), fixed, train=FIVE), list(digit_tasks()[:2]))[1] == []
    for wrong in ({"share": 1.5}, {"epochs": -1}):
        with pytest.raises(ConfigError, match="give"):
            FreezeFirst(**wrong)  # type: ignore[arg-type]


def test_the_answer_is_the_larger_softmax_of_the_two_over_all_classes() -> None:
    learner, tasks = lae_learner(), digit_tasks()
    for task in tasks:
        learner.learn(task)
    data = learner.test_dataset(tasks[1])
    context = learner.reading(data)
    each = [answers_with(context, context.passes.module_features(data, module)).exp() for module in (0, 1)]
    best = [[max(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(*(e.tolist() for e in each), strict=True)]
    assert learner.answers(data).tolist() == torch.tensor(best).argmax(dim=1).tolist()
    assert not torch.allclose(each[0], each[1], atol=1e-3)


def test_the_two_votes_join_as_in_the_released_code() -> None:
    learner = Learner(tiny_model(), build_method("lae", {}), train=FIVE)
    learner.begin(digit_tasks()[0])
    head = learner.method.head
    assert isinstance(head, Linear)
    head._set(torch.eye(5), torch.zeros(5), torch.device("cpu"))
    both = torch.cat([numbers(4, 5, step=4) * 3, numbers(4, 5, step=10) * 3], dim=1)
    expected = [
        [0.005765, 0.033661, 0.676097, 0.210999, 0.700542],
        [0.851938, 0.103705, 0.009464, 0.042163, 0.84687],
        [0.222689, 0.739354, 0.013632, 0.273816, 0.02727],
        [0.064505, 0.673479, 0.711052, 0.273816, 0.007899],
    ]
    found = head.logits(both).exp()
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    assert found.argmax(dim=1).tolist() == [4, 0, 1, 2]


def key_and_value(learner_model: nn.Module) -> list[nn.Module]:
    """The wrapped key and value projections of the first layer."""
    wrapped = {name: m for name, m in learner_model.named_modules() if hasattr(m, "lora_A")}
    assert len(wrapped) == 2
    return [m for _, m in sorted(wrapped.items())]


def test_updates_of_keys_and_values_are_those_of_the_released_code() -> None:
    backbone = tiny_backbone("vit")
    adapter = CalibratedLora(rank=2, layers=[0])
    adapter.attach(backbone, 0)
    base, inputs = numbers(96, 32, step=7) / 10, numbers(2, 32, step=9)
    golden = (
        (1.0, 4.744505, [3.5755, 1.5945, -0.9615]),
        (2.0, 5.621005, [-6.46, 0.006, 5.46]),
    )
    scales = list(adapter._scales.values())
    for i, (module, (_, total, start)) in enumerate(zip(key_and_value(backbone.model), golden, strict=True)):
        with torch.no_grad():
            module.get_base_layer().weight.copy_(base[32 * (i + 1) : 32 * (i + 2)])
            module.get_base_layer().bias.zero_()
            module.lora_A["default"].weight.copy_(numbers(2, 32, step=5 + i))
            module.lora_B["default"].weight.copy_(numbers(32, 2, step=3 + i))
            scales[i].fill_((0.5, 2.0)[i])
            found = module(inputs)
        assert float(found.double().sum()) == pytest.approx(total, abs=1e-3)
        assert found[1, :3].tolist() == pytest.approx(start, abs=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_adapter_starts_as_the_base_and_merges(name: str) -> None:
    backbone, untouched = tiny_backbone(name), tiny_backbone(name)
    inputs, adapter = few_inputs(untouched), CalibratedLora(rank=2)
    adapter.attach(backbone, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert torch.equal(backbone.features(inputs), untouched.features(inputs))
        scale = {key.removesuffix(".scale"): value for key, value in adapter._scales.items()}
        layers = {n: m for n, m in backbone.model.named_modules() if hasattr(m, "lora_A")}
        assert len(layers) == len(scale) == len({id(value) for value in scale.values()})
        for key, layer in layers.items():
            scale[key].fill_(0.5 + 0.25 * len(key) % 1.5)
            up = layer.lora_B["default"].weight
            up.copy_(torch.randn(up.shape, generator=generator) * 0.1)
        beside = backbone.features(inputs)
        assert not torch.allclose(beside, untouched.features(inputs), atol=1e-3)
        for key, layer in layers.items():
            up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            layer.get_base_layer().weight.add_(scale[key] * up @ down)
            up.zero_()
        assert torch.allclose(backbone.features(inputs), beside, atol=1e-5)


def test_weights_are_rank_times_both_widths_and_a_factor_per_matrix() -> None:
    backbone = tiny_backbone("vit")
    adapter = CalibratedLora(rank=5, layers=[0, 2])
    adapter.attach(backbone, 0)
    assert sum(value.numel() for value in adapter.trained().values()) == 2 * 2 * (5 * 64 + 1)
    assert adapter.lowest_layer(backbone) == 0
    names = "".join(adapter.trained())
    assert "query" not in names
    assert "q_proj" not in names


def test_an_exported_adapter_is_the_online_one_with_its_factors_inside(tmp_path: Path) -> None:
    from peft import PeftModel

    learner = lae_learner()
    for task in digit_tasks()[:2]:
        learner.learn(task)
    data = learner.test_dataset(digit_tasks()[0])
    wanted = learner.reading(data).passes.module_features(data, 0)
    before = online(learner)
    assert adapter_of(learner).export(tmp_path)
    assert equal(before, online(learner))
    fresh = Learner(tiny_model(), "linear-probe")
    with torch.no_grad():
        plain = fresh.backbone.features(fresh.backbone.collate([(data.prepared, torch.arange(len(data)).numpy())]))
        PeftModel.from_pretrained(fresh.backbone.model, str(tmp_path))
        found = fresh.backbone.features(fresh.backbone.collate([(data.prepared, torch.arange(len(data)).numpy())]))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-3)


def test_where_the_task_is_named_the_online_adapter_answers() -> None:
    learner, tasks = lae_learner(kind="task-incremental"), digit_tasks()
    for task in tasks[:2]:
        learner.learn(task)
    data = learner.test_dataset(tasks[0], 0)
    context = learner.reading(data)
    assert torch.equal(context.passes.features(data), context.passes.module_features(data, 0))


@pytest.mark.parametrize("adapter", ["prefix", "bottleneck", {"lora": {"rank": 2}}, "prompt-pool"])
def test_any_adapter_that_lasts_is_accumulated(adapter: Any) -> None:
    learner, tasks = lae_learner(adapter=adapter, train={**FIVE, "epochs": 2}), digit_tasks()
    for task in tasks[:2]:
        learner.learn(task)
    data = learner.test_dataset(tasks[0])
    context = learner.reading(data)
    now, slow = (context.passes.module_features(data, module) for module in (0, 1))
    assert not torch.allclose(now, slow, atol=1e-5)
    learner.learn(tasks[2])
    assert learner.base_unchanged()


@pytest.mark.parametrize("adapter", ["none", "lora-per-task", "prefix-per-task"])
def test_an_adapter_that_starts_anew_is_refused(adapter: str) -> None:
    with pytest.raises(CombinationError, match="running mean of tensors that live through all tasks"):
        compose({"adapter": {"ema-adapter": {"adapter": adapter}}})


def test_a_decay_that_is_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="give a number from 0 to 1"):
        ema_adapter(decay=1.5)


@pytest.mark.parametrize("case", ["digits", "bert", "modernbert"])
def test_it_resumes_exactly_inside_the_second_task(case: str) -> None:
    learner, again = lae_learner(case), lae_learner(case)
    assert difference_after_a_stop(learner, again, tasks_of(case), step=4) is None
    assert learner.base_unchanged()


@pytest.mark.parametrize("case", CASES)
def test_it_learns(case: str) -> None:
    learner, tasks = lae_learner(case, {**FIVE, "epochs": 8, "lr": 0.02, "batch_size": 8}), tasks_of(case)
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 1 / 6 + 0.1
