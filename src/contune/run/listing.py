"""What is there, and what a configuration would do, in tables for the terminal."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from contune.contract.parts import Trait
from contune.contract.processes import Processes
from contune.engine.learner import Learner
from contune.engine.observer import Observer
from contune.errors import ConfigError
from contune.method.catalog import CATEGORIES, first_sentence, option_defaults, parts, recipes
from contune.method.options import shown_value
from contune.run.config import RunConfig, located
from contune.run.execute import make_learner
from contune.run.lengths import cut_notes
from contune.stream.build import load_stream
from contune.stream.builtin.registry import BUILTIN_STREAMS


def listing(what: str) -> Table:
    """A table of methods, streams or parts: name, what it is, options with their defaults."""
    makers = {"methods": method_rows, "parts": part_rows, "streams": stream_rows}
    if what not in makers:
        raise ConfigError(f"{what!r} cannot be listed; give methods, streams or parts")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, text in makers[what]():
        table.add_row(name, text)
    if what != "streams":
        table.add_row("", Text("contune show NAME says what every option does", style="dim"))
    return table


def method_rows() -> Iterator[tuple[str, Text]]:
    """Every recipe."""
    for name, recipe in recipes().items():
        yield name, described(first_sentence(recipe), option_defaults(recipe))


def part_rows() -> Iterator[tuple[str, Text]]:
    """Every part below its category."""
    for category in CATEGORIES:
        yield f"{category}:", Text()
        for name, part in parts(category).items():
            yield f"  {name}", described(first_sentence(part), option_defaults(part))


def stream_rows() -> Iterator[tuple[str, Text]]:
    """Every built-in stream."""
    for name, stream in BUILTIN_STREAMS.items():
        yield name, described(stream.description, {"tasks": stream.tasks})


def described(sentence: str, options: Mapping[str, object]) -> Text:
    """A sentence with the options and their defaults below it, kept in the background."""
    text = Text(sentence)
    if options:
        text.append("\n" + "  ".join(f"{name}={shown_value(value)}" for name, value in options.items()), style="dim")
    return text


def grouped(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Tensors that differ in their layer's number alone as one line: name and shape, with how many there are.

    >>> grouped({"layers.0.q.lora_A.default.weight": (8, 192), "layers.1.q.lora_A.default.weight": (8, 192)})
    [('layers.*.q.lora_A', '2 x (8, 192)')]
    """
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in shapes.items():
        short = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name).replace("base_model.model.", "")
        key = (short.removesuffix(".default.weight"), shape)
        counts[key] = counts.get(key, 0) + 1
    return [(name, f"{count} x {shape}" if count > 1 else f"{shape}") for (name, shape), count in counts.items()]


def explanation(config: RunConfig, base: Path) -> Table:
    """What would be trained, its size, and the passes over the data, found without running the model on any example."""
    config = located(config, base)
    stream = load_stream(config.stream, base=base)
    learner = make_learner(config, stream, Processes(), Observer())
    experience = list(stream.tasks) if learner.method.joint else [stream.tasks[0]]
    context = learner.begin(experience)
    trained = context.model.trained()
    count = sum(parameter.numel() for parameter in trained.values())
    total = sum(parameter.numel() for parameter in learner.backbone.base_parameters().values())
    counts = [len(task.train) for task in stream.tasks]
    examples = sum(counts)
    tests = sum(len(task.test) for task in stream.tasks)
    layer, depth = context.model.lowest_layer(), learner.backbone.depth
    written = Trait.WRITTEN in learner.objective.traits
    answers = "written answers" if written else f"{len(stream.class_names)} classes"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=config.label(), title_justify="left")
    table.add_row(
        "stream", f"{stream.name}: {len(stream.tasks)} tasks, {answers}, {stream.kind}, objective: {stream.objective}"
    )
    table.add_row("data", f"{examples:,} training and {tests:,} test examples")
    table.add_row(
        "model", f"{config.model.path}: {total:,} parameters, {depth} layers, feature: {learner.backbone.feature}"
    )
    table.add_row(
        "trained", f"{count:,} parameters in the first task ({count / total:.2%} of the model), {count * 4:,} bytes"
    )
    table.add_row("where", where(learner, layer, depth))
    table.add_row("passes", passes(learner, layer, depth, counts, tests))
    for note in (*stream.notes, *cut_notes(learner.backbone, stream)):
        table.add_row("note", note)
    groups = grouped({name: tuple(parameter.shape) for name, parameter in trained.items()})
    for number, (name, shape) in enumerate(groups[:12]):
        table.add_row("tensors" if number == 0 else "", f"{shape}  {name}")
    if len(groups) > 12:
        table.add_row("", f"… and {len(groups) - 12} more kinds")
    return table


def where(learner: Learner, layer: int, depth: int) -> str:
    """Which layers training changes."""
    if layer == depth:
        return "nothing inside the model: features are computed once and kept"
    below = (
        f"; the {layer} layers below are computed once and kept" if layer and not learner.settings.fresh_views else ""
    )
    return f"layers {layer} to {depth - 1}{below}"


def passes(learner: Learner, layer: int, depth: int, counts: Sequence[int], tests: int) -> str:
    """An estimate of how many examples go through the model, from the number that each task has."""
    examples, tasks = sum(counts), len(counts)
    if layer == depth:
        return f"{examples + tests:,} examples forward, none backward"
    forward = tests * (tasks + 1) // 2 if not learner.method.joint else tests
    whole = [examples] if learner.method.joint else counts
    learned = whole[:1] if learner.method.adapt == "first-task" else whole
    steps = sum(count * learner.settings.epochs_over(count) for count in learned)
    replayed = " (and what rules replay)" if learner.method.rules else ""
    return f"about {steps:,} examples forward and backward{replayed}, {forward:,} more forward in evaluation"
