"""LFPT5: what is written is sifted, replayed and distilled as defined, and drawing depends on a row's own seed alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from language_tasks import TRAIN, WRITER, conversation, writer
from option_tasks import chosen
from resume_helpers import go_on, learn_keeping
from tiny_models import WRITERS
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder

from contune.backbone.reader.inputs import ModelInputs
from contune.backbone.reader.sampling import Draws, Sampling
from contune.checks.run import same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Rows
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method, compose
from contune.numerics.divergences import softmax_divergence
from contune.rule.replay import pseudo_replay
from contune.rule.replay.pseudo_replay import SAMPLES, WRITING, PseudoReplay, dealt_share
from contune.rule.replay.pseudo_samples import (
    SEPARATOR,
    TaskForm,
    as_writing,
    filtered,
    form_of,
    read_back,
    written_samples,
)
from contune.stream.conversation import Conversation, Message, language_examples
from contune.stream.task import Task

FORM = TaskForm("big", 0, 24, ("yes", "no"))
PLANTED = [
    "Is owl big __ans__ yes",
    "Is elk big __ans__ no",
    "Is yak big",
    "Is fox big __ans__  ",
    "Is hen big __ans__ yes",
]


def learner_of(model: str = "llama-writer", **options: Any) -> Learner:
    made = {"length": 4, "attempts": 8, **options}
    return Learner(str(tiny_folder(model)), build_method("lfpt5", made), objective="write", train=TRAIN)


def rule_of(learner: Learner) -> PseudoReplay:
    (rule,) = learner.method.rules
    assert isinstance(rule, PseudoReplay)
    return rule


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_replay, "written_samples", lambda *args: PLANTED)


def second_task(model: str = "llama-writer", **options: Any) -> tuple[Learner, Context]:
    learner = learner_of(model, **options)
    learner.learn(chosen("big"))
    return learner, learner.begin(chosen("red", "red", "blue"))


def batch_of(context: Context, rule: PseudoReplay, own: Rows) -> Batch:
    """A batch as a step has it, with all rows that the rule adds in its first step."""
    selections = rule.select(context, 0, 0)
    parts: list[tuple[Dataset, Rows]] = [(context.task.data, own), *((s.dataset, s.rows) for s in selections.values())]
    counts = [dataset.prepared.units(rows) for dataset, rows in parts]
    ends = np.cumsum([0, *counts]).tolist()
    names = ["task", *selections]
    segments = {name: slice(ends[at], ends[at + 1]) for at, name in enumerate(names)}
    return context.passes.batch(parts, segments=segments, counts=dict(zip(names, counts, strict=True)))


# ---- what is written, sifted


def test_only_one_separator_and_a_valid_answer_are_kept() -> None:
    found, reasons = filtered(PLANTED, FORM, 9, 9)
    assert [(one.prompt, one.answer) for one in found] == [
        ("Is owl big", "yes"),
        ("Is elk big", "no"),
        ("Is hen big", "yes"),
    ]
    assert reasons == {"kept": 3, "bad separator": 1, "bad answer": 1, "surplus": 0}
    assert all(one.options == ("yes", "no") for one in found)
    two = f"a {SEPARATOR} yes {SEPARATOR} yes"
    assert read_back(two, FORM)[1] == "bad separator"
    assert read_back(f"{SEPARATOR} yes", FORM)[1] == "bad separator"
    assert read_back("a __ans__ maybe", FORM)[1] == "bad answer"
    assert read_back("a __ans__ maybe", replace(FORM, options=()))[1] == "kept"
    assert read_back("a __ans__", replace(FORM, options=()))[1] == "bad answer"


@pytest.mark.parametrize("per_option", [0, 1, 2, 4])
def test_no_option_has_more_than_its_number(per_option: int) -> None:
    texts = [f"{at} __ans__ {'yes' if at % 3 else 'no'}" for at in range(30)]
    found, reasons = filtered(texts, FORM, 1, per_option)
    for option in FORM.options:
        assert sum(one.answer == option for one in found) == per_option
    assert reasons["kept"] + reasons["surplus"] == 30
    free, _ = filtered(texts, replace(FORM, options=()), 5, 1)
    assert len(free) == 5


@pytest.mark.parametrize("one", [conversation("a b", "c"), Conversation((), ("a text",), (), "tokens", ends=False)])
def test_an_example_turned_round_and_back_is_itself(one: Conversation) -> None:
    form = form_of("t", 0, 9, [one])
    back, _ = read_back(as_writing("t", one).answer, form)
    assert back == one
    assert form.documents == (not one.messages)


def test_what_does_not_fit_or_holds_the_separator_is_not_written() -> None:
    backbone = writer()
    short, long, odd = conversation("a", "b"), conversation("x" * 112, "b"), conversation(f"a {SEPARATOR}", "b")
    found = pseudo_replay.writings("big", [short, long, odd], backbone)
    assert found == [as_writing("big", short)]


def test_every_row_comes_once_an_epoch() -> None:
    for count, steps in ((7, 3), (2, 5), (0, 2)):
        rows = [dealt_share(count, step, steps, np.random.default_rng(3)) for step in range(steps)]
        assert sorted(np.concatenate(rows).tolist()) == list(range(count))


# ---- drawing


def drawn(scores: Tensor, top: int, seeds: range) -> Tensor:
    draw = Draws(Sampling(tuple(seeds), top), 0)
    return draw(torch.zeros(len(seeds), 0, dtype=torch.long), scores.expand(len(seeds), -1)).argmax(dim=1)


def test_tokens_are_drawn_by_their_probability_among_the_best() -> None:
    scores = torch.tensor([[0.5, 2.0, -1.0, 1.0]])
    shares = torch.bincount(drawn(scores, 3, range(4000)), minlength=4) / 4000
    expected = torch.tensor([[0.5, 2.0, -torch.inf, 1.0]]).softmax(dim=1)[0]
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    assert shares[2] == 0
    assert drawn(scores, 1, range(20)).tolist() == [1] * 20


def room_of(name: str, texts: list[str], sampling: Sampling | None, rows: list[int]) -> list[list[int]]:
    backbone = writer(name)
    inputs = backbone.prompts_only([(backbone.prepare(texts), np.array(rows))], max_new_tokens=6)
    found: list[list[int]] = backbone.features(replace(inputs, sampling=sampling)).tolist()
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_is_drawn_alike_alone_and_in_company(name: str) -> None:
    texts, seeds = ["a", "a much longer prompt than the other", "mid size"], (5, 6, 7)
    state = torch.random.get_rng_state()
    together = room_of(name, texts, Sampling(seeds, 64, 2.5), [0, 1, 2])
    for at in range(3):
        assert room_of(name, texts, Sampling(seeds[at : at + 1], 64, 2.5), [at]) == together[at : at + 1]
    assert room_of(name, texts, Sampling((8, 9, 10), 64, 2.5), [0, 1, 2]) != together
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", WRITERS)
def test_the_best_one_alone_is_what_is_written_without_drawing(name: str) -> None:
    texts = ["a", "hello there"]
    assert room_of(name, texts, Sampling((0, 1), 1), [0, 1]) == room_of(name, texts, None, [0, 1])


def test_rows_of_a_batch_keep_their_seeds() -> None:
    inputs = ModelInputs(3, ids=torch.zeros(3, 1), sampling=Sampling((4, 5, 6), 2))
    taken = inputs.take(torch.tensor([2, 0])).sampling
    assert taken is not None
    assert taken.seeds == (6, 4)


def test_the_prompt_is_not_the_rows_own_writing() -> None:
    """Only what was written counts as repeated."""
    draw = Draws(Sampling((0,), 1, 2.5), 2)
    assert draw(torch.tensor([[1, 1]]), torch.tensor([[0.5, 1.0]])).argmax() == 1
    assert draw(torch.tensor([[1, 1, 1]]), torch.tensor([[0.5, 1.0]])).argmax() == 0


# ---- the loss


def test_the_loss_is_as_defined(planted: None) -> None:
    learner, context = second_task(writing=0.5, distillation=0.2)
    rule = rule_of(learner)
    with torch.no_grad():
        for value in context.model.trained().values():
            value.add_(0.3)
    batch = batch_of(context, rule, np.arange(3))
    outputs = context.model.forward(batch)
    rows = functional.cross_entropy(outputs.logits, batch.labels, reduction="none")
    own, old, turned = (rows[batch.segments[name]] for name in ("task", SAMPLES, WRITING))
    solve, write = torch.cat([own, old]).mean(), turned.mean()
    assert rule._solving is not None
    with torch.no_grad():
        again = context.passes.batch([(rule._solving, batch.parts[1][1])])
        now = context.model.forward(again).logits
        with context.model.swapped(rule._teacher):
            before = context.model.forward(again).logits
    distance = softmax_divergence(now, before, 1.0).sum() / len(batch.parts[1][1])
    assert distance > 0.01
    weight = rule.select(context, 0, 0)[WRITING].weight
    found = rule.loss(context, batch, outputs)
    assert weight == pytest.approx(0.8 * 0.5)
    assert found is not None
    loops_own = solve + weight * write
    expected = 0.8 * (solve + 0.5 * write) + 0.2 * distance
    assert (loops_own + found).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("model", ["llama-writer", "t5-writer"])
def test_before_the_first_step_teacher_and_student_agree(planted: None, model: str) -> None:
    learner, context = second_task(model, distillation=0.5)
    rule = rule_of(learner)
    batch = batch_of(context, rule, np.arange(2))
    distance = rule._distance(context, batch, context.model.forward(batch))
    assert distance is not None
    assert abs(distance.item()) < 1e-4
    assert not any(value.requires_grad for value in rule._teacher.values())


def test_the_distance_is_on_written_examples_of_old_tasks_alone(planted: None) -> None:
    learner, context = second_task(distillation=0.5)
    rule = rule_of(learner)
    with torch.no_grad():
        for value in context.model.trained().values():
            value.add_(0.3)
    few, many = (batch_of(context, rule, np.arange(count)) for count in (1, 8))
    distances = [rule._distance(context, batch, context.model.forward(batch)) for batch in (few, many)]
    assert distances[0] is not None
    assert distances[1] is not None
    assert distances[0].item() == pytest.approx(distances[1].item(), rel=1e-3)
    assert {form.task for form, _ in rule._samples} == {0}


def test_without_both_terms_it_is_prompt_tuning_on_the_union(planted: None) -> None:
    learner, context = second_task(writing=0.0, distillation=0.0)
    rule = rule_of(learner)
    assert rule._teacher == {}
    assert set(rule.select(context, 0, 0)) <= {SAMPLES}
    seen: list[int] = []
    for step in range(2):  # 8 examples in batches of 4
        selection = rule.select(context, 0, step).get(SAMPLES)
        assert selection is None or selection.weight is None  # joins the mean over the task's own
        seen += [] if selection is None else selection.rows.tolist()
    assert sorted(seen) == list(range(len(rule.samples)))
    batch = batch_of(context, rule, np.arange(3))
    assert rule.loss(context, batch, context.model.forward(batch)) is None


def test_every_sample_comes_once_in_an_epoch_whatever_its_number_of_steps(planted: None) -> None:
    learner, context = second_task(writing=0.0, distillation=0.0)
    rule = rule_of(learner)
    settings = context.task.settings.model_copy(update={"batches": 5})
    longer = context.with_settings(settings)
    rows = [rule.select(longer, 0, step).get(SAMPLES) for step in range(longer.task.steps_per_epoch)]
    assert sorted(row for each in rows if each is not None for row in each.rows) == list(range(len(rule.samples)))


def test_without_samples_and_terms_it_is_plain_prompt_tuning_to_the_bit() -> None:
    settings = {**build_method("lfpt5", {}).train, **TRAIN}
    plain = Learner(WRITER, compose({"adapter": {"prompt": {"length": 4}}}), objective="write", train=settings)
    ours, full = learner_of(writing=0.0, distillation=0.0, attempts=0), learner_of()
    for task in (chosen("big"), chosen("red", "red", "blue")):
        for learner in (plain, ours, full):
            learner.learn(task)
    ends = [learner.state().inner("adapter") for learner in (plain, ours, full)]
    assert same_state(ends[0], ends[1]) is None
    assert same_state(ends[0], ends[2]) is not None


# ---- the whole


def test_only_the_prompt_learns(planted: None) -> None:
    learner, context = second_task()
    assert set(context.model.trained()) == {"adapter.tokens"}
    assert not any(parameter.requires_grad for parameter in learner.backbone.base_parameters().values())
    before = context.model.trained()["adapter.tokens"].detach().clone()
    learner.fit(context, lambda report: None)
    learner.end(context)
    assert not torch.equal(before, context.model.trained()["adapter.tokens"])
    assert learner.base_unchanged()


def test_what_was_written_is_counted_and_nothing_real_is_kept(planted: None) -> None:
    learner, context = second_task(per_option=1)
    rule = rule_of(learner)
    assert rule.counts == {
        "0 big": {"kept": 2, "bad separator": 1, "bad answer": 1, "too long": 0, "surplus": 1, "written": 5}
    }
    assert [one.prompt for one in rule.samples] == ["Is owl big", "Is elk big"]
    learner.fit(context, lambda report: None)
    learner.end(context)
    assert rule.samples == []
    said = str(learner.state().values)
    assert "red" in said
    assert "Is sun" not in said
    assert "Is owl" not in said


def test_an_untrained_prompt_writes_nothing_valid_and_learning_goes_on() -> None:
    learner, context = second_task(attempts=8)
    rule = rule_of(learner)
    assert rule.counts["0 big"]["kept"] == 0
    assert rule.counts["0 big"]["bad separator"] == rule.counts["0 big"]["written"] == 8
    assert set(rule.select(context, 0, 0)) == {WRITING}
    learner.fit(context, lambda report: None)
    learner.end(context)
    assert learner.base_unchanged()


def test_a_model_that_has_learned_to_write_replays_itself() -> None:
    """A LoRA in place of the prompt, which learns in few steps; the texts are its own."""
    rule = {"pseudo-replay": {"writing": 1.0, "attempts": 16, "top": 2, "repetition_penalty": 1.0}}
    method = compose({"adapter": {"lora": {"rank": 16, "targets": "all-linear"}}, "rules": [rule]})
    train = {"epochs": 40, "batch_size": 8, "lr": 2e-2}
    learner = Learner(WRITER, method, objective="write", train=train)
    learner.learn(chosen("big"))
    context = learner.begin(chosen("red", "red", "blue"))
    replay = rule_of(learner)
    assert replay.counts["0 big"]["kept"] > 0
    assert all(one.answer in ("yes", "no") for one in replay.samples)
    form = replay._forms[0]
    first, again = (written_samples(context, form, 4, 2, 1.0) for _ in range(2))
    assert first == again
    assert len(set(written_samples(context, form, 16, 2, 1.0))) > 1


@pytest.mark.parametrize("model", ["llama-writer", "bart-writer"])
def test_it_resumes_exactly_in_the_middle_of_a_task(planted: None, model: str) -> None:
    learner, again = learner_of(model, distillation=0.2), learner_of(model, distillation=0.2)
    learner.learn(chosen("big"))
    halfway = learn_keeping(learner, chosen("red", "red", "blue"))
    assert len(halfway.state.values["rule0"]["own"]["samples"]) == 3
    learner.learn(chosen("hot"))
    go_on(again, halfway)
    again.learn(chosen("hot"))
    assert same_state(learner.state(), again.state()) is None


def test_a_state_without_the_written_texts_is_caught(planted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PseudoReplay.state

    def forgetful(self: PseudoReplay) -> State:
        own = whole(self)
        values = {**own.values, "own": {**own.values["own"], "samples": []}}
        return State(own.tensors, values)

    monkeypatch.setattr(PseudoReplay, "state", forgetful)
    learner, again = learner_of(), learner_of()
    learner.learn(chosen("big"))
    halfway = learn_keeping(learner, chosen("red", "red", "blue"))
    go_on(again, halfway)
    assert same_state(learner.state(), again.state()) is not None


def test_documents_are_learned_and_asked_for() -> None:
    pieces = [Conversation((), (text,), (), "tokens", ends=False) for text in ("The sun is up. ", "The sea is wide. ")]
    examples = language_examples(pieces, range(2))
    learner = learner_of()
    for name in ("book", "page"):
        learner.learn(Task(name, ("answer",), examples, examples))
    (first, _) = rule_of(learner)._forms
    assert first.documents
    assert not first.ends


def test_a_task_that_comes_again_is_remembered_once() -> None:
    learner = learner_of(attempts=2)
    for _ in range(2):
        learner.learn(chosen("big"))
    assert [(form.name, form.task) for form in rule_of(learner)._forms] == [("big", 1)]


def test_streams_of_classes_and_wrong_options_are_refused() -> None:
    with pytest.raises(CombinationError, match="needs answers that the model writes"):
        Learner(tiny_model(), "lfpt5")
    with pytest.raises(CombinationError, match="needs answers that the model writes"):
        Learner(tiny_model(), compose({"adapter": "lora", "rules": ["pseudo-replay"]}))
    for options in ({"distillation": 1.0}, {"writing": -1.0}, {"attempts": -1}, {"top": 0}, {"repetition_penalty": 0}):
        with pytest.raises(ConfigError):
            build_method("lfpt5", options)


def test_prompts_of_many_turns_are_written_as_one() -> None:
    one = Conversation((Message("system", "Be brief."), Message("user", "Hi")), ("yo",))
    back, _ = read_back(as_writing("t", one).answer, form_of("t", 0, 9, [one]))
    assert back is not None
    assert (back.prompt, len(back.messages)) == ("Be brief.\nHi", 1)
