"""Language streams: what is read, what is learned, what is written, and that every method is either right or refused."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_tasks import TRAIN, WRITER, config_of, conversation, experience, write_rows, writer
from run_helpers import resume, run
from slow_subset import some
from tiny_models import WRITERS
from torch.nn import functional
from word_tasks import tiny_folder

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.generation import score_rule
from contune.checks.run import copied, same_state
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError, DataError
from contune.method.catalog import build_method, build_objective, recipes
from contune.metric.answers.text import exact_match, judged, longest_common, named_option
from contune.numerics.divergences import softmax_divergence
from contune.objective.write import bits_per_byte, format_failures, nats_per_token, perplexity, read_answers
from contune.stream import StreamConfig, load_stream
from contune.stream.chat.documents import pieces
from contune.stream.conversation import Conversation, Message, decoded
from contune.stream.task import Task


def stream_of(tmp_path: Path, rows: list[dict[str, Any]], **language: Any):
    file = write_rows(tmp_path / "rows.jsonl", rows)
    data = {"train": {"one": file}, "test": {"one": file}}
    return load_stream(StreamConfig(objective="write", data=data, language=language or None))  # type: ignore[arg-type]


LAYOUTS = {
    "instruction": {"instruction": "Add.", "input": "1 + 1", "output": "2"},
    "prompt": {"prompt": "Add.\n1 + 1", "completion": "2"},
    "question": {"question": "Add.\n1 + 1", "answer": 2},
    "several": {"input": "Add.\n1 + 1", "output": ["2", "two"]},
    "chat": {"messages": [{"role": "user", "content": "Add.\n1 + 1"}, {"role": "assistant", "content": "2"}]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_layouts_say_the_same(layout: str, tmp_path: Path) -> None:
    one = stream_of(tmp_path, [LAYOUTS[layout]]).tasks[0].train.inputs[0]
    assert (one.prompt, one.answer) == ("Add.\n1 + 1", "2")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": ""}, "the answer is empty"),
        ({"prompt": "a", "completion": None}, "the answer is missing"),
        ({"prompt": " ", "completion": "b"}, "the prompt is empty"),
    ],
)
def test_a_bad_row_names_file_and_line(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"rows.jsonl, line 2: {reason}"):
        stream_of(tmp_path, [{"prompt": "a", "completion": "b"}, row])


def test_a_missing_answer_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'gold'"):
        stream_of(tmp_path, [{"prompt": "a", "completion": "b"}], answer="gold")
    with pytest.raises(DataError, match="none of the usual layouts"):
        stream_of(tmp_path, [{"story": "a", "moral": "b"}])


def test_options_of_the_training_data_and_the_name_of_the_domain(tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
    plain = stream_of(tmp_path, rows).tasks[0].test.inputs[0]
    chosen = stream_of(tmp_path, rows, options="answers", name_in_prompt=True).tasks[0].test.inputs[0]
    assert (plain.prompt, plain.options, plain.measure) == ("good", (), "exact-match")
    assert (chosen.prompt, chosen.options, chosen.measure) == ("one\ngood", ("yes", "no"), "likelihood")


def test_the_end_of_a_text_is_held_out(tmp_path: Path) -> None:
    text = "".join(f"Line {number} of it.\n" for number in range(200))
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(text.encode()))
    config = {"train": {"book": str(tmp_path / "book.txt.gz")}}
    task = load_stream(StreamConfig(objective="write", data=config, language={"piece": 100})).tasks[0]  # type: ignore[arg-type]
    learned, asked = ("".join(one.answer for one in part.inputs) for part in (task.train, task.test))
    assert learned + asked == text
    assert 0.05 < len(asked) / len(text) < 0.15
    assert [one.ends for one in task.test.inputs][-2:] == [False, True]


@given(st.text(alphabet="ab. \n", max_size=300), st.integers(5, 40))
def test_pieces_lose_nothing(text: str, size: int) -> None:
    found = pieces(text, size)
    assert "".join(found) == text
    assert all(0 < len(piece) <= size for piece in found)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=3), st.booleans())
def test_an_exchange_survives_being_written(texts: list[str], ends: bool) -> None:
    one = Conversation(tuple(Message("user", text) for text in texts), tuple(texts), ("x",), "options", ends)
    assert decoded(str(one)) == one


@pytest.mark.parametrize("name", WRITERS)
def test_scores_and_loss_are_those_of_the_stock_model(name: str) -> None:
    backbone = writer(name)
    prepared = backbone.prepare([conversation("hello there", "you"), conversation("a", "much longer answer")])
    inputs = backbone.collate([(prepared, np.arange(2))])
    scores = backbone.language.scores(backbone.features(inputs))
    tokens = inputs.ids if inputs.answers is None else inputs.answers
    assert tokens is not None
    assert inputs.targets is not None
    labels = tokens.masked_fill(~inputs.targets, -100)
    stock = backbone.stock(input_ids=inputs.ids, attention_mask=inputs.mask, labels=labels)
    ours = functional.cross_entropy(scores, inputs.target_ids())
    assert ours.item() == pytest.approx(stock.loss.item(), abs=1e-5)
    assert len(scores) == sum(len(text) + 1 for text in ("you", "much longer answer"))  # bytes, and the end


@pytest.mark.parametrize("method", ["lora", "er", "ewc"])
@pytest.mark.parametrize("name", ["t5-writer", "bart-writer", "gpt2-writer"])
def test_other_families_learn_and_resume(name: str, method: str) -> None:
    def learner() -> Learner:
        return Learner(str(tiny_folder(name)), method, objective="write", train={**TRAIN, "epochs": 4})

    one = learner()
    one.learn(experience("big"))
    saved = copied(one.state())
    one.learn(experience("red", "red", "blue"))
    again = learner()
    again.load_state(saved)
    again.learn(experience("red", "red", "blue"))
    assert same_state(one.state(), again.state()) is None
    assert one.base_unchanged()
    assert len(one.predict(["Is sun big", "Is moon red"])) == 2


def test_a_model_with_an_encoder_learns_no_documents() -> None:
    with pytest.raises(DataError, match="row 0 is a document"):
        writer("t5-writer").prepare([Conversation((), ("abc",), (), "tokens")])


def test_a_prompt_is_no_part_of_the_loss() -> None:
    backbone = writer()
    inputs = [backbone.collate([(backbone.prepare([conversation(p, "yes")]), np.arange(1))]) for p in ("a b", "a c")]
    assert [one.ids[one.targets].tolist() for one in inputs] == [inputs[0].ids[inputs[0].targets].tolist()] * 2  # type: ignore[index]


def test_a_document_is_learned_from_its_first_token_after_the_start() -> None:
    backbone = writer()
    prepared = backbone.prepare([Conversation((), ("abc",), (), "tokens", ends=False)])
    assert prepared.units(np.arange(1)) == len(prepared.texts.tokens(0)) - 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", WRITERS)
def test_answers_are_written_alike_alone_and_in_company(name: str) -> None:
    backbone = writer(name)
    texts = ["a", "a much longer prompt than the other", "mid size"]
    asked = [(backbone.prepare(texts), np.arange(3))]
    together = backbone.features(backbone.prompts_only(asked, max_new_tokens=6))
    for at in range(3):
        alone = backbone.features(backbone.prompts_only([(backbone.prepare(texts), np.array([at]))], max_new_tokens=6))
        assert together[at].tolist() == alone[0].tolist()


def test_written_tokens_are_the_likeliest_ones() -> None:
    backbone = writer()
    inputs = backbone.prompts_only([(backbone.prepare(["hello"]), np.arange(1))], max_new_tokens=1)
    first = backbone.features(inputs)[0, 0].item()
    scores = backbone.language.whole(input_ids=inputs.ids, attention_mask=inputs.mask).logits[0, -1]
    assert first == scores.argmax().item()


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_chat_template_is_the_tokenizers_own(template: str) -> None:
    backbone = writer()
    reader = backbone.language.reader
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    reader.tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    found = replace(reader, template=template).prepare([conversation("hi", "yo")])
    text = reader.tokenizer.decode(found.texts.tokens(0)[: found.starts[0]].tolist(), skip_special_tokens=True)
    assert text.strip() == {"plain": "hi", "chat": "[user]hi[assistant]"}[template]


def test_a_template_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="has no chat template"):
        Backbone.load(ModelConfig(path=WRITER, template="chat"), reads="chat")


def test_long_prompts_are_an_error_or_lose_their_beginning() -> None:
    folder = WRITER
    long = conversation("x" * 40 + "the end", "right")
    with pytest.raises(DataError, match="the prompt of row 0"):
        Backbone.load(ModelConfig(path=folder, max_length=20), reads="chat").prepare([long])
    prepared = Backbone.load(ModelConfig(path=folder, max_length=20, cut_prompts=True), reads="chat").prepare([long])
    assert (prepared.truncated, prepared.lengths.tolist(), prepared.units(np.arange(1))) == (1, [20], 6)
    with pytest.raises(DataError, match="the answer of row 0"):
        Backbone.load(ModelConfig(path=folder, max_length=20), reads="chat").prepare([conversation("a", "y" * 30)])


def test_an_encoder_cannot_write() -> None:
    with pytest.raises(ConfigError, match="writes no text"):
        Backbone.load(ModelConfig(path=str(tiny_folder("vit"))), reads="chat")


def test_a_head_that_is_not_understood_is_refused() -> None:
    raw = torch.tensor([[1.0, -2.0, 3.0]])
    assert score_rule(raw, 4 * torch.tanh(raw * 0.5 / 4), 4.0, "m") == (pytest.approx(0.5, abs=1e-4), 4.0)
    with pytest.raises(ConfigError, match="not known here"):
        score_rule(raw, raw + 1, None, "m")


def test_judging() -> None:
    assert judged("The answer is (C).", ["C"], ["A", "B", "C"], "options").score == 1
    assert judged("", ["x"], [], "exact-match") == judged("...", ["x"], [], "exact-match")
    assert named_option("yes and no", ["yes", "no"]) == "yes"
    assert exact_match("A cat.", ["a cat"]) == 1


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_longest_common_subsequence_by_recursion(first: list[str], second: list[str]) -> None:
    def slow(one: list[str], two: list[str]) -> int:
        if not one or not two:
            return 0
        if one[-1] == two[-1]:
            return slow(one[:-1], two[:-1]) + 1
        return max(slow(one[:-1], two), slow(one, two[:-1]))

    assert longest_common(first, second) == slow(first[:6], second[:6]) if len(first) < 7 and len(second) < 7 else True


def test_perplexity_is_e_to_the_loss() -> None:
    columns = {"nats": [math.log(4.0), 3 * math.log(4.0)], "tokens": [1, 3]}
    assert perplexity(columns, ()) == pytest.approx(4.0)
    assert perplexity({"nats": [1e6], "tokens": [1]}, ()) is None
    assert perplexity({"nats": [], "tokens": []}, ()) is None


def test_bits_per_byte_by_hand() -> None:
    nats = [2 * math.log(2), 4 * math.log(2), math.log(2)]
    both = {"nats": nats[:2], "tokens": [2, 2], "bytes": [1, 2], "well_formed": [True, False]}
    last = {"nats": nats[2:], "tokens": [1], "bytes": [4], "well_formed": [True]}
    assert (bits_per_byte(both, ()), bits_per_byte(last, ())) == (2.0, 0.25)
    assert (format_failures(both, ()), format_failures(last, ())) == (0.5, 0.0)
    assert nats_per_token(last, ()) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", some(recipes()))
def test_every_recipe_learns_language_and_resumes_or_says_why_not(name: str) -> None:
    try:
        build_method(name, {}).for_objective(build_objective("write"))
    except CombinationError as refusal:
        assert len(str(refusal)) > 60  # noqa: PT017  a refusal is right, if it is a sentence
        return

    def learner() -> Learner:
        return Learner(WRITER, name, objective="write", train=TRAIN)

    one = learner()
    if one.method.joint:
        one.learn([experience("big"), experience("red", "red", "blue")])
        assert one.base_unchanged()
        return
    base = {id(p) for p in one.backbone.base_parameters().values()}
    one.learn(experience("big"))
    saved = copied(one.state())
    one.learn(experience("red", "red", "blue"))
    again = learner()
    again.load_state(saved)
    again.learn(experience("red", "red", "blue"))
    assert same_state(one.state(), again.state()) is None
    context = one.reading(None)
    assert one.base_unchanged() or any(id(p) in base for p in context.model.trained().values())
    assert all(isinstance(text, str) for text in one.predict(["Is sun big"]))


def test_a_recipe_learns_to_answer() -> None:
    learner = Learner(WRITER, "lora", objective="write", train={"epochs": 40, "batch_size": 8, "lr": 2e-2})
    task = experience("big")
    before = Learner(WRITER, "linear-probe", objective="write")
    before.learn(task)
    learner.learn(task)
    found, untouched = (one.judge(one.test_dataset(task)) for one in (learner, before))
    assert sum(found.columns["nats"]) < 0.5 * sum(untouched.columns["nats"])
    assert found.score.mean() > 0.7


def test_distillation_is_over_all_tokens() -> None:
    learner = Learner(WRITER, "lwf", objective="write", train=TRAIN)
    learner.learn(experience("big"))
    context = learner.begin(experience("red"))
    batch = context.passes.batch([(context.task.data, np.arange(4))])
    teacher = context.model.forward(batch)
    rule = learner.method.rules[0]
    assert rule.loss(context, batch, teacher).item() == 0  # type: ignore[union-attr]
    changed = replace(teacher, logits=teacher.logits + torch.randn(teacher.logits.shape[1]))
    expected = softmax_divergence(changed.logits, teacher.logits, 2.0).mean()
    assert rule.loss(context, batch, changed).item() == pytest.approx(expected.item(), rel=1e-5)  # type: ignore[union-attr]


def mixed(context: Context) -> torch.Tensor:
    first = context.passes.batch([(context.task.data, np.arange(3))])
    routes = torch.tensor([0, 1, 0])
    return context.model.forward(replace(first, routes=routes)).logits.detach()


def test_rows_of_several_modules_keep_their_places() -> None:
    learner = Learner(WRITER, "dualprompt", objective="write", train=TRAIN)
    learner.learn(experience("big"))
    learner.learn(experience("red", "red", "blue"))
    dataset = learner.test_dataset(experience("red", "red", "blue"))
    context = learner.reading(dataset)
    together = mixed(context)
    counts = [context.task.data.prepared.units(np.array([at])) for at in range(3)]
    for at, module in enumerate((0, 1, 0)):
        alone = context.passes.batch([(dataset, np.array([at]))])
        logits = context.model.forward(replace(alone, routes=torch.tensor([module]))).logits
        start = sum(counts[:at])
        torch.testing.assert_close(together[start : start + counts[at]], logits, atol=1e-4, rtol=1e-4)


def test_reading_does_not_depend_on_the_company() -> None:
    learner = Learner(WRITER, "lora", objective="write", train=TRAIN)
    learner.learn(experience("big"))
    dataset = learner.test_dataset(experience("big"))
    whole = read_answers(learner.reading(dataset), dataset)
    one = experience("big")
    single = Task(one.name, one.class_names, one.train, one.test.take([3]))
    alone = learner.test_dataset(single)
    assert read_answers(learner.reading(alone), alone).nats[0] == pytest.approx(whole.nats[3], abs=1e-4)


def test_a_run_stores_what_was_written_and_every_score_can_be_recomputed(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = run(config_of(tmp_path, {"name": "er", "size": 4}), tmp_path / "out")
    results = json.loads((out / "results.json").read_text())
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    last = [row for row in rows if row["after_task"] == 1 and row["task"] == 0]
    assert results["accuracy_matrix"][1][0] == pytest.approx(np.mean([row["score"] for row in last]))
    assert [row["score"] for row in rows] == [exact_match(row["prediction"], [row["label"]]) for row in rows]
    loss = {one["name"]: one["matrix"] for one in results["measures"]}["loss"]
    assert loss[1][0] == pytest.approx(sum(row["nats"] for row in last) / sum(row["tokens"] for row in last))
    assert loss[0][1] is None
    resume(out)


def test_a_class_head_is_refused_with_a_sentence() -> None:
    with pytest.raises(CombinationError, match="answers are written"):
        Learner(WRITER, "nmc", objective="write")


def test_a_glob_names_files_and_none_is_read_twice(tmp_path: Path) -> None:
    write_rows(tmp_path / "one.jsonl", [LAYOUTS["prompt"]])
    write_rows(tmp_path / "two.jsonl", [LAYOUTS["question"]])
    glob, one = str(tmp_path / "*.jsonl"), str(tmp_path / "one.jsonl")

    def load(train: Any, **more: Any):
        return load_stream(
            StreamConfig(objective="write", data={"train": {"sums": train}, "test": {"sums": one}, **more})
        )  # type: ignore[arg-type]

    assert len(load(glob).tasks[0].train) == 2
    with pytest.raises(DataError, match="more than once"):
        load([one, one])
    with pytest.raises(ConfigError, match="hold a share out"):
        load(one, validation={"sums": one})
