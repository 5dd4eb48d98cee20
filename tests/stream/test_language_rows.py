"""Rows of written answers: read as they stand, or refused with file and row before anything is learned."""

from pathlib import Path
from typing import Any

import pytest
from language_tasks import write_rows

from contune.errors import ConfigError, ContuneError, DataError
from contune.stream import StreamConfig, load_stream
from contune.stream.conversation import Conversation
from contune.stream.task import Stream

ASKED = [{"question": "one", "answer": "x"}, {"question": "two", "answer": "y"}]
CHAT = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Yo."},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "    fine\n"},
]


def stream_of(
    folder: Path, rows: list[dict[str, Any]], test: list[dict[str, Any]] | None = None, **language: Any
) -> Stream:
    files = write_rows(folder / "a.jsonl", rows), write_rows(folder / "b.jsonl", test or rows)
    data = {"train": {"d": files[0]}, "test": {"d": files[1]}}
    return load_stream(StreamConfig(objective="write", data=data, language=language))  # type: ignore[arg-type]


def first(folder: Path, rows: list[dict[str, Any]], **language: Any) -> Conversation:
    one: Conversation = stream_of(folder, rows, **language).tasks[0].train.inputs[0]
    return one


def test_prompt_and_completion_are_verbatim(tmp_path: Path) -> None:
    one = first(tmp_path, [{"prompt": " def f():\n", "completion": "    return 1\n"}])
    assert (one.prompt, one.answer, one.verbatim) == (" def f():\n", "    return 1\n", True)
    told = first(tmp_path, [{"prompt": "x ", "completion": " y"}], instructions={"d": "Go on."})
    assert (told.prompt, told.answer, told.verbatim) == ("Go on.\nx ", " y", True)


def test_other_answers_keep_their_blanks_and_a_line_before_them(tmp_path: Path) -> None:
    one = first(tmp_path, [{"instruction": "Write f.", "input": None, "output": "    return 1\n"}])
    assert (one.prompt, one.answer, one.verbatim) == ("Write f.", "    return 1\n", False)
    assert first(tmp_path, [{"messages": CHAT}]).answer == "    fine\n"


def test_options_are_names_without_blanks_around_them(tmp_path: Path) -> None:
    one = first(
        tmp_path, [{"prompt": "a", "completion": " yes "}, {"prompt": "b", "completion": "no"}], options="answers"
    )
    assert (one.answer, one.options) == ("yes", ("yes", "no"))


def test_every_turn_may_be_learned_and_the_last_one_alone_tests(tmp_path: Path) -> None:
    task = stream_of(tmp_path, [{"messages": CHAT}], learn_turns="all").tasks[0]
    assert [(len(one.messages), one.answer) for one in task.train.inputs] == [(1, "Yo."), (3, "    fine\n")]
    assert [one.answer for one in task.test.inputs] == ["    fine\n"]
    assert [one.answer for one in stream_of(tmp_path, [{"messages": CHAT}]).tasks[0].train.inputs] == ["    fine\n"]


@pytest.mark.parametrize(
    ("rows", "how", "said"),
    [
        ([{"question": "a", "answer": float("nan")}, *ASKED], {}, r"a\.jsonl, line 1: the answer is missing"),
        ([{"question": float("nan"), "answer": "x"}], {}, r"a\.jsonl, line 1: the prompt is missing \(question\)"),
        ([*ASKED, {"question": None, "answer": "x"}], {}, r"a\.jsonl, line 3: the prompt is missing"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, CHAT[1]]}],
            {},
            r"a\.jsonl, line 1: the content of a message is a list of parts",
        ),
        ([{"messages": [{"role": "user", "content": None}, CHAT[1]]}], {}, "no content that is text"),
        (ASKED, {"prompt": "{question} {"}, "brace without its other half"),
        (ASKED, {"prompt": "{question} {}"}, "nothing in braces"),
        (ASKED, {"prompt": "{question:>9}"}, "as it is"),
        ([{"q.text": "one", "a": "x"}], {"prompt": "{q.text}", "answer": "a"}, r"\{q\.text\}"),
        (ASKED, {"instructions": {"tpyo": "Be brief."}}, "'tpyo', which is no domain"),
        (ASKED, {"options": ["Yes", "yes."]}, "cannot be told apart"),
        (
            [{**ASKED[0], "of": ["x", "X"]}],
            {"options": "of"},
            r"a\.jsonl, line 1: the options 'x' and 'X' cannot be told",
        ),
        ([{**ASKED[0], "of": ["x", None]}], {"options": "of"}, "the option is missing"),
        ([*ASKED, {"question": "three", "answer": "Y."}], {"options": "answers"}, "training answers 'y' and 'Y.'"),
    ],
)
def test_what_cannot_be_learned_is_a_sentence(
    rows: list[dict[str, Any]], how: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ContuneError, match=said):
        stream_of(tmp_path, rows, **how)


def test_braces_that_are_text_are_written_twice(tmp_path: Path) -> None:
    assert first(tmp_path, ASKED, prompt="{{x}} {question}", answer="answer").prompt == "{x} one"


def test_a_test_answer_that_training_never_has_is_noted(tmp_path: Path) -> None:
    test = [{"question": "a", "answer": "neutral"}, {"question": "b", "answer": "X"}]
    stream = stream_of(tmp_path, ASKED, test, options="answers")
    assert len(stream.notes) == 1
    assert "1 of 2 test examples cannot be answered right" in stream.notes[0]
    assert "'neutral'" in stream.notes[0]
    assert "b.jsonl, line 1" in stream.notes[0]
    assert stream_of(tmp_path, ASKED, options="answers").notes == ()


def test_the_place_of_a_row_is_no_part_of_it(tmp_path: Path) -> None:
    one = first(tmp_path, ASKED)
    assert one.place.endswith("a.jsonl, line 1")
    assert one == Conversation(one.messages, one.answers, form=one.form)


def test_the_normal_form_goes_with_the_example(tmp_path: Path) -> None:
    assert [first(tmp_path, ASKED, **how).form for how in ({}, {"normalise": "squad"})] == ["plain", "squad"]


def test_test_pieces_may_carry_the_text_before_them(tmp_path: Path) -> None:
    text = "".join(f"Line {number} of it.\n" for number in range(200))
    (tmp_path / "book.txt").write_text(text)
    data: dict[str, Any] = {"train": {"book": str(tmp_path / "book.txt")}}

    def task(context: int) -> Any:
        return load_stream(
            StreamConfig(objective="write", data=data, language={"piece": 100, "context": context})
        ).tasks[0]  # type: ignore[arg-type]

    plain, carried = task(0), task(150)
    assert [one.answer for one in plain.test.inputs] == [one.answer for one in carried.test.inputs]
    assert all(text[: text.index(one.before + one.answer)] is not None for one in carried.test.inputs)
    assert {len(one.before) for one in carried.test.inputs} == {150}
    assert {one.before for one in (*plain.test.inputs, *carried.train.inputs)} == {""}


def test_an_example_that_was_written_before_these_options_reads_as_it_was() -> None:
    from contune.stream.conversation import Message, decoded

    one = Conversation((Message("user", "a"),), ("b",))
    assert str(one) == '[[["user", "a"]], ["b"], [], "exact-match", true]'
    assert decoded(str(one)) == one
    with pytest.raises((DataError, ConfigError, TypeError)):
        decoded('[[["user", "a"]], ["b"], [], "exact-match", true, {"unknown": 1}]')
