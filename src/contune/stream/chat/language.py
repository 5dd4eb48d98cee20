"""Language streams: instructions, conversations, classification in words, and plain documents; every domain is a task.

```text
JSON lines, CSV, Parquet   messages | instruction (input) output | prompt completion | question answer | text label
plain text                 documents, cut into pieces where they break best; their last part is held out for the test
```
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, final, get_args

from contune.errors import ConfigError, DataError, did_you_mean
from contune.metric.answers.text import chosen_score, same_forms
from contune.stream.chat.answer_styles import diversified, style_note
from contune.stream.chat.documents import asked_pieces, document_exchanges, read_text
from contune.stream.config import TEXT_SUFFIXES, DataConfig, LanguageConfig, Paths, StreamConfig, template_columns
from contune.stream.conversation import Conversation, Measure, Message, Role, every_answer, language_examples
from contune.stream.order import arrival_order, split_rows
from contune.stream.read.files import found_paths, paths_by_group
from contune.stream.read.rows import BadRow, Place, RawTable, settle_bad_rows
from contune.stream.read.tables import read_table
from contune.stream.task import Examples, Stream, Task

# Usual layouts, the first that fits is taken: the columns of the prompt and the column of the answer.
LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("instruction", "input"), "output"),
    (("instruction",), "output"),
    (("prompt",), "completion"),
    (("prompt",), "response"),
    (("question",), "answer"),
    (("input",), "output"),
    (("text",), "label"),
)
VERBATIM = (("prompt",), "completion")  # joined as they stand
NO_CLASS = ("answer",)  # of a stream without classes: answers are text


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Exchanges with their row numbers, and the rows that cannot be used."""

    conversations: Sequence[Conversation]
    ids: Sequence[int]
    bad: Sequence[BadRow] = ()


def load_language_stream(config: StreamConfig, base: Path) -> Stream:
    """Read the domains, in the order of `order_seed`; raises DataError naming file and row, before any training."""
    data, how = config.data, config.language or LanguageConfig()
    if not isinstance(data, DataConfig) or not isinstance(data.train, dict):
        raise ConfigError(
            "objective is write, where every domain is a task; give data.train (and data.test) as mappings from the name of "
            "the domain to its file"
        )
    if data.validation is not None:
        raise ConfigError(
            "data.validation is not read where objective is write; hold a share out with stream.validation"
        )
    names = list(config.domains or data.train)
    unknown = [name for name in names if name not in data.train]
    if unknown or len(names) != len(data.train):
        raise ConfigError(f"stream.domains must name every domain of data.train once; these are {list(data.train)}")
    _require_known(how, [*names, *(how.retention_sets or {})])
    train_files = paths_by_group(data.train, base)
    test_files = paths_by_group(data.test, base) if isinstance(data.test, dict) else {}
    tasks: list[Task] = []
    bad: list[BadRow] = []
    counted: list[str] = []
    for place, name in enumerate(names):
        train, test = read_domain(name, train_files[name], test_files.get(name, []), how)
        bad += [*train.bad, *test.bad]
        task, notes = _restyled(_task(name, train, test, config, place), config, place)
        tasks.append(task)
        counted += [*never_trained(task), *notes]
    found = (*settle_bad_rows(bad, skip_bad=config.skip_bad), *counted)
    ordered = [tasks[at] for at in arrival_order(len(tasks), config.order_seed)]
    retention_sets = tuple(
        _retention_set(name, files, config, base) for name, files in (how.retention_sets or {}).items()
    )
    name, order = ", ".join(names), config.order_seed
    return Stream(name, config.kind, tuple(ordered), order, found, retention_sets, config.objective)


def _require_known(how: LanguageConfig, names: Sequence[str]) -> None:
    unknown = [name for name in how.instructions or {} if name not in names]
    if unknown:
        raise ConfigError(
            f"stream.language.instructions has {unknown[0]!r}, which is no domain; {did_you_mean(unknown[0], names)}"
        )


def never_trained(task: Task) -> list[str]:
    """A note where test examples have no right answer among their options: none that training has, so none to choose."""
    asked: list[Conversation] = [one for one in task.test.inputs if one.options]
    lost = [one for one in asked if not any(chosen_score(option, one.answers) for option in one.options)]
    if not lost:
        return []
    names = ", ".join(map(repr, list(dict.fromkeys(one.answer for one in lost))[:5]))
    where = f", the first at {lost[0].place}" if lost[0].place else ""
    return [
        f"domain {task.name!r}: {len(lost)} of {len(asked)} test examples cannot be answered right, since no training "
        f"example has their answer ({names}){where}"
    ]


def _retention_set(name: str, files: Paths, config: StreamConfig, base: Path) -> Task:
    """A set that is asked and never learned, read as the domains are."""
    how = config.language or LanguageConfig()
    paths = found_paths(files, base)
    if all(path.name.lower().endswith(TEXT_SUFFIXES) for path in paths):
        conversations = [conversation for path in paths for conversation in asked_pieces(path, how)]
        split = Split(conversations, range(len(conversations)))
    else:
        split = joined_splits([read_exchanges(path, name, how) for path in paths])
        answers = tuple(dict.fromkeys(answer for one in split.conversations for answer in one.answers))
        split = with_options(split, answers, how)
    settle_bad_rows(split.bad, skip_bad=config.skip_bad)
    if not split.conversations:
        why = f" ({split.bad[0].place}: {split.bad[0].reason})" if split.bad else ""
        raise DataError(f"retention set {name!r} has no usable example{why}; give at least one")
    asked, _ = split_rows(len(split.conversations), share=0.0, keep=how.test_examples, seed=(config.seed,))
    chosen = language_examples(
        [split.conversations[at] for at in asked.tolist()], [split.ids[at] for at in asked.tolist()]
    )
    return Task(name, NO_CLASS, chosen, chosen)


def _task(name: str, train: Split, test: Split, config: StreamConfig, place: int) -> Task:
    """One domain; `per_class` keeps as many of its examples, `validation` holds some out."""
    if not train.conversations or not test.conversations:
        what, split = ("training", train) if not train.conversations else ("test", test)
        why = f" ({split.bad[0].place}: {split.bad[0].reason})" if split.bad else ""
        raise DataError(f"domain {name!r} has no usable {what} example{why}; give at least one")
    share, seed = config.validation, (config.seed, place)
    kept, held = split_rows(len(train.conversations), share=share, keep=config.per_class, seed=seed)
    how = config.language or LanguageConfig()
    asked, _ = split_rows(len(test.conversations), share=0.0, keep=how.test_examples, seed=seed)

    def some(split: Split, rows: Sequence[int]) -> Examples:
        return language_examples([split.conversations[at] for at in rows], [split.ids[at] for at in rows])

    validation = some(train, held.tolist()) if len(held) else None
    learned = some(train, kept.tolist())
    if how.learn_turns == "all":
        turns = [turn for conversation in learned.inputs for turn in every_answer(conversation)]
        learned = language_examples(turns, range(len(turns)))
    return Task(name, NO_CLASS, learned, some(test, asked.tolist()), validation)


def _restyled(task: Task, config: StreamConfig, place: int) -> tuple[Task, list[str]]:
    """The task with a share of its training exchanges in other answer styles, and a note that counts them."""
    styles = None if config.language is None else config.language.styles
    if styles is None or not styles.share:
        return task, []
    conversations, sizes = diversified(task.train.inputs, styles.share, (config.seed, place))
    train = language_examples(conversations, task.train.ids.tolist())
    return replace(task, train=train), [style_note(task.name, len(conversations), sizes)]


def read_domain(name: str, files: Sequence[Path], tests: Sequence[Path], how: LanguageConfig) -> tuple[Split, Split]:
    """Training and test exchanges of one domain."""
    if all(file.name.lower().endswith(TEXT_SUFFIXES) for file in [*files, *tests]):
        return _documents(files, tests, how)
    if not tests:
        raise ConfigError(
            f"domain {name!r} has training data but data.test has none for it; only plain text files can do without, "
            "whose end is held out"
        )
    learned = [read_exchanges(file, name, how) for file in files]
    options = tuple(dict.fromkeys(answer for split in learned for one in split.conversations for answer in one.answers))
    both = (joined_splits(learned), joined_splits([read_exchanges(file, name, how) for file in tests]))
    return cast(tuple[Split, Split], tuple(with_options(split, options, how) for split in both))


def joined_splits(splits: Sequence[Split]) -> Split:
    """Several files one after another; ids go on counting."""
    conversations: list[Conversation] = []
    ids: list[int] = []
    bad: list[BadRow] = []
    first = 0
    for split in splits:
        conversations += split.conversations
        ids += [first + number for number in split.ids]
        bad += split.bad
        first += max([*split.ids, -1]) + 1
    return Split(conversations, ids, bad)


def with_options(split: Split, labels: Sequence[str], how: LanguageConfig) -> Split:
    """The options `labels` (every answer that training has), where the configuration asks for them."""
    if how.options != "answers" or not split.conversations:
        return split
    alike = same_forms(labels)
    if alike:
        raise DataError(
            f"the training answers {alike[0]!r} and {alike[1]!r} of the domain cannot be told apart as options (case and "
            f"sentence marks do not count; {split.conversations[0].place or 'its rows'} and others); write them alike"
        )
    changed = [replace(one, options=tuple(labels), measure=_measure(how, True)) for one in split.conversations]
    return replace(split, conversations=changed)


def _measure(how: LanguageConfig, options: bool) -> Measure:
    if how.measure != "auto":
        return how.measure
    return "likelihood" if options else "exact-match"


def read_exchanges(path: Path, domain: str, how: LanguageConfig) -> Split:
    """The rows of a table file as exchanges; bad rows come back with the reason."""
    table = read_table(path)
    turns_of, answers_of = _columns(table, domain, how)
    options = _options(table, how)
    verbatim = _verbatim(table, how)
    found, ids, bad = [], [], list(table.broken)
    for at, number in enumerate(table.positions):
        place = Place(table.source, table.unit, table.numbers[at])
        reason = None
        try:
            messages, answers, choices = turns_of(at), answers_of(at), options(at)
            reason = _reason(messages, answers, choices)
        except ValueError as error:
            reason = str(error)
        if reason is not None:
            bad.append(BadRow(place, reason, "fill it in or remove the row"))
            continue
        measure = _measure(how, bool(choices))
        found.append(
            Conversation(messages, answers, choices, measure, form=how.normalise, verbatim=verbatim, place=str(place))
        )
        ids.append(number)
    return Split(found, ids, sorted(bad, key=lambda row: row.place.number))


def _reason(messages: Sequence[Message], answers: Sequence[str], options: Sequence[str]) -> str | None:
    """What is wrong with a row, or None."""
    if not any(turn.text.strip() for turn in messages):
        return "the prompt is empty"
    if not answers or not all(answer.strip() for answer in answers):
        return "the answer is empty"
    if options and not any(chosen_score(option, answers) for option in options):
        return f"the answer {answers[0]!r} is not among the options"
    alike = same_forms(options)
    if alike:
        return f"the options {alike[0]!r} and {alike[1]!r} cannot be told apart (case and sentence marks do not count)"
    return None


def _verbatim(table: RawTable, how: LanguageConfig) -> bool:
    """Whether the rows are a prompt and its completion, which are joined as they stand."""
    if how.prompt is not None or "messages" in table.columns:
        return False
    first = next((layout for layout in LAYOUTS if all(name in table.columns for name in (*layout[0], layout[1]))), None)
    return first == VERBATIM and how.answer in (None, "completion")


def _columns(
    table: RawTable, domain: str, how: LanguageConfig
) -> tuple[Callable[[int], tuple[Message, ...]], Callable[[int], tuple[str, ...]]]:
    """How to get the turns and the answers of a row."""
    if "messages" in table.columns and how.prompt is None:
        messages = table.read("messages")
        return (lambda at: _conversation(messages[at])[:-1]), (lambda at: (_conversation(messages[at])[-1].text,))
    template, answer = _layout(table, how)
    used, verbatim = template_columns(template), _verbatim(table, how)
    for name in [*used, answer]:
        if name not in table.columns:
            raise DataError(
                f"{table.source} has no column {name!r}; its columns are {', '.join(map(repr, table.columns))}; "
                f"{did_you_mean(name, table.columns)} Set stream.language.prompt and stream.language.answer"
            )
    values = {name: table.read(name) for name in {*used, answer}}
    before = [text for text in ((how.instructions or {}).get(domain), domain if how.name_in_prompt else None) if text]

    def turns_of(at: int) -> tuple[Message, ...]:
        row = {name: values[name][at] for name in used}
        if row and all(is_missing(value) for value in row.values()):
            raise ValueError(f"the prompt is missing ({', '.join(row)})")
        filled = template.format(**{name: "" if is_missing(value) else str(value) for name, value in row.items()})
        text = "\n".join([*before, filled])
        return (Message("user", text if verbatim else text.strip()),)

    return turns_of, lambda at: _answers(values[answer][at], verbatim=how.options is None)


def _layout(table: RawTable, how: LanguageConfig) -> tuple[str, str]:
    """The prompt's template and the answer's column: as configured, or the first usual layout that fits."""
    for prompt, answer in LAYOUTS:
        if answer in table.columns and all(name in table.columns for name in prompt):
            return how.prompt or "\n".join(f"{{{name}}}" for name in prompt), how.answer or answer
    if how.prompt is not None and how.answer is not None:
        return how.prompt, how.answer
    raise DataError(
        f"{table.source} has the columns {', '.join(map(repr, table.columns))}, which are none of the usual layouts "
        "(messages; instruction, input and output; prompt and completion; question and answer; text and label); say what "
        "to ask with stream.language.prompt, such as '{text}', and name the column of the answer with "
        "stream.language.answer"
    )


def _options(table: RawTable, how: LanguageConfig) -> Callable[[int], tuple[str, ...]]:
    if how.options is None or how.options == "answers":
        return lambda at: ()
    if isinstance(how.options, list):
        fixed = tuple(how.options)
        return lambda at: fixed
    if how.options not in table.columns:
        raise DataError(f"{table.source} has no column {how.options!r} for the options")
    values = table.read(how.options)
    return lambda at: _answers(values[at], verbatim=False, what="option")


def is_missing(value: object) -> bool:
    """Whether a cell is empty: null, or the number that is none, as tables with gaps have it.

    >>> is_missing(None), is_missing(float("nan")), is_missing(""), is_missing(0)
    (True, True, False, False)
    """
    return value is None or (isinstance(value, float) and math.isnan(value))


def _answers(value: object, *, verbatim: bool, what: str = "answer") -> tuple[str, ...]:
    """The texts of a cell; blanks around them are kept where they are learned as they stand."""
    items = value if isinstance(value, list) else [value]
    if any(is_missing(item) for item in items):
        raise ValueError(f"the {what} is missing")
    if any(not isinstance(item, str | int | float) for item in items):
        raise ValueError(f"the {what} is a {type(value).__name__} and not a text or a list of texts")
    return tuple(str(item) if verbatim else str(item).strip() for item in items)


def _conversation(value: object) -> tuple[Message, ...]:
    """The turns of a chat, up to the last one of the assistant, which is the answer."""
    if not isinstance(value, list):
        raise ValueError("the messages are no list")
    messages = []
    for item in value:
        content_of_it = item.get("content") if isinstance(item, Mapping) else None
        if isinstance(content_of_it, list):
            raise ValueError(
                "the content of a message is a list of parts, where a text is learned; write its text alone"
            )
        if not isinstance(item, Mapping) or not isinstance(content_of_it, str):
            raise ValueError("a message has no content that is text")
        if item.get("role") not in get_args(Role):
            raise ValueError(
                f"a message has the role {item.get('role')!r}, which is none of system, user and assistant"
            )
        messages.append(Message(item["role"], content_of_it))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if len(messages) < 2:
        raise ValueError("the messages hold no answer of the assistant to anything")
    return tuple(messages)


def _documents(files: Sequence[Path], tests: Sequence[Path], how: LanguageConfig) -> tuple[Split, Split]:
    """Pieces of documents; without test files, the last part of every file is held out."""
    learned = [conversation for file in files for conversation in document_exchanges(read_text(file), how, str(file))]
    if tests:
        asked = [conversation for file in tests for conversation in asked_pieces(file, how)]
    else:
        learned, asked = [], []
        for file in files:
            pieces_of_file = document_exchanges(read_text(file), how, str(file))
            border = max(1, round((1 - how.held_out) * len(pieces_of_file)))
            learned += pieces_of_file[:border]
            asked += asked_pieces(file, how)[border:]
    return Split(learned, range(len(learned))), Split(asked, range(len(asked)))
