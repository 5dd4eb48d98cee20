"""Objectives: what each learns, that its loss and figures are those of the book, and that it resumes to the bit."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_tasks import TASKS, learner_of
from torch.nn import functional

from contune.checks.run import copied, same_state
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import accepts, build_objective, objectives, recipes
from contune.metric.answers.entities import entities, entity_f1
from contune.metric.answers.labels import exact_share, macro_f1, micro_f1
from contune.metric.answers.values import mean_absolute_error, r_squared, root_mean_squared_error
from contune.stream.task import Targets

NEW = ("multi-label", "regress", "tag")
GRADIENT = ("lora", "er", "ewc", "lwf", "o-lora")
SOLVED = {"multi-label": ("ranpac", "acil"), "regress": ("ranpac", "acil"), "tag": ()}
PAIRS = [(objective, method) for objective in NEW for method in (*GRADIENT, *SOLVED[objective])]


@pytest.mark.parametrize(("objective", "method"), PAIRS)
def test_a_method_learns_measures_and_resumes(objective: str, method: str) -> None:
    options = (
        {"form": "small", "random_features": 64} if method == "ranpac" else {"gamma": 64} if method == "acil" else {}
    )
    learner = learner_of(objective, method, **options)
    first, second = TASKS[objective]
    learner.learn(first)
    main = learner.objective.measures[0]
    judged = learner.judge(learner.test_dataset(first, 0))
    reached = main.cell(judged.columns, first.class_names)
    assert reached is not None
    assert reached > {"multi-label": 0.8, "regress": 0.5, "tag": 0.8}[objective]
    saved = copied(learner.state())
    learner.learn(second)
    again = learner_of(objective, method, **options)
    again.load_state(saved)
    again.learn(second)
    assert same_state(learner.state(), again.state()) is None
    inputs = list(first.test.inputs[:3])
    assert [one.value for one in learner.predict(inputs)] == [one.value for one in again.predict(inputs)]


@pytest.mark.parametrize("objective", NEW)
def test_answers_of_one_row_do_not_depend_on_others(objective: str) -> None:
    learner = learner_of(objective, "lora")
    learner.learn(TASKS[objective][0])
    inputs = list(TASKS[objective][0].test.inputs[:5])
    alone = [learner.predict([one])[0].value for one in inputs]
    together = [one.value for one in learner.predict(inputs)]
    if objective == "regress":
        assert np.allclose(together, alone, rtol=1e-5)
    else:
        assert together == alone


def test_the_labels_of_other_tasks_are_not_taken_for_absent() -> None:
    learner = learner_of("multi-label", "lora")
    learner.learn(TASKS["multi-label"][0])
    context = learner.begin(TASKS["multi-label"][1])
    batch = next(iter(context.passes.batches(context.task.data, 4)))
    logits = torch.randn(4, 8, requires_grad=True)
    context.model.objective.losses(context.model, batch, logits).sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad[:, :4] == 0).all()), "labels of the first task got a gradient from the second"
    assert bool((logits.grad[:, 4:] != 0).all())


def test_the_loss_over_several_labels_is_binary_cross_entropy() -> None:
    learner = learner_of("multi-label", "lora")
    context = learner.begin(TASKS["multi-label"][0])
    batch = next(iter(context.passes.batches(context.task.data, 3)))
    logits = torch.randn(3, 4)
    _, rows = batch.parts[0]
    hot = torch.zeros(3, 4)
    for place, row in enumerate(rows.tolist()):
        hot[place, context.task.data.targets.of(row)] = 1.0
    wanted = functional.binary_cross_entropy_with_logits(logits, hot, reduction="none").mean(dim=1)
    torch.testing.assert_close(context.model.objective.losses(context.model, batch, logits), wanted)


def test_numbers_are_learned_on_the_scale_of_their_first_task_and_answered_on_their_own() -> None:
    learner = learner_of("regress", "lora")
    first, second = TASKS["regress"]
    learner.learn(first)
    state = learner.state().inner("objective")
    values = first.train.targets.values  # type: ignore[union-attr]
    assert state.tensors["mean"].item() == pytest.approx(values.mean())
    assert state.tensors["deviation"].item() == pytest.approx(values.std())
    found = [one.value for one in learner.predict(list(first.test.inputs[:4]))]
    assert min(found) > 300
    learner.learn(second)
    assert torch.equal(learner.state().inner("objective").tensors["mean"], state.tensors["mean"])


def test_a_missing_value_is_not_learned() -> None:
    learner = learner_of("regress", "lora")
    task = TASKS["regress"][0]
    context = learner.begin(task)
    batch = next(iter(context.passes.batches(context.task.data, 4)))
    dataset, rows = batch.parts[0]
    dataset.targets.values[dataset.targets.offsets[rows[1]]] = math.nan
    logits = torch.randn(4, 1, requires_grad=True)
    losses = context.model.objective.losses(context.model, batch, logits)
    losses.sum().backward()
    assert losses[1] == 0
    assert logits.grad is not None
    assert logits.grad[1] == 0
    assert bool(torch.isfinite(logits.grad).all())


def test_words_that_were_cut_away_are_answered_with_o() -> None:
    from word_tasks import tiny_folder

    from contune.backbone.config import ModelConfig
    from contune.engine.learner import Learner

    model = ModelConfig(path=str(tiny_folder("bert")), max_length=12)
    learner = Learner(model, "lora", objective="tag", train={"epochs": 1})
    task = TASKS["tag"][0]
    learner.learn(task)
    (found,) = learner.predict([["aaaa"] * 30])
    assert len(found.value) == 30
    assert found.value[-1] == "O"


def test_solved_heads_have_no_answer_for_words() -> None:
    for name in ("nmc", "ranpac", "acil"):
        with pytest.raises(CombinationError, match="one row of scores for each example"):
            learner_of("tag", name)
    with pytest.raises(CombinationError, match="one is right"):
        learner_of("multi-label", "nmc")


def test_an_objective_refuses_a_kind_of_stream_that_it_cannot_learn() -> None:
    with pytest.raises(ConfigError, match="kind is class-incremental, but objective: regress"):
        learner_of("regress", "lora", kind="class-incremental")
    with pytest.raises(ConfigError, match="objective 'tags' is unknown; did you mean 'tag'"):
        build_objective("tags")


def test_the_objectives_are_found_without_a_registry() -> None:
    assert set(objectives()) == {"classify", "multi-label", "regress", "tag", "write"}
    assert all(accepts(name, objective) for objective, name in PAIRS)
    assert sum(accepts(name, "write") for name in recipes()) > 20


# Figures, against scikit-learn and by hand

LABELS = ["a", "b", "c", "d"]
rows_of_labels = st.lists(st.sets(st.sampled_from(LABELS)), min_size=1, max_size=12)


@given(st.data())
def test_figures_of_several_labels_are_those_of_scikit_learn(data: Any) -> None:
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    right = data.draw(rows_of_labels)
    found = data.draw(st.lists(st.sets(st.sampled_from(LABELS)), min_size=len(right), max_size=len(right)))
    hot = MultiLabelBinarizer(classes=LABELS)
    true, given_ = hot.fit_transform(right), hot.transform(found)
    micro = micro_f1(right, found, LABELS)
    assert (micro or 0.0) == pytest.approx(f1_score(true, given_, average="micro", zero_division=0))
    assert macro_f1(right, found, LABELS) == pytest.approx(f1_score(true, given_, average="macro", zero_division=0))
    assert exact_share(right, found, LABELS) == pytest.approx(accuracy_score(true, given_))


def test_labels_that_are_not_asked_for_do_not_count() -> None:
    assert micro_f1([["a"]], [["a", "z"]], ["a"]) == 1.0
    assert micro_f1([["a"]], [["a", "z"]], ["a", "z"]) == pytest.approx(2 / 3)


TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y", "E-X", "S-Y"]


@given(st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=8), min_size=1, max_size=6), st.data())
def test_entities_are_those_of_seqeval(right: list[list[str]], data: Any) -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    from seqeval.metrics.sequence_labeling import get_entities

    found = [data.draw(st.lists(st.sampled_from(TAGS), min_size=len(row), max_size=len(row))) for row in right]
    for row in right:
        assert entities(row) == get_entities(row)
    own = entity_f1(right, found, ["X", "Y"])
    assert (own or 0.0) == pytest.approx(seqeval.f1_score(right, found, zero_division=0))


def test_an_entity_counts_where_type_start_and_end_are_right() -> None:
    right = [["B-PER", "I-PER", "O", "B-LOC"]]
    assert entity_f1(right, right, ["PER", "LOC"]) == 1.0
    assert entity_f1(right, [["B-PER", "O", "O", "B-LOC"]], ["PER", "LOC"]) == 0.5
    assert entity_f1(right, [["B-PER", "I-PER", "B-LOC", "B-LOC"]], ["PER"]) == 1.0
    assert entity_f1([["O"]], [["O"]], ["PER"]) is None


def test_figures_of_numbers_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import mean_absolute_error as mae
    from sklearn.metrics import mean_squared_error, r2_score

    generator = np.random.default_rng(0)
    right, found = generator.normal(size=(20, 2)), generator.normal(size=(20, 2))
    stored = {"label": right.tolist(), "prediction": found.tolist()}
    assert r_squared(stored, ()) == pytest.approx(r2_score(right, found))
    assert root_mean_squared_error(stored, ()) == pytest.approx(math.sqrt(mean_squared_error(right, found)))
    assert mean_absolute_error(stored, ()) == pytest.approx(mae(right, found))
    assert r_squared({"label": [[1.0], [1.0]], "prediction": [[1.0], [1.0]]}, ()) is None


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6), st.data())
def test_targets_are_taken_and_joined_as_lists_are(rows: list[list[int]], data: Any) -> None:
    from contune.stream.task import joined_targets

    targets = Targets.of_rows(rows)
    places = data.draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=5)) if rows else []
    assert [targets.take(places).of(at).tolist() for at in range(len(places))] == [rows[at] for at in places]
    both = joined_targets([targets, targets])
    assert both is not None
    assert [both.of(at).tolist() for at in range(2 * len(rows))] == rows + rows


def test_a_prediction_is_its_text_and_survives_json() -> None:
    learner = learner_of("multi-label", "lora")
    learner.learn(TASKS["multi-label"][0])
    (found,) = learner.predict([TASKS["multi-label"][0].test.inputs[1]])
    assert str(found) == ", ".join(found.value)
    assert json.loads(json.dumps(found)) == str(found)
    assert list(found.scores.values()) == sorted(found.scores.values(), reverse=True)
    assert all(itertools.starmap(lambda name, share: (share > 0.5) == (name in found.value), found.scores.items()))
