"""What of a stream does not fit the model: found before anything is trained, in every task, its tests and its options.

A prompt that does not fit is an error that names file and row; what is cut instead is counted, and said.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

from contune.backbone.backbone import Backbone
from contune.backbone.reader.chat import tokens_of
from contune.errors import DataError
from contune.stream.conversation import Conversation
from contune.stream.task import Examples, Stream, Task

WHAT = {"training": "training texts", "validation": "validation texts", "test": "test texts"}


def cut_notes(backbone: Backbone, stream: Stream) -> list[str]:
    """A sentence that counts the texts of a stream that are cut to fit the model; nothing where none is.

    Raises `DataError` where one does not fit and may not be cut, or has a token that the model does not know.
    """
    limit, written = backbone.parts.reader.longest, backbone.parts.language is not None
    if limit is None:
        return []
    cut, all_ = Counter[str](), Counter[str]()
    worst = Counter[str]()
    for task, split, examples in splits(stream):
        try:
            lost = backbone.prepare(examples.inputs).truncated
            if written:
                backbone.prepare(longest_options(examples.inputs, OptionLengths(backbone)))
        except DataError as error:
            raise DataError(f"{split} data of {task.name!r}: {error}") from error
        cut[split] += lost
        all_[split] += len(examples)
        worst[task.name] += lost
    counted = [f"{cut[split]:,} of {all_[split]:,} {what}" for split, what in WHAT.items() if cut[split]]
    if not counted:
        return []
    name, most = worst.most_common(1)[0]
    how = "lost their beginning (model.cut_prompts)" if written else "lost their end"
    where = f", {most:,} of them in {name!r}" if len(stream.tasks) > 1 else ""
    return [
        f"longer than the {limit} tokens that fit: {' and '.join(counted)} were cut and {how}{where} (model.max_length)"
    ]


def splits(stream: Stream) -> Iterator[tuple[Task, str, Examples]]:
    """Every set of examples of a stream, retention sets among the tests."""
    for task in stream.tasks:
        yield task, "training", task.train
        if task.validation is not None:
            yield task, "validation", task.validation
        yield task, "test", task.test
    for task in stream.retention_sets:
        yield task, "test", task.test


@final
class OptionLengths:
    """Tokens of options, each counted once."""

    def __init__(self, backbone: Backbone) -> None:
        self._tokenizer = backbone.language.reader.tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, option: str) -> int:
        if option not in self._known:
            self._known[option] = len(tokens_of(self._tokenizer, option))
        return self._known[option]


def longest_options(conversations: Sequence[Conversation], length: OptionLengths) -> list[Conversation]:
    """What has to fit where options are weighed: every prompt with the longest of its options."""
    weighed = [one for one in conversations if one.options and one.measure == "likelihood"]
    return [replace(one, answers=(max(one.options, key=length),), options=()) for one in weighed]
