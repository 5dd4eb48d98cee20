"""What happens in a stream, one thing after another: examples arrive, a task ends, a question is asked.

A stream of tasks is the events of its tasks; a stream without tasks has the same examples in chunks and tells nobody where
one task ends and the next begins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from contune.errors import ConfigError
from contune.stream.task import Examples, Stream, Task


@final
@dataclass(frozen=True, eq=False)
class Arrive:
    """Examples to learn from; their labels are positions in `class_names`."""

    examples: Examples
    class_names: tuple[str, ...]


@final
@dataclass(frozen=True)
class Boundary:
    """A task has ended; `task` is its name."""

    task: str


@final
@dataclass(frozen=True, eq=False)
class Ask:
    """Everything that is known now is to be asked about: the tests of the first `tasks` of the stream.

    `ends`: a task of the stream has just ended, as who measures knows. `regular`: it is one of the questions that come at
    equal distances.
    """

    tasks: int
    ends: bool = True
    regular: bool = False


Event = Arrive | Boundary | Ask


def events_of_tasks(stream: Stream) -> Iterator[Event]:
    """Every task as a whole, its end, and a question about all tasks so far.

    >>> from contune.stream import StreamConfig, load_stream
    >>> [type(one).__name__ for one in events_of_tasks(load_stream(StreamConfig(data="digits", tasks=1)))]
    ['Arrive', 'Boundary', 'Ask']
    """
    for number, task in enumerate(stream.tasks, 1):
        yield Arrive(task.train, task.class_names)
        yield Boundary(task.name)
        yield Ask(number)


def events_in_chunks(stream: Stream, chunk: int, ask_every: int, seed: int) -> Iterator[Event]:
    """One pass in chunks of `chunk` examples without a word about tasks; a question every `ask_every` examples.

    The tasks come in their order and each one's examples in an order drawn by `seed`. There is a question at the end of
    every task as well, where the accuracy matrix has its rows; the learner is told of neither.
    """
    if chunk < 1 or ask_every < 1:
        raise ConfigError(f"chunk is {chunk} and the questions come every {ask_every} examples; give at least 1")
    came = 0
    for number, task in enumerate(stream.tasks, 1):
        order = np.random.default_rng((seed, number)).permutation(len(task.train))
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            yield Arrive(task.train.take(rows), task.class_names)
            before, came = came, came + len(rows)
            last = start + chunk >= len(order)
            regular = came // ask_every > before // ask_every
            if last or regular:
                yield Ask(number, last, regular)


def task_of(event: Arrive, name: str) -> Task:
    """What arrived, as a task that nothing tests."""
    return Task(name, event.class_names, event.examples, event.examples.take([]))
