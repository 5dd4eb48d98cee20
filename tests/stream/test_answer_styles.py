"""Answer styles: how many are recast, that every recast answer is right, and that nothing else changes."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contune.metric.answers.text import exact_match
from contune.stream import StreamConfig, load_stream
from contune.stream.chat.answer_styles import (
    STYLES,
    Question,
    assigned,
    diversified,
    listed_options,
    open_styles,
    question_of,
    recast,
    style_note,
)
from contune.stream.conversation import Conversation, Message
from contune.stream.task import Stream

COLOURS = ("red", "blue", "dark green", "yellow", "black", "white")


def conversation(prompt: str, answer: str, options: tuple[str, ...] = (), **more: Any) -> Conversation:
    return Conversation((Message("system", "Be brief."), Message("user", prompt)), (answer,), options, **more)


def coloured(count: int, options: tuple[str, ...] = COLOURS) -> list[Conversation]:
    return [conversation(f"Which colour has thing {at}?", COLOURS[at % len(COLOURS)], options) for at in range(count)]


def style_of(prompt: str) -> str:
    """The style that a recast prompt asks for, by its last line."""
    ends = {
        "Answer with the letter of the right option.": "multiple-choice",
        "Answer yes or no.": "yes-no",
        "Answer with a short phrase.": "phrase",
        "Answer in a brief sentence.": "sentence",
    }
    return next((style for end, style in ends.items() if prompt.endswith(end)), "as it was")


def is_right(new: Conversation, right: tuple[str, ...]) -> bool:
    """Whether a recast answer follows from the right answers of the question that it was."""
    prompt, answer = new.messages[-1].text, new.answer
    style = style_of(prompt)
    if style == "multiple-choice":
        lines = re.findall(r"^([A-D])\. (.*)$", prompt, flags=re.MULTILINE)
        accepted = [letter for letter, text in lines if exact_match(text, right)]
        return 2 <= len(lines) <= 4 and accepted == [answer]
    if style == "yes-no":
        said = re.findall(r'^Statement: the answer is "(.*)"\. Is it right\? Answer yes or no\.$', prompt, re.MULTILINE)
        return answer == ("yes" if exact_match(said[-1], right) else "no")
    if style == "sentence":
        inside = re.fullmatch(r"The answer is (.*)\.", answer)
        return inside is not None and bool(exact_match(inside[1], right))
    return style == "phrase" and bool(exact_match(answer, right))


def counted(conversations: list[Conversation], plain: list[Conversation]) -> Counter[str]:
    return Counter(style_of(new.prompt) for new, old in zip(conversations, plain, strict=True) if new != old)


@given(st.integers(0, 150), st.floats(0, 1), st.integers(0, 5), st.booleans())
@settings(max_examples=60)
def test_the_share_is_rounded_down_and_split_evenly(count: int, share: float, seed: int, options: bool) -> None:
    plain = coloured(count, COLOURS if options else ())
    new, sizes = diversified(plain, share, (seed,))
    wanted = math.floor(share * count + 1e-9)
    if count < 2 and not options:  # nothing is wrong but what others answer, so sentences alone are left
        assert set(sizes) <= {"sentence"}
    elif count > len(COLOURS) or options:
        assert (
            max(sizes.get(s, 0) for s in STYLES if s != "phrase")
            - min(sizes.get(s, 0) for s in STYLES if s != "phrase")
            <= 1
        )
    assert sum(sizes.values()) == wanted
    assert counted(new, plain) == Counter(sizes)
    assert len(new) == count


@given(st.integers(2, 60), st.floats(0.1, 1), st.integers(0, 20))
@settings(max_examples=60)
def test_every_recast_answer_is_right(count: int, share: float, seed: int) -> None:
    plain = coloured(count, COLOURS if seed % 2 else ())
    listed = [conversation(f"Pick for {at}.\nA. cat\nB. a dog\nC. The cat", "B", ("A", "B", "C")) for at in range(5)]
    texts = ["a dog" if one in listed else one.answer for one in [*plain, *listed]]
    new, _ = diversified([*plain, *listed], share, (seed,))
    for before, after, right in zip([*plain, *listed], new, texts, strict=True):
        if before != after:
            assert is_right(after, (right,))
            assert after.messages[0] == before.messages[0]
            assert (after.options, after.measure, after.ends) == ((), "exact-match", True)


def test_a_wrong_letter_would_be_noticed() -> None:
    question = Question("Who?", "me", ("you", "they"), "phrase")
    asked, answer = recast(question, "multiple-choice", 0, np.random.default_rng(0))
    assert is_right(conversation(asked, answer), ("me",))
    other = "A" if answer != "A" else "B"
    assert not is_right(conversation(asked, other), ("me",))
    asked, answer = recast(question, "yes-no", 1, np.random.default_rng(0))
    assert answer == "no"
    assert not is_right(conversation(asked, "yes"), ("me",))


@given(st.integers(0, 30), st.integers(0, 3))
@settings(max_examples=30)
def test_a_share_of_zero_changes_nothing(count: int, seed: int) -> None:
    plain = coloured(count)
    new, sizes = diversified(plain, 0.0, (seed,))
    assert [str(one) for one in new] == [str(one) for one in plain]
    assert not sizes


@given(st.integers(5, 40), st.integers(0, 3), st.floats(0.2, 1))
@settings(max_examples=30)
def test_the_seed_decides_alone(count: int, seed: int, share: float) -> None:
    first, _ = diversified(coloured(count), share, (seed, 1))
    again, _ = diversified(coloured(count), share, (seed, 1))
    assert first == again


def test_other_seeds_recast_other_rows() -> None:
    found = [diversified(coloured(60), 0.2, (seed,))[0] for seed in (0, 1)]
    assert found[0] != found[1]


def test_half_of_the_statements_are_right_and_letters_differ() -> None:
    new, sizes = diversified(coloured(300), 0.9, (0,))
    said = Counter(one.answer for one in new if style_of(one.prompt) == "yes-no")
    assert abs(said["yes"] - said["no"]) <= 1
    letters = Counter(one.answer for one in new if style_of(one.prompt) == "multiple-choice")
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > sizes["multiple-choice"] / 8


@given(
    st.lists(st.lists(st.sampled_from(STYLES), unique=True, max_size=4), max_size=40), st.integers(0, 50), st.randoms()
)
def test_as_many_rows_as_can_be_are_recast(styles: list[list[Any]], count: int, random: Any) -> None:
    order = list(range(len(styles)))
    random.shuffle(order)
    found = assigned(styles, count, order)
    assert len(found) == min(count, sum(bool(each) for each in styles))
    assert all(style in styles[row] for row, style in found.items())


@pytest.mark.parametrize(
    ("one", "style", "answer", "open_"),
    [
        (conversation("Who?", "me", ("me", "you")), "phrase", "me", ("multiple-choice", "yes-no", "sentence")),
        (conversation("me or you?", "me", ("me", "you")), "multiple-choice", "me", ("yes-no", "phrase", "sentence")),
        (conversation("Who?\nA. me\nB. you", "B"), "multiple-choice", "you", ("yes-no", "phrase", "sentence")),
        (conversation("Is it?", "yes", ("yes", "no")), "yes-no", "yes", ("multiple-choice", "sentence")),
        (conversation("Where?", "in France"), "phrase", "in France", ("sentence",)),
    ],
    ids=["options", "named options", "letters", "yes or no", "nothing wrong known"],
)
def test_questions_by_hand(one: Conversation, style: str, answer: str, open_: tuple[str, ...]) -> None:
    question = question_of(one, [])
    assert question is not None
    assert (question.style, question.answer, open_styles(question)) == (style, answer, open_)


@pytest.mark.parametrize(
    "one",
    [
        Conversation((), ("a document",), (), "tokens"),
        conversation("Why?", "Because it rained all day long, and the river rose and rose."),
        conversation("Why?", "a\nb"),
        Conversation((Message("user", "a"), Message("assistant", "b")), ("c",)),
    ],
    ids=["document", "long", "lines", "no question at the end"],
)
def test_what_cannot_be_recast_stays(one: Conversation) -> None:
    assert question_of(one, ["x"]) is None
    new, sizes = diversified([one] * 10, 1.0, (0,))
    assert new == [one] * 10
    assert style_note("a", 10, sizes).startswith("domain 'a': none of 10")


def test_what_the_measure_accepts_is_not_wrong() -> None:
    question = question_of(Conversation((Message("user", "Who?"),), ("the cat", "tom"), ("The Cat!", "Tom", "dog")), [])
    assert question is not None
    assert question.wrong == ("dog",)


def test_lists_that_do_not_go_by_letters_are_no_options() -> None:
    assert listed_options("A. one") == {}
    assert listed_options("B. one\nC. two") == {}
    assert listed_options("A) one\nB) two\nand more") == {"A": "one", "B": "two"}


def stream_of(tmp_path: Path, **language: Any) -> Stream:
    data: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for name, rows in (("colours", coloured(50)), ("others", coloured(40))):
        for split in data:
            file = tmp_path / f"{name}-{split}.jsonl"
            file.write_text("\n".join(json.dumps({"prompt": one.prompt, "completion": one.answer}) for one in rows))
            data[split][name] = str(file)
    return load_stream(StreamConfig(objective="write", data=data, language=language or None, validation=0.2))  # type: ignore[arg-type]


def test_a_stream_recasts_its_training_data_alone(tmp_path: Path) -> None:
    plain, styled = stream_of(tmp_path), stream_of(tmp_path, styles={"share": 0.5})
    for before, after in zip(plain.tasks, styled.tasks, strict=True):
        assert before.test.content_hash() == after.test.content_hash()
        assert before.validation is not None
        assert after.validation is not None
        assert before.validation.content_hash() == after.validation.content_hash()
        assert before.train.ids.tolist() == after.train.ids.tolist()
        different = sum(one != other for one, other in zip(before.train.inputs, after.train.inputs, strict=True))
        assert different == len(before.train) // 2
    assert [note for note in styled.notes if "in another style" in note] == list(styled.notes)
    assert "domain 'colours': 20 of 40 training exchanges ask in another style (7 multiple-choice," in str(styled.notes)
    assert plain.notes == ()
    assert stream_of(tmp_path, styles={"share": 0.5}).content_hash() == styled.content_hash()
    by_default = stream_of(tmp_path, styles={})
    assert "domain 'colours': 8 of 40" in str(by_default.notes)


def test_a_share_of_zero_is_the_stream_without_styles(tmp_path: Path) -> None:
    plain, zero = stream_of(tmp_path), stream_of(tmp_path, styles={"share": 0.0})
    assert plain.content_hash() == zero.content_hash()
    assert zero.notes == ()


def test_options_of_the_training_data_are_the_wrong_answers(tmp_path: Path) -> None:
    styled = stream_of(tmp_path, options="answers", styles={"share": 1.0})
    for task in styled.tasks:
        assert {style_of(one.prompt) for one in task.train.inputs} == {"multiple-choice", "yes-no", "sentence"}
        assert all(one.options == COLOURS or set(one.options) == set(COLOURS) for one in task.test.inputs)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        StreamConfig(objective="write", data="x", language={"styles": {"share": 1.2}})  # type: ignore[arg-type]
