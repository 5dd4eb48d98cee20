"""When two written answers count as equal: in every script, and never where they differ in what they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contune.metric.answers.text import exact_match, final_number, judged, named_option, rouge_l, same_forms
from contune.metric.forms.stemmer import stem
from contune.metric.forms.words import Form, normal_form, words

DIFFERENT = (
    *(("", "A"), ("the", "A"), ("a", "the"), ("", ""), (" ", "\n"), ("...", "?"), ("!", "?")),
    *(("5", "-5"), ("314", "3.14"), ("15", "1.5"), ("1/2", "12"), ("2-3", "23"), ("3.5.1", "3.51"), ("10:30", "1030")),
    *(
        ("1.000", "1,000"),
        ("0.5", "5"),
        ("5 - 3", "5 3"),
        ("50%", "50"),
        ("$5", "5"),
        ("1e3", "13"),
        ("1" * 5000, "1" * 5001),
    ),
    *(("<", ">"), ("x>y", "x<y"), ("c", "C++"), ("C#", "C"), ("A-", "A"), ("A+", "A"), ("-x", "x"), ("[]", "{}")),
    *(("größe", "grüße"), ("resume", "résumé"), ("की", "का"), ("是", "否"), ("да", "нет"), ("👍", "👎"), ("x²", "x2")),
    *(("we're", "were"), ("main.py", "main py"), ("(0,1)", "[0,1]")),
)
EQUAL = (
    *(("A", "A"), ("A", "a."), ("(B)", "b"), ("**Yes**", "yes"), ('"yes"', "yes"), ("- yes", "yes"), ("?", "?")),
    *(
        ("1,000", "1000"),
        ("1,000.0", "1000"),
        ("1,00,000", "100000"),
        ("+5", "5"),
        ("-0", "0"),
        (".5", "0.50"),
        ("1e3", "1000"),
    ),
    *(
        ("\N{MINUS SIGN}5", "-5"),
        ("٥", "5"),
        ("5 kg", "5kg"),
        ("1/2", "0.5"),
        ("$1,000.00", "$1000"),
        ("1" * 5000, "1" * 5000),
    ),
    *(
        ("well-known", "well known"),
        ("don\N{RIGHT SINGLE QUOTATION MARK}t", "don't"),
        ("é", "e\N{COMBINING ACUTE ACCENT}"),
    ),
    *(
        ("ＡＢ", "ab"),
        ("«\N{NO-BREAK SPACE}oui\N{NO-BREAK SPACE}»", "oui"),
        ("「はい」", "はい"),
        ("今天。", "今天"),
        ("c++", "C++"),
    ),
)


@pytest.mark.parametrize("pair", DIFFERENT, ids=repr)
def test_answers_that_differ_stay_different(pair: tuple[str, str]) -> None:
    said, right = pair
    assert judged(said, [right], [], "exact-match").score == 0
    assert judged(right, [said], [], "exact-match").score == 0


@pytest.mark.parametrize("pair", EQUAL, ids=lambda pair: repr(pair)[:40])
def test_answers_that_say_the_same_are_equal(pair: tuple[str, str]) -> None:
    said, right = pair
    assert judged(said, [right], [], "exact-match").score == 1
    assert judged(right, [said], [], "exact-match") == judged(said, [right], [], "exact-match")


def test_saying_nothing_is_a_failure_of_form_and_never_right() -> None:
    for measure in ("exact-match", "rouge-l"):
        for form in ("plain", "squad", "superni"):
            assert judged("", ["a"], [], measure, form).score == 0  # type: ignore[arg-type]
        assert not judged("", ["a"], [], measure).well_formed
        assert not judged("...", ["a"], [], measure).well_formed
    assert judged("A", ["A"], [], "exact-match").well_formed
    assert judged("?", ["?"], [], "exact-match").well_formed


@given(st.text(max_size=20))
def test_every_text_that_has_a_form_equals_itself(text: str) -> None:
    assert (
        exact_match(text, [text])
        == float(bool(normal_form(text)))
        == float(bool(text.strip()) and bool(normal_form(text)))
    )
    assert rouge_l(text, [text]) == exact_match(text, [text])


@pytest.mark.parametrize(
    ("form", "said", "right", "score"),
    [
        ("squad", "The cat.", "cat", 1.0),  # articles and punctuation aside
        ("squad", "3.5", "35", 1.0),  # as published, and why it is no default
        ("squad", "a", "the", 0.0),
        ("superni", "The cat.", "cat", 0.0),
        ("superni", "The cat.", "the cat", 1.0),
        ("superni", "Eiffel-Tower", "eiffeltower", 1.0),
        ("plain", "The cat.", "cat", 0.0),
    ],
)
def test_the_fields_two_normal_forms(form: Form, said: str, right: str, score: float) -> None:
    assert judged(said, [right], [], "exact-match", form).score == score


@pytest.mark.parametrize(
    ("said", "right", "score", "plain"),
    [  # the numbers of rouge-score 0.1.2 with use_stemmer=True
        ("The runners were running quickly through the fields", "A runner ran quick through many fields", 0.4, 4 / 15),
        ("generalizations of relational databases", "generalize the relation of a database", 0.6, 0.2),
        ("skies and flies, 3.5 times", "the sky and a fly 3.5 time", 5 / 7, 3 / 7),
        ("Police killed the gunman", "the gunman was killed by policemen", 0.4, 0.4),
    ],
)
def test_rouge_l_of_stems_is_the_published_one(said: str, right: str, score: float, plain: float) -> None:
    assert rouge_l(said, [right], "superni") == pytest.approx(score)
    assert rouge_l(said, [right]) == pytest.approx(plain)


def test_stems_are_porters_with_the_departures_of_nltk() -> None:
    found = {
        "caresses": "caress",
        "ponies": "poni",
        "cats": "cat",
        "agreed": "agre",
        "plastered": "plaster",
        "sing": "sing",
        "conflated": "conflat",
        "troubled": "troubl",
        "falling": "fall",
        "hissing": "hiss",
        "filing": "file",
        "happy": "happi",
        "enjoy": "enjoy",
        "dies": "die",
        "died": "die",
        "flies": "fli",
        "skies": "sky",
        "vietnamization": "vietnam",
        "electricity": "electr",
        "hopefulness": "hope",
        "archaeology": "archaeolog",
        "adoption": "adopt",
        "rate": "rate",
        "cease": "ceas",
        "controll": "control",
        "is": "is",
    }
    assert {word: stem(word) for word in found} == found


def test_rouge_l_sees_the_words_of_every_script() -> None:
    for text in ("今天天气很好", "добрый день", "καλημέρα", "नमस्ते दुनिया", "สวัสดี", "مرحبا"):
        assert rouge_l(text, [text]) == 1
    assert rouge_l("größe", ["grüße"]) == 0
    assert rouge_l("今天天气很好", ["今天天气不好"]) == pytest.approx(5 / 6)
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]  # marks belong to their letters


@pytest.mark.parametrize(
    ("said", "options", "named"),
    [
        ("A good answer is B", ["A", "B"], "B"),
        ("A better choice would be B", ["A", "B"], "B"),
        ("I think II", ["I", "II"], "II"),
        ("It is not A but B", ["A", "B"], "B"),
        ("A because of that", ["A", "B"], "A"),
        ("A: it is better than B", ["A", "B"], "A"),
        ("The correct answer is A, not B", ["A", "B"], "A"),
        ("neither A nor B", ["A", "B"], None),
        ("not entailment", ["entailment", "contradiction"], None),
        ("not entailment", ["entailment", "not entailment"], "not entailment"),
        ("C++", ["C", "D"], None),
        ("C++ of course", ["C", "C++"], "C++"),
        ("否", ["是", "否"], "否"),
        ("不是", ["是", "不是"], "不是"),
        ("нет", ["да", "нет"], "нет"),
        ("لا", ["نعم", "لا"], "لا"),
        ("x = y", ["<", ">", "="], "="),
        ("It is 3.5", ["35", "3.5"], "3.5"),
        ("-1", ["1", "-1"], "-1"),
        ("New York city", ["New", "New York"], "New York"),
    ],
)
def test_which_option_an_answer_names(said: str, options: list[str], named: str | None) -> None:
    assert named_option(said, options) == named
    for right in options:
        assert judged(said, [right], options, "options").score == float(right == named)


def test_options_that_cannot_be_told_apart_are_found() -> None:
    assert same_forms(["Good", "bad", "good."]) == ("Good", "good.")
    assert same_forms(["1,000", "1000"]) == ("1,000", "1000")
    assert same_forms(["C", "C++", "C#", "c-"]) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(
            ("#### -1,234.50", "-1234.50"),
            ("it costs $5.", "5"),
            ("5-3", "3"),
            ("x=-4", "-4"),
            ("1,2,3", "3"),
            (".5", ".5"),
        ),
        *(("1/2", "1/2"), ("H2O", None), ("", None), ("1/0", None), ("2.5e3", "2.5e3")),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_numbers_are_compared_exactly() -> None:
    assert judged("so 0.5", ["1/2"], [], "number").score == 1
    assert judged("1e400", ["2e400"], [], "number").score == 0
    assert judged("9007199254740993", ["9007199254740992"], [], "number").score == 0
