"""Answer styles: a share of a task's training exchanges asks for the same answer in another form (SEFE, arXiv 2505.02486).

```text
multiple-choice   the options below the question, and the letter of the right one
yes-no            a statement that the answer is this or that, right or wrong
phrase            the bare answer
sentence          the answer in a brief sentence
```
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import numpy as np

from contune.metric.answers.text import exact_match
from contune.stream.conversation import Conversation, Message

Style = Literal["multiple-choice", "yes-no", "phrase", "sentence"]
STYLES: tuple[Style, ...] = get_args(Style)
LETTERS = "ABCDEFGHIJ"
CHOICES = 4  # options that a question of choice is given at most
SHORT = 8  # words of an answer that is a phrase
SLACK = 1e-9  # a share such as 0.29 of 100 is 28.999... in floating point
STREAM = 2505  # keeps these draws apart from those of the same seed for other purposes
LISTED = re.compile(r"^\s*\(?([A-J])[).:]\s*(\S.*?)\s*$")
YES_NO = ("yes", "no", "true", "false")


@final
@dataclass(frozen=True)
class Question:
    """What is known of an exchange: `stem` asks without options, `answer` is the right one and `wrong` are wrong ones.

    `style` is the form that it asks for as it is.
    """

    stem: str
    answer: str
    wrong: tuple[str, ...]
    style: Style


def listed_options(prompt: str) -> dict[str, str]:
    """The options that a prompt lists by letters, each on a line of its own; none where they do not go A, B, C ...

    >>> listed_options("Which one?\\nA. a dog\\n(B) a cat")
    {'A': 'a dog', 'B': 'a cat'}
    """
    found = [(match[1], match[2]) for line in prompt.split("\n") if (match := LISTED.match(line))]
    letters = "".join(letter for letter, _ in found)
    return dict(found) if len(found) > 1 and LETTERS.startswith(letters) else {}


def without_options(prompt: str) -> str:
    """The prompt without the lines that list options."""
    return "\n".join(line for line in prompt.split("\n") if not LISTED.match(line))


def is_short(text: str) -> bool:
    """Whether a text is a phrase and not a sentence.

    >>> is_short("in 1969"), is_short("It was in 1969."), is_short("one\\ntwo")
    (True, False, False)
    """
    words = text.split()
    sentence = len(words) > 3 and text.rstrip().endswith((".", "!", "?"))
    return 0 < len(words) <= SHORT and "\n" not in text.strip() and not sentence


def question_of(conversation: Conversation, others: Sequence[str]) -> Question | None:
    """What can be asked of an exchange in other forms; None where its answer is no short text, or a document's.

    Wrong answers are its other options; without any, `others`, the short answers of the same task. Whatever the measure of
    exact matches would accept is not wrong.
    """
    if not conversation.messages or conversation.messages[-1].role != "user":
        return None
    prompt, answer, right = conversation.messages[-1].text, conversation.answer.strip(), list(conversation.answers)
    listed, pool, stem = listed_options(prompt), conversation.options or tuple(others), prompt
    style: Style = "yes-no" if answer.lower() in YES_NO else "phrase"
    letter = answer.strip("().:").upper()
    if letter in listed:  # the letter is the answer, and what it stands for is said in the prompt
        pool, stem, answer, right = tuple(listed.values()), without_options(prompt), listed[letter], [listed[letter]]
        style = "multiple-choice"
    elif (
        len(conversation.options) > 1 and style != "yes-no" and all(option in prompt for option in conversation.options)
    ):
        style = "multiple-choice"
    if not is_short(answer) or not stem.strip():
        return None
    wrong = tuple(dict.fromkeys(one.strip() for one in pool if is_short(one) and not exact_match(one, right)))
    return Question(stem, answer, wrong, style)


def open_styles(question: Question | None) -> tuple[Style, ...]:
    """The other styles in which the question can be asked.

    >>> open_styles(Question("Who?", "me", ("you",), "phrase"))
    ('multiple-choice', 'yes-no', 'sentence')
    >>> open_styles(Question("Who?", "me", (), "phrase"))
    ('sentence',)
    """
    if question is None:
        return ()
    fits = {
        "multiple-choice": bool(question.wrong),
        "yes-no": bool(question.wrong) and question.answer.lower() not in YES_NO,
        "phrase": question.style == "multiple-choice",
        "sentence": True,
    }
    return tuple(style for style in STYLES if fits[style] and style != question.style)


def recast(question: Question, style: Style, count: int, generator: np.random.Generator) -> tuple[str, str]:
    """The prompt and the answer in this style; the yes-no questions of even `count` are right, the others wrong.

    >>> recast(Question("Who?", "me", ("you",), "phrase"), "sentence", 0, np.random.default_rng(0))
    ('Who?\\nAnswer in a brief sentence.', 'The answer is me.')
    """
    if style == "phrase":
        return f"{question.stem}\nAnswer with a short phrase.", question.answer
    if style == "sentence":
        return f"{question.stem}\nAnswer in a brief sentence.", f"The answer is {question.answer.rstrip('.')}."
    if style == "yes-no":
        said = question.answer if count % 2 == 0 else str(question.wrong[int(generator.integers(len(question.wrong)))])
        asked = f'{question.stem}\nStatement: the answer is "{said}". Is it right? Answer yes or no.'
        return asked, "yes" if count % 2 == 0 else "no"
    places = generator.permutation(len(question.wrong))[: CHOICES - 1].tolist()
    options = [question.answer, *(question.wrong[place] for place in places)]
    order = generator.permutation(len(options)).tolist()
    lines = [f"{LETTERS[at]}. {options[place]}" for at, place in enumerate(order)]
    asked = "\n".join([question.stem, *lines, "Answer with the letter of the right option."])
    return asked, LETTERS[order.index(0)]


def assigned(styles: Sequence[Sequence[Style]], count: int, order: Sequence[int]) -> dict[int, Style]:
    """A style for `count` rows, or for as many as have one, split evenly: the style with the fewest so far is next.

    >>> assigned([("phrase",), (), ("phrase", "sentence")], 2, [2, 1, 0])
    {2: 'phrase', 0: 'phrase'}
    """
    found: dict[int, Style] = {}
    waiting = {style: [row for row in reversed(order) if style in styles[row]] for style in STYLES}
    sizes = Counter(dict.fromkeys(STYLES, 0))
    while len(found) < count:
        for rows in waiting.values():
            while rows and rows[-1] in found:
                rows.pop()
        left = [style for style in STYLES if waiting[style]]
        if not left:
            break
        style = min(left, key=lambda one: sizes[one])
        found[waiting[style].pop()] = style
        sizes[style] += 1
    return found


def diversified(
    conversations: Sequence[Conversation], share: float, seed: Sequence[int]
) -> tuple[list[Conversation], Mapping[Style, int]]:
    """The exchanges of a task, with `share` of them, rounded down, recast; and how many were recast in each style.

    Answer style diversification (section 3.1): the share is split evenly over the styles other than a question's own.
    Which rows, which wrong answers and which places options take depends on the seed alone. What is recast is judged by
    exact match and has no options. Where fewer rows can be recast than asked for, all of those are.

    Differs: the paper has a language model rewrite what its rules do not, and a fifth style, detailed explanations, which
    no rule can write and which is left out. Only questions with short answers are recast, and from long ones nothing is
    made; a question that names its options keeps them where they cannot be taken out. Wrong answers of a task without
    options are those of its other questions, which a question with several right answers may call wrong unjustly.
    The training data of every method changes: compare methods on the same `share`.
    """
    changed, count = list(conversations), math.floor(share * len(conversations) + SLACK)
    if not count:
        return changed, {}
    generator = np.random.default_rng([*seed, STREAM])
    others = tuple(dict.fromkeys(one.answer.strip() for one in conversations if one.messages and is_short(one.answer)))
    questions = [question_of(conversation, others) for conversation in conversations]
    order = generator.permutation(len(conversations)).tolist()
    sizes = Counter[Style]()
    for row, style in assigned([open_styles(question) for question in questions], count, order).items():
        question, one = questions[row], conversations[row]
        assert question is not None
        asked, answer = recast(question, style, sizes[style], generator)
        messages = (*one.messages[:-1], Message("user", asked))
        changed[row] = replace(
            one, messages=messages, answers=(answer,), options=(), measure="exact-match", verbatim=False
        )
        sizes[style] += 1
    return changed, {style: sizes[style] for style in STYLES if sizes[style]}


def style_note(name: str, total: int, sizes: Mapping[Style, int]) -> str:
    """What a stream's notes say of one task.

    >>> style_note("one", 10, {"yes-no": 1, "sentence": 1})
    "domain 'one': 2 of 10 training exchanges ask in another style (1 yes-no, 1 sentence)"
    """
    if not sizes:
        return f"domain {name!r}: none of {total} training exchanges could be asked in another style"
    counted = ", ".join(f"{size} {style}" for style, size in sizes.items())
    return f"domain {name!r}: {sum(sizes.values())} of {total} training exchanges ask in another style ({counted})"
