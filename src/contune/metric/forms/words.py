"""Texts as words, numbers and signs, whatever their script: what two answers are compared by.

```text
word      letters, marks and digits, with a point or an apostrophe inside, and signs at their end: don't, main.py, c++, a-
          Chinese, Japanese, Thai, Lao, Khmer, Burmese: every letter, since no blanks part their words
number    by its value: 1,000 is 1000.0, -5 is not 5, 3.5 is not 35, 1/2 is 0.5
sign      < > = + % $ # and whatever else says something; sentence marks, quotes and round brackets do not
```
"""

import re
import string
import unicodedata
from fractions import Fraction
from typing import Literal, NamedTuple

from contune.metric.forms.stemmer import stem

Form = Literal["plain", "squad", "superni"]

_PLAIN_NUMBER = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)"
NUMBER = re.compile(rf"[-+]?(?:{_PLAIN_NUMBER}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w)|/\d+)?(?![./]?\d)")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_MINUS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_HOW_SHOWN = dict.fromkeys(range(0xFE00, 0xFE10))  # variation selectors
_ALIKE = {**_FULL_WIDTH, **_MINUS, **_HOW_SHOWN, ord("\u2019"): "'", ord("\u02bc"): "'"}
MOST_DIGITS = 1000  # longer ones are compared as they are written
_SIGNS_OF_PUNCTUATION = frozenset("#%&*/@\\[]{}")  # the rest of Unicode's punctuation marks sentences
_AT_THE_END = frozenset("+#*-")  # signs that belong to the word before them: C++, C#, A*, A-
# Scripts without blanks between words: Thai to Lao, Burmese, Khmer, kana and bopomofo, Chinese characters.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F), (0x31A0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF)),
)


class Token(NamedTuple):
    """A word, number or sign. `closed`: something other than a blank stands behind it, or nothing."""

    text: str
    closed: bool = False


def folded(text: str) -> str:
    """Lower case in composed letters, full-width letters as plain ones, one kind of dash and apostrophe.

    >>> folded("Ａ–Ｂ, O’Neill")
    "a-b, o'neill"
    """
    return unicodedata.normalize("NFC", text.translate(_ALIKE).lower())


def tokens(text: str) -> list[Token]:
    """The words, numbers and signs of a text, in order; where it has none, its other characters.

    >>> [token.text for token in tokens("It's C++, not C: 1,000.50 > -5!")]
    ["it's", 'c++', 'not', 'c', '2001/2', '>', '-5']
    >>> [token.text for token in tokens("今天 好")], [token.text for token in tokens("...")]
    (['今', '天', '好'], ['.', '.', '.'])
    """
    line, found, at = folded(_bare(text)), [], 0
    while at < len(line):
        said, stop = _next(line, at)
        if said:
            behind = line[stop : stop + 1]
            found.append(Token(said, not behind.isspace()))
        at = stop
    return found or [Token(character, True) for character in line if not character.isspace()]


def number_at(line: str, at: int) -> re.Match[str] | None:
    """A number that begins at this place of a folded text, no part of a word or of another number."""
    before = line[at - 1 : at] if at else ""
    if before == "." or _is_word(before) or (line[at] in "-+" and before in (")", "]")):
        return None
    return NUMBER.match(line, at)


def value_of(number: str) -> Fraction | None:
    """The value of a number as it is written; None for a division by nothing and for more than `MOST_DIGITS`.

    >>> value_of("1,000.50"), value_of("3/4"), value_of("1/0")
    (Fraction(2001, 2), Fraction(3, 4), None)
    """
    if len(number) > MOST_DIGITS:
        return None
    whole, _, below = number.replace(",", "").partition("/")
    if not below:
        return Fraction(whole)
    return Fraction(whole) / int(below) if int(below) else None


def normal_form(text: str, form: Form = "plain") -> tuple[str, ...]:
    """What an answer is compared by; empty where it says nothing.

    `plain`: the tokens above; articles stay. `squad`: lower case, without ASCII punctuation and articles (the evaluation of
    SQuAD, arXiv 1606.05250). `superni`: the same with its articles (Super-NaturalInstructions, arXiv 2204.07705).

    >>> normal_form("The Eiffel-Tower!"), normal_form("The Eiffel-Tower!", "squad")
    (('the', 'eiffel', 'tower'), ('eiffeltower',))
    """
    if form == "plain":
        return tuple(token.text for token in tokens(text))
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return tuple((_ARTICLES.sub(" ", bare) if form == "squad" else bare).split())


def words(text: str, form: Form = "plain") -> list[str]:
    """The words that ROUGE counts: runs of letters and digits, or single letters where a script has no blanks.

    `squad`: those of the normal form. `superni`: `[a-z0-9]+`, those of more than three letters as Porter stems, as the
    package rouge-score has them.

    >>> words("Größe: 3.5 m"), words("the runners", "superni")
    (['größe', '3', '5', 'm'], ['the', 'runner'])
    """
    if form == "squad":
        return list(normal_form(text, form))
    if form == "superni":
        found = re.findall(r"[a-z0-9]+", text.lower())
        return [stem(word) if len(word) > 3 else word for word in found]
    line, parts, at = folded(text), [], 0
    while at < len(line):
        stop = _word_end(line, at, inside="") if _is_word(line[at]) and line[at] != "_" else at
        parts += [line[at:stop]] if stop > at else []
        at = max(stop, at + 1)
    return parts


def says_something(text: str) -> bool:
    """Whether a text has a letter, a digit or a sign, and not sentence marks alone.

    >>> says_something("A"), says_something(">"), says_something("...")
    (True, True, False)
    """
    return any(unicodedata.category(one)[0] in "LNS" or one in _SIGNS_OF_PUNCTUATION for one in text)


def _bare(text: str) -> str:
    """The text without blanks around it, nor the stars and backticks that set all of it off."""
    text = text.strip()
    while len(text) > 2 and text[0] in "*`" and text[-1] == text[0] and text.strip(text[0]).strip():
        text = text[1:-1].strip()
    return text


def _next(line: str, at: int) -> tuple[str, int]:
    """The token that begins here, nothing where none does, and where to go on."""
    character = line[at]
    number = number_at(line, at) if character.isdecimal() or character in "+-." else None
    if number is not None and (value := value_of(number[0])) is not None:
        return str(value), number.end()
    if _is_word(character):
        stop = _word_end(line, at, inside=".'")
        end = stop
        while end < len(line) and line[end] in _AT_THE_END:
            end += 1
        if end == len(line) or not _is_word(line[end]):
            stop = end
        return line[at:stop], stop
    return (character if _is_sign(line, at) else ""), at + 1


def _word_end(line: str, at: int, inside: str) -> int:
    """Where the word that begins here ends; `inside` are signs that may stand between its letters."""
    stop = at + 1
    unspaced = _unspaced(line[at])
    while stop < len(line):
        character, behind = line[stop], line[stop + 1 : stop + 2]
        if unspaced and not _is_mark(character):
            break
        joins = _is_word(character) and not (character == "_" and not inside)
        if not joins and not (character in inside and _is_word(behind) and not _unspaced(behind)):
            break
        if _unspaced(character) and not _is_mark(character):
            break
        stop += 1
    return stop


def _is_sign(line: str, at: int) -> bool:
    """Whether a character that is no part of a word or number says something."""
    character, before, behind = line[at], line[at - 1 : at] if at else "", line[at + 1 : at + 2]
    kind = unicodedata.category(character)
    if character == "-":
        near = line[:at].rstrip()[-1:].isdecimal() and line[at + 1 :].lstrip()[:1].isdecimal()
        return near or (not _is_word(before) and before != "-" and bool(behind) and not behind.isspace())
    if character == ":":
        return before.isdecimal() and behind.isdecimal()
    return kind[0] == "S" or character in _SIGNS_OF_PUNCTUATION


def _is_word(character: str) -> bool:
    return bool(character) and (
        character == "_" or character in "\u200c\u200d" or unicodedata.category(character)[0] in "LNM"
    )


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _unspaced(character: str) -> bool:
    code = ord(character)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED)
