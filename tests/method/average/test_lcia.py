"""LCIA: the average moves by its formula, answers, and says how often it fell back; instructions find their set."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resume_helpers import go_on, learn_keeping
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora.experts import LoraExperts
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method, compose
from contune.router.instructions import Instructions, best_match, instruction_of, mean_cosines
from contune.rule.average.adaptive_ema import AdaptiveEma, balance_weight
from contune.stream.conversation import Conversation, Message, language_examples
from contune.stream.task import Task

TRAIN = {**SETTINGS, "weight_decay": 0.1}
FAST = {**TRAIN, "lr": 5e-2}  # steps so large that drift times change leaves the fallback behind
SUMS, COLOURS = "Add both numbers.", "Name the colour of this thing."
Values = dict[str, Tensor]


def task_of(name: str, instruction: str, answers: tuple[str, str]) -> Task:
    messages = [(Message("user", f"{instruction}\n{'ab'[at % 2]} {at}"),) for at in range(8)]
    asked = [Conversation(one, (answers[at % 2],)) for at, one in enumerate(messages)]
    return Task(name, ("answer",), language_examples(asked, range(8)), language_examples(asked, range(8)))


def three_tasks() -> list[Task]:
    """The third has the instruction of the first."""
    return [
        task_of("sums", SUMS, ("4", "5")),
        task_of("hue", COLOURS, ("red", "sky")),
        task_of("more", SUMS, ("7", "1")),
    ]


def learner_of(case: str = "digits", train: dict[str, Any] = TRAIN, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    kind = {"objective": "write"} if case.endswith("writer") else {}
    settings = {**train, "batch_size": 4} if kind else train
    return Learner(model, build_method("lcia", options), train=settings, device="cpu", **kind)


def rule_of(learner: Learner) -> AdaptiveEma:
    (rule,) = learner.method.rules
    assert isinstance(rule, AdaptiveEma)
    return rule


def sets_of(learner: Learner) -> LoraExperts:
    assert isinstance(learner.method.adapter, LoraExperts)
    return learner.method.adapter


def values_of(context: Context) -> Values:
    return {name: value.detach().clone() for name, value in context.model.trained().items()}


def trajectory(learner: Learner, task: Task) -> tuple[list[Values], list[Values], Values]:
    """The trained tensors at the start and after each step, the gradients of the steps, and what answers in the end."""
    context, gradients = learner.begin(task), list[Values]()
    found = [values_of(context)]

    def keep(report: object) -> None:
        found.append(values_of(context))
        gradients.append({n: p.grad.clone() for n, p in context.model.trained().items() if p.grad is not None})

    learner.fit(context, keep)
    learner.end(context)
    return found, gradients, values_of(context)


def equal(first: Values, second: Values) -> bool:
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


small = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3).map(torch.tensor)


@given(small, small, small)
def test_the_weight_lies_between_0_and_1(drift: Tensor, gradient: Tensor, change: Tensor) -> None:
    weight, outside = balance_weight(drift, gradient, change, 0.01)
    assert 0 < weight.item() < 1
    assert weight.item() == pytest.approx(0.01) or not outside


def test_where_nothing_moves_the_weight_is_the_fallback() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    for drift, change in ((zero, one), (one, zero), (zero, zero)):
        weight, outside = balance_weight(drift, one, change, 0.125)
        assert (weight.item(), outside.item()) == (0.125, True)


def by_hand(steps: list[Values], gradients: list[Values], fallback: float) -> tuple[Values, int]:
    """The mean after a task by the formula, of tensors that were all there before, and how often it fell back."""
    mean, fell = dict(steps[0]), 0
    for at, values in enumerate(steps[1:]):
        for name, value in values.items():
            weight = float("inf")
            if at:
                a = float((value - mean[name]).abs().sum())
                c = float((gradients[at][name] - gradients[at - 1][name]).abs().sum())
                weight = 2 * (1 + float(gradients[at][name].abs().sum())) / (a * c) if a * c else weight
            fell += not 0 < weight < 1
            weight = weight if 0 < weight < 1 else fallback
            mean[name] = (1 - weight) * mean[name] + weight * value
    return mean, fell


def test_the_mean_moves_by_the_formula_and_answers() -> None:
    learner = learner_of("llama-writer", FAST, routing="none", rank=16)
    for task in three_tasks()[:2]:
        steps, gradients, answering = trajectory(learner, task)
    expected, fell = by_hand(steps, gradients, 0.01)
    taken = len(gradients) * len(answering)
    assert rule_of(learner).fallbacks == [(0, 0), (fell, taken)]
    assert len(answering) <= fell < taken, "the first step falls back, and some steps do not"
    assert rule_of(learner).fallback_share == fell / taken
    for name, value in answering.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    fixed, _ = by_hand(steps, [{n: torch.zeros_like(g) for n, g in each.items()} for each in gradients], 0.01)
    assert max(float((fixed[name] - value).abs().max()) for name, value in answering.items()) > 1e-3


def test_a_fixed_share_weighs_the_steps_geometrically() -> None:
    learner, share = learner_of(routing="none", share=0.25), 0.25
    learner.learn(digit_tasks()[0])
    steps, _, answering = trajectory(learner, digit_tasks()[1])
    last = len(steps) - 1
    weights = [(1 - share) ** last] + [share * (1 - share) ** (last - at) for at in range(1, last + 1)]
    assert sum(weights) == pytest.approx(1)
    for name in (name for name in answering if name.startswith("adapter.")):
        expected = sum(weight * values[name] for weight, values in zip(weights, steps, strict=True))
        torch.testing.assert_close(answering[name], expected)


def test_share_1_is_plain_training_and_share_0_keeps_what_was_learned() -> None:
    options = {"alpha": 16.0, "targets": "all-linear", "loss_over": "seen"}
    plain = Learner(tiny_model(), build_method("lora", options), train=TRAIN)
    ours, still = learner_of(routing="none", share=1.0), learner_of(routing="none", share=0.0)
    for task in digit_tasks():
        begun = trajectory(still, task)
        assert equal(trajectory(plain, task)[2], trajectory(ours, task)[2])
        learned, known = begun[0][0], {name: value.shape for name, value in begun[2].items()}
        if task is not digit_tasks()[0]:
            assert all(torch.equal(begun[2][name], learned[name]) for name in known if name.startswith("adapter."))
            old = len(learned["head.bias"]) - 2
            assert torch.equal(begun[2]["head.weight"][:old], learned["head.weight"][:old])
            assert torch.equal(begun[2]["head.weight"][old:], begun[0][-1]["head.weight"][old:]), "new rows as trained"
            assert not torch.equal(begun[0][-1]["head.weight"][:old], learned["head.weight"][:old])


def test_the_first_task_is_plain_training_and_the_second_is_not() -> None:
    options = {"alpha": 16.0, "targets": "all-linear", "loss_over": "seen"}
    plain = Learner(tiny_model(), build_method("lora", options), train=TRAIN)
    ours = learner_of(routing="none")
    first, second = digit_tasks()[:2]
    assert equal(trajectory(plain, first)[2], trajectory(ours, first)[2])
    mine, theirs = trajectory(ours, second), trajectory(plain, second)
    assert equal(mine[0][-1], theirs[0][-1]), "training does not see the mean"
    assert not equal(mine[2], theirs[2])


def test_the_line_that_instructs() -> None:
    system = Conversation((Message("system", "Be short."), Message("user", "Why?\n\nAnswer now. ")), ("x",))
    assert [instruction_of(system, line) for line in ("first", "last", "all")] == [
        "Be short.",
        "Answer now.",
        "Be short.\nWhy?\nAnswer now.",
    ]
    assert instruction_of(Conversation((), ("a document",)), "first") == ""


WORDY = st.lists(st.sampled_from(["red", "sea", "tall", "hill", "colour", "tree"]), min_size=1, max_size=5).map(
    " ".join
)


@given(st.lists(WORDY, min_size=1, max_size=4), st.lists(WORDY, min_size=1, max_size=4), WORDY)
def test_the_cosine_is_that_of_scikit_learn(first: list[str], second: list[str], asked: str) -> None:
    """Words that no stored text has are left out of this comparison: scikit-learn would not count them."""
    tfidf = TfidfVectorizer(stop_words="english").fit([*first, *second])
    known = " ".join(word for word in asked.split() if word in tfidf.vocabulary_)
    if known:
        rows = [(tfidf.transform([known]) @ tfidf.transform(book).T).mean() for book in (first, second)]
        assert mean_cosines([[known]], [first, second])[0] == pytest.approx(rows)


def test_pooling_is_the_mean_over_all_pairs() -> None:
    assert mean_cosines([["red sea"]], [["red sea"]]) == [[1.0]]
    same = ["red sea", "tall hill", "old tree"]
    assert mean_cosines([same], [same])[0][0] == pytest.approx(1 / 3)
    assert mean_cosines([["red sea"], [""]], [["what is it"], [""]]) == [[0.0, 0.0], [0.0, 1.0]]


def test_a_word_that_is_not_known_makes_a_text_less_alike() -> None:
    less, same = (
        mean_cosines([[text]], [["name the colour"], ["add"]])[0][0] for text in ("colour zebra", "colour name")
    )
    assert 0.2 < less < 0.6
    assert same == 1


def test_ties_and_thresholds() -> None:
    assert best_match([0.5, 0.5, 0.2], 0.5) == 1
    assert best_match([0.49], 0.5) is None
    assert best_match([], 0.0) is None


def test_a_known_instruction_goes_on_with_its_set_and_a_new_one_begins_one() -> None:
    learner, others = learner_of("llama-writer"), list[Values]()
    for number, task in enumerate(three_tasks()):
        others.append(
            {n: t.clone() for n, t in learner.method.adapter.state().tensors.items() if n.startswith("set1/")}
        )
        learner.learn(task)
        assert sets_of(learner).modules() == (1, 2, 2)[number]
    assert sets_of(learner).routes(torch.arange(3)).tolist() == [0, 1, 0]
    assert others[2]
    now = learner.method.adapter.state().tensors
    assert all(torch.equal(now[name], value) for name, value in others[2].items())
    assert [taken > 0 for _, taken in rule_of(learner).fallbacks] == [False, False, True], (
        "averaged where a set goes on"
    )
    for task, module in zip(three_tasks(), (0, 1, 0), strict=True):
        data = learner.test_dataset(task)
        assert learner.reading(data).passes.routes(data).tolist() == [module] * 8


def test_without_the_decision_every_task_has_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Instructions, "matching_module", lambda self, context: None)
    learner = learner_of("llama-writer")
    for task in three_tasks():
        learner.learn(task)
    assert sets_of(learner).modules() == 3


def test_answers_are_those_of_the_set_alone_and_in_company() -> None:
    """The second task's set answers as if the third had never come, and rows do not depend on each other."""
    learner = learner_of("llama-writer", FAST)
    tasks = three_tasks()
    learner.learn(tasks[0])
    learner.learn(tasks[1])
    asked = [str(one.prompt) for task in tasks for one in task.test.inputs[:2]]  # type: ignore[union-attr]
    before = learner.predict(asked)
    learner.learn(tasks[2])
    after = learner.predict(asked)
    assert after[2:4] == before[2:4]
    assert after == [learner.predict([one])[0] for one in asked]


def test_what_is_like_nothing_is_answered_by_the_last_set() -> None:
    learner = learner_of("llama-writer")
    for task in three_tasks()[:2]:
        learner.learn(task)
    conversations = [Conversation((Message("user", text),), ("x",)) for text in ("Sing loudly", "Add numbers", "")]
    task = Task(
        "new", ("answer",), language_examples(conversations, range(3)), language_examples(conversations, range(3))
    )
    data = learner.test_dataset(task)
    assert learner.reading(data).passes.routes(data).tolist() == [1, 0, 1]


def test_a_stream_of_classes_has_one_set_and_comes_to_the_average_alone() -> None:
    auto, alone = learner_of(), learner_of(routing="none")
    for task in digit_tasks()[:2]:
        mine, theirs = trajectory(auto, task), trajectory(alone, task)
    assert sets_of(auto).modules() == 1
    heads = [{name: value for name, value in each[2].items() if name.startswith("head.")} for each in (mine, theirs)]
    assert equal(heads[0], heads[1])
    assert rule_of(auto).fallbacks == rule_of(alone).fallbacks
    assert 0.5 < rule_of(auto).fallback_share < 1, "small tensors and steps mostly fall back"
    data = auto.test_dataset(digit_tasks()[0])
    assert (auto.answers(data) == alone.answers(data)).all()


def test_other_routers_choose_among_sets() -> None:
    method = compose({"adapter": "lora-experts", "router": "centroids"})
    learner = Learner(tiny_model(), method, train=TRAIN)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    assert learner.method.adapter.modules() == 2


def test_what_makes_no_sense_is_refused() -> None:
    for method in (
        build_method("lcia", {"routing": "instructions"}),
        compose({"adapter": "lora-experts", "router": "instructions"}),
    ):
        with pytest.raises(CombinationError, match="needs answers that the model writes"):
            Learner(tiny_model(), method, train=TRAIN)
    with pytest.raises(CombinationError, match="several tasks"):
        compose({"adapter": "lora-per-task", "rules": ["adaptive-ema"]})
    for options in ({"fallback": 1.5}, {"share": -0.1}, {"threshold": 2.0}, {"keep": 0}):
        with pytest.raises(ConfigError):
            build_method("lcia", options)


def test_a_set_is_a_plain_peft_folder(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    learner = learner_of("llama-writer")
    for task in three_tasks()[:2]:
        learner.learn(task)
    assert learner.method.adapter.export(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder("llama-writer")), tmp_path)
    ours = {name.split(".", 1)[1]: value for name, value in learner.method.adapter.trained().items()}
    theirs = {n.replace(".default.", "."): p for n, p in loaded.named_parameters() if "lora_" in n}
    assert equal({n: p.detach() for n, p in theirs.items()}, {n: p.detach() for n, p in ours.items()})
    assert not learner.method.adapter.export_answering(tmp_path)


@pytest.mark.parametrize("case", ["bert", "llama-writer", "gpt2-writer"])
def test_it_resumes_exactly(case: str) -> None:
    learner, again = learner_of(case, FAST), learner_of(case, FAST)
    tasks = three_tasks() if case.endswith("writer") else word_tasks((2, 2, 2))
    learner.learn(tasks[0])
    learner.learn(tasks[1])
    halfway = learn_keeping(learner, tasks[2])
    go_on(again, halfway)
    assert same_state(learner.state(), again.state()) is None
    assert rule_of(again).fallback_share == rule_of(learner).fallback_share > 0
    assert learner.base_unchanged()
