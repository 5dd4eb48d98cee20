"""Answers for new inputs from a finished or stopped run."""

from collections.abc import Callable, Iterator
from pathlib import Path

from contune.backbone.config import ModelConfig
from contune.contract.objective import Prediction
from contune.engine.learner import Learner
from contune.errors import DataError, RunDirectoryError
from contune.run.config import read_resolved
from contune.run.execute import choose_device, make_method, resolved_values
from contune.run.folder.directory import RunDirectory
from contune.run.folder.unchanged import require_unchanged
from contune.stream import read_inputs
from contune.stream.inputs import Inputs
from contune.stream.modality import Modality, find_modality


def load_learner(directory: Path) -> Learner:
    """The learner as the newest whole checkpoint between tasks left it; the stream's data is not needed."""
    found = RunDirectory.open(directory).newest()
    if found is None:
        raise RunDirectoryError(f"{directory} has no checkpoint yet; finish a task first: contune resume {directory}")
    state, position, _ = found
    config, _ = read_resolved(directory)
    if position["step"]:
        raise RunDirectoryError(f"{directory} stopped inside a task; finish it first: contune resume {directory}")
    model: ModelConfig = config.model
    learner = Learner(
        model,
        make_method(config),
        objective=config.stream.objective,
        kind=config.stream.kind,
        train=config.train,
        cache=config.cache,
        device=choose_device(config.device),
    )
    if "config" in position:
        require_unchanged(position["config"], resolved_values(config, learner), directory)
    learner.load_state(state)
    return learner


def predict_file(
    directory: Path, source: Path, task: int | None, say: Callable[[str], None] = lambda _text: None
) -> Iterator[tuple[str, str]]:
    """Each input's name and answer; `say` is told how many inputs were cut."""
    yield from answered(load_learner(directory), source, task, say)


def answered(
    learner: Learner, source: Path, task: int | None, say: Callable[[str], None] = lambda _text: None
) -> Iterator[tuple[str, Prediction]]:
    """Each input's name and a learner's answer to it."""
    inputs, names = _inputs(source, find_modality(learner.backbone.modality), learner.objective.name)
    longest = learner.backbone.parts.reader.longest
    cut = 0 if longest is None else learner.backbone.prepare(inputs).truncated
    if cut:
        say(
            f"{cut:,} of {len(names):,} texts are longer than the {longest} tokens that fit and were cut (model.max_length)"
        )
    yield from zip(names, learner.predict(inputs, task=task), strict=True)


def _inputs(source: Path, modality: Modality, objective: str) -> tuple[Inputs, list[str]]:
    asked_with = {modality.name, *modality.asked_with}
    if "text" in asked_with and source.suffix == ".txt":
        texts = lines_of(source)
        return texts, texts
    found = read_inputs(source, objective=objective if modality.asked_for else "classify")
    if found.modality not in asked_with:
        raise DataError(f"{source} holds {found.modality} inputs but the run's model reads {modality.name}")
    return found.inputs, [str(place) for place in found.places]


def lines_of(source: Path) -> list[str]:
    """The lines of a UTF-8 text file as they stand, one input each, blank ones too: answers and lines go together.

    Lines end with a newline, or a carriage return and a newline, and with nothing else.
    """
    try:
        whole = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
    lines = [line.removesuffix("\r") for line in whole.removesuffix("\n").split("\n")]
    if not whole.strip():
        raise DataError(f"{source} holds no text; write one text a line")
    return lines
