"""SAPT: the attention mixes blocks as defined, reads questions alone, and is held on what is like old tasks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from language_tasks import conversation, experience, writer
from option_tasks import chosen
from resume_helpers import difference_after_a_stop
from torch import Tensor
from torch.nn import functional
from word_tasks import few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.lora import shared_attention
from contune.adapter.lora.shared_attention import SharedAttention, input_summary, largest, question_mask, sizes_of
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method, compose
from contune.rule.replay import attentive_reflection
from contune.rule.replay.attentive_reflection import AttentiveReflection, attention_distance, summed_up
from contune.rule.replay.pseudo_samples import form_and_writings
from contune.stream.task import Task

TRAIN = {**SETTINGS, "weight_decay": 0.1}
CASES = ("digits", "bert", "llama-writer")
PLANTED = ["Is owl big __ans__ yes", "Is elk huge __ans__ no", "Is yak big", "Is hen big __ans__ maybe"]


def learner_of(case: str = "digits", **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case.endswith("writer") else {}
    if kind and "source" not in options:
        options["source"] = "kept"
    return Learner(model, build_method("sapt", options), train=TRAIN, **kind)  # type: ignore[arg-type]


def tasks_of(case: str) -> list[Task]:
    if case.endswith("writer"):
        return [chosen("big"), chosen("red", "red", "blue"), chosen("hot")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def adapter_of(learner: Learner) -> SharedAttention:
    adapter = learner.method.adapter
    assert isinstance(adapter, SharedAttention)
    return adapter


def rule_of(learner: Learner) -> AttentiveReflection:
    (rule,) = learner.method.rules
    assert isinstance(rule, AttentiveReflection)
    return rule


def third_task(case: str, **options: Any) -> tuple[Learner, Context]:
    learner = learner_of(case, **options)
    for task in tasks_of(case)[:2]:
        learner.learn(task)
    return learner, learner.begin(tasks_of(case)[2])


def first_rows(context: Context, count: int = 4) -> Batch:
    return context.passes.batch([(context.task.data, np.arange(count))])


# ---- the mix


@pytest.mark.parametrize("case", [*CASES, "gpt2-writer", "t5-writer"])
def test_weights_sum_to_one_and_are_the_same_in_every_layer(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, context = third_task(case)
    seen: list[Tensor] = []
    mixed = shared_attention.mixed_blocks

    def watched(states: Tensor, down: Tensor, up: Tensor, weights: Tensor) -> Tensor:
        seen.append(weights.detach())
        return mixed(states, down, up, weights)

    monkeypatch.setattr(shared_attention, "mixed_blocks", watched)
    context.model.forward(first_rows(context))
    assert len(seen) >= context.model.backbone.depth
    assert all(torch.equal(weights, seen[0]) for weights in seen)
    assert seen[0].shape == (4, 3)
    torch.testing.assert_close(seen[0].sum(dim=1), torch.ones(4))
    assert float(seen[0].std(dim=1).min()) > 0
    assert not torch.equal(seen[0][0], seen[0][1])
    assert adapter_of(learner).blocks == 3


@pytest.mark.parametrize("case", [*CASES, "gpt2-writer", "bart-writer"])
@pytest.mark.parametrize("block", [0, 1])
def test_with_all_weight_on_one_block_the_model_is_the_base_and_that_block(case: str, block: int) -> None:
    learner, context = third_task(case, rank=2, alpha=6.0)
    adapter, backbone, batch = adapter_of(learner), context.model.backbone, first_rows(context)
    one_hot = torch.zeros(4, 3)
    one_hot[:, block] = 1.0
    with torch.no_grad():
        plain = backbone.features(batch.inputs)
        with adapter.mixed(one_hot):
            found = backbone.features(batch.inputs)
        for name, module in adapter._places.items():
            down = adapter._joined(f"A.{name}")[2 * block : 2 * block + 2]
            up = adapter._joined(f"B.{name}")[:, 2 * block : 2 * block + 2]
            change = 3.0 * up @ down
            module.weight.data += change if sizes_of(module) == tuple(reversed(module.weight.shape)) else change.T  # type: ignore[operator]
        merged = backbone.features(batch.inputs)
    torch.testing.assert_close(found, merged, atol=2e-4, rtol=1e-3)
    assert float((found - plain).abs().max()) > 1e-3


def test_every_row_has_its_own_mix() -> None:
    states, down, up = torch.randn(3, 5, 4), torch.randn(4, 4), torch.randn(6, 4)
    weights = torch.rand(3, 2)
    together = shared_attention.mixed_blocks(states, down, up, weights)
    for row in range(3):
        blocks = [
            weights[row, at] * states[row] @ down[2 * at : 2 * at + 2].T @ up[:, 2 * at : 2 * at + 2].T for at in (0, 1)
        ]
        torch.testing.assert_close(together[row], blocks[0] + blocks[1], atol=1e-5, rtol=1e-5)
        alone = shared_attention.mixed_blocks(states[row : row + 1], down, up, weights[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-6)


def test_weights_by_hand() -> None:
    learner, context = third_task("digits", temperature=2.0, hidden=5)
    adapter = adapter_of(learner)
    summary = input_summary(context.model.backbone, first_rows(context).inputs)
    network = adapter._query
    hidden = functional.silu(summary @ network["down"].T @ network["up"].T)
    centred = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    query = centred * network["scale"] + network["shift"]
    scores = query @ adapter.keys.T / (2.0 * 32**0.5)
    torch.testing.assert_close(adapter.weights(summary), scores.exp() / scores.exp().sum(1, keepdim=True))


def test_states_whose_rows_cannot_be_told_are_refused() -> None:
    module = torch.nn.Linear(4, 4)
    blocks = torch.zeros(1, 4), torch.zeros(4, 1), torch.ones(2, 1)
    with shared_attention.branched(module, *blocks), pytest.raises(CombinationError, match="which row"):
        module(torch.zeros(6, 4))


# ---- what the attention reads


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "vit", "clip-vision"])
def test_an_input_is_summed_up_alike_alone_and_in_company(name: str) -> None:
    backbone = tiny_backbone(name)
    inputs = few_inputs(backbone)
    together = input_summary(backbone, inputs)
    assert together.shape == (3, backbone.parts.prompt_width)
    if backbone.modality == "image":
        return
    assert inputs.mask is not None
    for row in range(3):
        length = int(inputs.mask[row].sum())
        alone = replace(inputs.take(torch.tensor([row])), ids=inputs.ids[row : row + 1, :length], mask=None)  # type: ignore[index]
        alone = replace(alone, mask=torch.ones(1, length, dtype=torch.bool))
        assert torch.equal(input_summary(backbone, alone)[0], together[row])


def test_padding_would_be_noticed() -> None:
    """The released code's fault: with padding counted, the shortest text is summed up otherwise."""
    backbone = tiny_backbone("bert")
    backbone.model.get_input_embeddings().weight.data[0] = 9.0  # type: ignore[operator,union-attr,index]
    inputs = few_inputs(backbone)
    words = backbone.model.get_input_embeddings()(inputs.ids)  # type: ignore[operator]
    assert inputs.mask is not None
    assert not torch.equal(largest(words, None)[0], largest(words, inputs.mask)[0])
    assert float(input_summary(backbone, inputs).max()) < 9.0


@pytest.mark.parametrize("name", ["llama-writer", "gpt2-writer", "t5-writer", "bart-writer"])
def test_the_answer_is_not_read(name: str) -> None:
    backbone = writer(name)
    conversations = [conversation("hello there", "zzzz"), conversation("a", "a much longer answer")]
    part = [(backbone.prepare(conversations), np.arange(2))]
    learned, asked, answering = (
        backbone.collate(part),
        backbone.prompts_only(part),
        backbone.prompts_only(part, max_new_tokens=4),
    )
    summaries = [input_summary(backbone, inputs) for inputs in (learned, asked, answering)]
    assert torch.equal(summaries[0], summaries[1])
    assert torch.equal(summaries[0], summaries[2])
    assert int(question_mask(learned).sum()) == int(asked.mask.sum())  # type: ignore[union-attr]


def test_positions_of_an_image_count_without_its_class_token() -> None:
    backbone = tiny_backbone("vit")
    inputs = few_inputs(backbone)
    entering = backbone.hidden(inputs, 0)
    assert backbone.parts.leading == 1
    assert torch.equal(input_summary(backbone, inputs), entering[:, 1:].amax(dim=1))


# ---- what is trained


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_one_block_is_a_plain_lora_and_alone_is_trained(case: str) -> None:
    learner = learner_of(case)
    context = learner.begin(tasks_of(case)[0])
    adapted = {name for name in context.model.trained() if name.startswith("adapter.")}
    assert {name.split(".")[2] for name in adapted} == {"A", "B"}
    assert {name.split(".")[1] for name in adapted} == {"task0"}
    batch = first_rows(context)
    weights = adapter_of(learner).weights(input_summary(context.model.backbone, batch.inputs))
    assert torch.equal(weights, torch.ones(4, 1))
    with torch.no_grad():
        assert torch.equal(
            context.model.backbone.features(batch.inputs), context.model.encode(batch)[0]
        )  # B starts at zero


@pytest.mark.parametrize("case", CASES)
def test_old_blocks_and_keys_keep_every_bit(case: str) -> None:
    learner, context = third_task(case)
    adapter = adapter_of(learner)
    old = {name: value.clone() for name, value in adapter._past.items()}
    new = {name: value.detach().clone() for name, value in context.model.trained().items()}
    assert old["key"].shape == (2, 32)
    learner.fit(context, lambda report: None)
    learner.end(context)
    assert all(torch.equal(value, adapter._past[name]) for name, value in old.items())
    assert not any(value.requires_grad for value in adapter._past.values())
    still = [name for name, value in context.model.trained().items() if torch.equal(value, new[name])]
    assert still == []
    assert learner.base_unchanged()


# ---- attentive reflection


@pytest.mark.parametrize("case", CASES)
def test_the_mean_attention_of_a_task_is_kept(case: str) -> None:
    learner = learner_of(case, size=3)
    rule, adapter = rule_of(learner), adapter_of(learner)
    for number, task in enumerate(tasks_of(case)):
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        with torch.no_grad():
            rows = [
                adapter.weights(input_summary(context.model.backbone, batch.inputs))
                for batch in context.passes.batches(context.task.data, 1)
            ]
        learner.end(context)
        torch.testing.assert_close(rule._attention[number], torch.cat(rows).mean(dim=0))
        assert rule._attention[number].shape == (number + 1,)
        assert rule._summaries[number].shape == (min(3, len(context.task.data)), 32)
        kept = {tuple(row) for row in rule._summaries[number].tolist()}
        assert kept <= {tuple(row) for row in summed_up(context).tolist()}


def test_distance_is_none_where_the_attention_is_what_it_was() -> None:
    stored = torch.tensor([0.2, 0.8])
    assert attention_distance(stored, stored.expand(3, -1)).item() == pytest.approx(0, abs=1e-7)
    assert attention_distance(stored, torch.tensor([[0.2, 0.7, 0.1]])).item() == pytest.approx(
        0.8 * np.log(8 / 7), rel=1e-5
    )
    with_zero = attention_distance(torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 1.0]]))
    assert with_zero.item() == 0


@pytest.mark.parametrize("case", CASES)
def test_the_term_is_as_defined_and_reaches_the_new_key_and_the_query_network_alone(case: str) -> None:
    learner, context = third_task(case, weight=0.7)
    rule, adapter = rule_of(learner), adapter_of(learner)
    term = rule.penalty(context)
    assert term is not None
    expected = 0.0
    for stored, summary in zip(rule._attention, rule._summaries, strict=True):
        weights = adapter.weights(summary)
        padded = torch.cat([stored, torch.zeros(3 - len(stored))])
        each = functional.kl_div(weights.log(), padded.expand(len(summary), -1), reduction="batchmean")
        expected += 0.7 * each.item()
    assert term.item() == pytest.approx(expected, rel=1e-4)
    trained = context.model.trained()
    gradients = torch.autograd.grad(term, list(trained.values()), allow_unused=True)
    reached = {name for (name, _), gradient in zip(trained.items(), gradients, strict=True) if gradient is not None}
    query = {f"adapter.query.{name}" for name in shared_attention.QUERY}
    assert reached == {"adapter.task2.key", *query}


def test_in_the_first_task_nothing_is_held() -> None:
    learner = learner_of()
    assert rule_of(learner).penalty(learner.begin(digit_tasks()[0])) is None


def drift(weight: float) -> float:
    """How far the attention on the first task's inputs is, two tasks later, from what it was."""
    learner = learner_of(weight=1e-9)
    rule = rule_of(learner)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    stored, summary = rule._attention[1], rule._summaries[1]
    rule.weight = weight
    learner.learn(digit_tasks()[2])
    with torch.no_grad():
        return float(attention_distance(stored, adapter_of(learner).weights(summary)))


def test_reflection_holds_the_attention() -> None:
    assert drift(20.0) < 0.5 * drift(1e-9)


# ---- where its inputs come from


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentive_reflection, "written_samples", lambda *args: PLANTED)


def test_what_is_generated_is_sifted_and_summed_up(planted: None) -> None:
    learner = learner_of("llama-writer", source="auto")
    rule, backbone = rule_of(learner), learner.backbone
    learner.learn(chosen("big"))
    assert rule.counts == {"0 big": {"kept": 2, "bad separator": 1, "bad answer": 1, "surplus": 0, "written": 4}}
    asked = [(backbone.prepare([conversation("Is owl big", ""), conversation("Is elk huge", "")]), np.arange(2))]
    assert torch.equal(rule._summaries[0], input_summary(backbone, backbone.prompts_only(asked)))
    said = str(learner.state().values)
    assert "Is sun" not in said
    assert "Is owl" not in said


def test_the_generator_learns_to_write_and_is_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, plain = (learner_of("llama-writer", source=source) for source in ("generated", "kept"))
    losses: list[float] = []

    def reading(context: Context, *args: Any) -> list[str]:
        _, dataset = form_and_writings(context)
        assert dataset is not None
        batch = context.passes.batch([(dataset, np.arange(len(dataset)))])
        with torch.no_grad():
            losses.append(functional.cross_entropy(context.model.forward(batch).logits, batch.labels).item())
        return []

    monkeypatch.setattr(attentive_reflection, "written_samples", reading)
    for each in (learner, plain):
        each.learn(chosen("big"))
    assert same_state(learner.state().inner("adapter"), plain.state().inner("adapter")) is None
    reading(learner.reading(None).with_data(learner.context([chosen("big")], 0).task.data))
    generator, solver = losses
    assert generator < solver - 0.1


def test_without_a_valid_text_learning_goes_on_and_says_so() -> None:
    learner = learner_of("llama-writer", source="auto", attempts=4)
    for task in (experience("big"), experience("red", "red", "blue")):
        learner.learn(task)
    rule = rule_of(learner)
    assert [counts["kept"] for counts in rule.counts.values()] == [0, 0]
    assert [counts["written"] for counts in rule.counts.values()] == [4, 4]
    assert rule.penalty(learner.begin(experience("hot"))) is None


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="source generated"):
        learner_of(source="generated").begin(digit_tasks()[0])
    with pytest.raises(CombinationError, match="shared-attention"):
        compose({"adapter": "lora", "rules": ["attentive-reflection"]})
    for options in ({"rank": 0}, {"temperature": 0.0}, {"weight": -1.0}, {"size": -1}, {"top": 0}):
        with pytest.raises(ConfigError):
            build_method("sapt", options)


# ---- resume_helpers


@pytest.mark.parametrize("case", [*CASES, "t5-writer"])
def test_it_resumes_exactly_in_the_middle_of_a_task(case: str, planted: None) -> None:
    source = {"source": "auto"}
    learner, again = learner_of(case, **source), learner_of(case, **source)
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None
