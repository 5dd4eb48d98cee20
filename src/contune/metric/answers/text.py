"""Scores of written answers, between 0 and 1, and whether an answer has the form that was asked for.

A wrong form (no option named, no number given, nothing said) is a failure of its own: a model may still know the task
and have forgotten only how to answer it (superficial against essential forgetting, SEFE, arXiv 2505.02486).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, final

from contune.metric.forms.words import (
    Form,
    Token,
    folded,
    normal_form,
    number_at,
    says_something,
    tokens,
    value_of,
    words,
)

# An option that is also a word of the language: "A good answer", "I think". Named where one of these follows it.
_ARTICLES = frozenset(("a", "i"))
_VERBS = frozenset(("is", "was", "because", "since", "as", "and", "or", "but", "would", "seems", "fits", "applies"))
_NOT = frozenset(("not", "neither", "nor", "isn't", "never"))
_CUES = frozenset(("answer", "option", "choice", "correct", "right"))
_BE = frozenset(("is", "be", "are", "was", "="))


@final
@dataclass(frozen=True)
class Judgement:
    """How good an answer is, from 0 to 1, and whether it had the form that was asked for."""

    score: float
    well_formed: bool


def exact_match(given: str, answers: Sequence[str], form: Form = "plain") -> float:
    """1 where the answer has the normal form of one of the right ones, else 0. What says nothing matches nothing.

    >>> exact_match("The cat.", ["dog", "the cat"]), exact_match("", ["a"]), exact_match("5", ["-5"])
    (1.0, 0.0, 0.0)
    >>> exact_match("a cat", ["cat"]), exact_match("a cat", ["cat"], "squad"), exact_match("", ["a"], "squad")
    (0.0, 1.0, 0.0)
    """
    said = normal_form(given, form)
    return float(bool(said) and said in {normal_form(answer, form) for answer in answers})


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    >>> longest_common("a b c d".split(), "b x d".split())
    2
    """
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def rouge_l(given: str, answers: Sequence[str], form: Form = "plain") -> float:
    """The best F1 of the longest common subsequence of words (ROUGE-L, Lin 2004; beta 1).

    Without stems, but with `superni`, where it is the number of the package rouge-score with its stemmer on. An answer
    without any word is compared by its normal form.

    >>> rouge_l("the cat sat", ["the cat lay", "a dog"])
    0.6666666666666666
    >>> rouge_l("runner", ["runners"]), rouge_l("runner", ["runners"], "superni"), rouge_l(">", [">"])
    (0.0, 1.0, 1.0)
    """
    said = words(given, form)
    best = 0.0
    for answer in answers:
        right = words(answer, form)
        common = longest_common(said, right)
        if common:
            precision, recall = common / len(said), common / len(right)
            best = max(best, 2 * precision * recall / (precision + recall))
        elif not said and not right and form == "plain":
            best = max(best, exact_match(given, [answer]))
    return best


class Mention(NamedTuple):
    """An option in a text: its number, and the tokens from `start` to `stop` that say it."""

    option: int
    start: int
    stop: int


def named_option(given: str, options: Sequence[str]) -> str | None:
    """The option that an answer names; None where none, or more than one, is named.

    The one that it equals; else the one behind "the answer is"; else the one it begins with; else the only one it holds.
    Of options inside one another the longest counts. "A good one" and "I think" name neither A nor I, and what follows
    "not" is not named.

    >>> named_option("(B) because", ["A", "B"]), named_option("A good answer is B", ["A", "B"])
    ('B', 'B')
    >>> named_option("neither A nor B", ["A", "B"]) is None, named_option("C++", ["C", "D"]) is None
    (True, True)
    """
    said = tokens(given)
    spelled = [normal_form(option) for option in options]
    whole = tuple(token.text for token in said)
    if whole in spelled:
        return options[spelled.index(whole)]
    found = [one for one in mentions(said, spelled) if _is_named(said, one)]
    after_cue = {one.option for one in found if _cued(said, one.start)}
    if len(after_cue) == 1:
        return options[after_cue.pop()]
    if found and found[0].start == 0:
        return options[found[0].option]
    named = {one.option for one in found}
    return options[named.pop()] if len(named) == 1 else None


def mentions(said: Sequence[Token], spelled: Sequence[Sequence[str]]) -> list[Mention]:
    """Where options stand in a text, from left to right, the longest at every place; none overlap."""
    found: list[Mention] = []
    at = 0
    while at < len(said):
        here = [
            Mention(option, at, at + len(parts))
            for option, parts in enumerate(spelled)
            if parts and [token.text for token in said[at : at + len(parts)]] == list(parts)
        ]
        best = max(here, key=lambda one: one.stop, default=None)
        found += [] if best is None else [best]
        at = at + 1 if best is None else best.stop
    return found


def _is_named(said: Sequence[Token], one: Mention) -> bool:
    """Whether a mention means the option: no article or pronoun, and nothing that is denied."""
    if one.start and said[one.start - 1].text in _NOT:
        return False
    first, behind = said[one.start], said[one.stop].text if one.stop < len(said) else ""
    alone = one.stop - one.start == 1 and first.text in _ARTICLES
    return not alone or first.closed or not behind.isalpha() or behind in _VERBS


def _cued(said: Sequence[Token], start: int) -> bool:
    """Whether "the answer is", "the right choice would be" or "answer:" stands right before a token."""
    before = [token.text for token in said[max(start - 6, 0) : start]]
    if not before:
        return False
    if before[-1] in _BE:
        return any(word in _CUES for word in before[:-1])
    return before[-1] in _CUES and (said[start - 1].closed or before[-1] in ("answer", "option", "choice"))


def final_number(text: str) -> str | None:
    """The number after the last `####`, or else the last one in the text, without thousands separators.

    >>> final_number("5 + 5 = 10 #### 1,010"), final_number("so 7.50 in all"), final_number("none") is None
    ('1010', '7.50', True)
    """
    after = _numbers(text.rpartition("####")[2]) if "####" in text else []
    found = after[:1] or _numbers(text)[-1:]
    return found[0].replace(",", "") if found else None


def _numbers(text: str) -> list[str]:
    line, found, at = folded(text), [], 0
    while at < len(line):
        number = number_at(line, at) if line[at].isdecimal() or line[at] in "+-." else None
        if number is not None and value_of(number[0]) is not None:
            found.append(number[0])
        at = at + 1 if number is None else number.end()
    return found


def _value(text: str) -> Fraction | None:
    found = final_number(text)
    return None if found is None else value_of(found)


def judged(given: str, answers: Sequence[str], options: Sequence[str], measure: str, form: Form = "plain") -> Judgement:
    """The score of a written answer by its measure.

    >>> judged("18 apples, so #### 18", ["#### 18.0"], [], "number")
    Judgement(score=1.0, well_formed=True)
    >>> judged("maybe", ["yes"], ["yes", "no"], "options")
    Judgement(score=0.0, well_formed=False)
    """
    if measure in ("options", "likelihood"):
        named = named_option(given, options)
        return Judgement(0.0 if named is None else chosen_score(named, answers), named is not None)
    if measure == "number":
        number = _value(given)
        return Judgement(
            float(number is not None and number in {_value(answer) for answer in answers}), number is not None
        )
    score = rouge_l(given, answers, form) if measure == "rouge-l" else exact_match(given, answers, form)
    return Judgement(score, score > 0 or says_something(given))


def chosen_score(option: str, answers: Sequence[str]) -> float:
    """1 where a chosen option is one of the right answers, by normal form.

    >>> chosen_score("Good", ["good"]), chosen_score("C", ["C++"])
    (1.0, 0.0)
    """
    return exact_match(option, answers)


def same_forms(options: Sequence[str]) -> tuple[str, str] | None:
    """Two options that cannot be told apart in an answer, or None.

    >>> same_forms(["C", "C++", "c."]), same_forms(["yes", "no"])
    (('C', 'c.'), None)
    """
    seen: dict[tuple[str, ...], str] = {}
    for option in options:
        before = seen.setdefault(normal_form(option), option)
        if before is not option:
            return before, option
    return None
