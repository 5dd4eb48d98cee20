"""Scores of written answers, between 0 and 1, and whether an answer has the form that was asked for.

A wrong form (no option named, no number given, nothing said) is a failure of its own: a model may still know the task
and have forgotten only how to answer it (superficial against essential forgetting, SEFE, arXiv 2505.02486).
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"[a-z0-9]+")


@final
@dataclass(frozen=True)
class Judgement:
    """How good an answer is, from 0 to 1, and whether it had the form that was asked for."""

    score: float
    well_formed: bool


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (SQuAD's evaluation, arXiv 1606.05250).

    >>> normalised(" The  Eiffel-Tower! ")
    'eiffeltower'
    """
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(given: str, answers: Sequence[str]) -> float:
    """1 where the normalised answer equals one of the right ones, else 0.

    >>> exact_match("The cat.", ["dog", "cat"]), exact_match("cats", ["cat"])
    (1.0, 0.0)
    """
    return float(normalised(given) in {normalised(answer) for answer in answers})


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


def rouge_l(given: str, answers: Sequence[str]) -> float:
    """The best F1 of the longest common subsequence of words (ROUGE-L, Lin 2004; beta 1, no stemming).

    >>> rouge_l("the cat sat", ["the cat lay", "a dog"])
    0.6666666666666666
    """
    words = _WORD.findall(given.lower())
    best = 0.0
    for answer in answers:
        right = _WORD.findall(answer.lower())
        common = longest_common(words, right)
        if common:
            precision, recall = common / len(words), common / len(right)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def named_option(given: str, options: Sequence[str]) -> str | None:
    """The option that an answer names: the one it equals, else the one it begins with, else the only one it holds.

    Compared in lower case and without punctuation; None where no option, or more than one, is named.

    >>> named_option("(B) because", ["A", "B"]), named_option("Positive.", ["negative", "positive"])
    ('B', 'positive')
    >>> named_option("neither A nor B", ["A", "B"]) is None
    True
    """
    said = _WORD.findall(given.lower())
    spelled = {option: _WORD.findall(option.lower()) for option in options}
    for option, words in spelled.items():
        if words == said:
            return option
    begun = [option for option, words in spelled.items() if words and said[: len(words)] == words]
    if begun:
        return max(begun, key=lambda option: len(spelled[option]))
    inside = [option for option, words in spelled.items() if words and _holds(said, words)]
    return inside[0] if len(inside) == 1 else None


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    return any(list(words[at : at + len(part)]) == list(part) for at in range(len(words) - len(part) + 1))


def final_number(text: str) -> str | None:
    """The number after the last `####`, or else the last one in the text, without thousands separators.

    >>> final_number("5 + 5 = 10 #### 1,010"), final_number("so 7.50 in all"), final_number("none") is None
    ('1010', '7.50', True)
    """
    after = _NUMBER.findall(text.rpartition("####")[2]) if "####" in text else []
    found = after[:1] or _NUMBER.findall(text)[-1:]
    return found[0].replace(",", "") if found else None


def judged(given: str, answers: Sequence[str], options: Sequence[str], measure: str) -> Judgement:
    """The score of a written answer by its measure.

    >>> judged("18 apples, so #### 18", ["#### 18.0"], [], "number")
    Judgement(score=1.0, well_formed=True)
    >>> judged("maybe", ["yes"], ["yes", "no"], "options")
    Judgement(score=0.0, well_formed=False)
    """
    if measure in ("options", "likelihood"):
        named = named_option(given, options)
        return Judgement(float(named is not None and named in answers), named is not None)
    if measure == "number":
        number = final_number(given)
        right = {float(found) for answer in answers if (found := final_number(answer)) is not None}
        return Judgement(float(number is not None and float(number) in right), number is not None)
    said = bool(normalised(given))
    score = rouge_l(given, answers) if measure == "rouge-l" else exact_match(given, answers)
    return Judgement(score, said)
