"""The common checks: what must hold for every method and every part, tried on real digits with a tiny frozen model."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.checks.run import (
    CheckFailed,
    CheckRun,
    MakeMethod,
    accuracy,
    checked_run,
    copied,
    digit_tasks,
    new_learner,
    require,
    same_state,
    tiny_model,
)
from contune.contract.data import Dataset
from contune.errors import CombinationError
from contune.stream.task import Examples, Image, Task

Check = Callable[[MakeMethod, CheckRun], None]


def check_learns(make: MakeMethod, trial: CheckRun) -> None:
    """Right after a task the method answers it well above chance."""
    del make
    chance, reached = 1 / len(trial.learner.class_names), float(np.mean(trial.scores))
    require(reached > chance + 0.1, f"accuracy on the task just learned is {reached:.2f}, chance {chance:.2f}")


def check_absent(make: MakeMethod, trial: CheckRun) -> None:
    """With the adapter absent the features are those of the untouched model, to the bit, before and after training."""
    if trial.trains_the_base:
        return
    untouched = Backbone.load(ModelConfig(path=tiny_model()), device="cpu")
    fresh = new_learner(make())
    require(fresh.base_unchanged(), "attaching the adapter changed the base weights")
    for learner, when in ((fresh, "attached"), (trial.learner, "trained")):
        with learner.method.adapter.disabled():
            features = frozen_features(learner.backbone)
        same = torch.equal(features, frozen_features(untouched))
        require(same, f"with the adapter {when} and absent, the features differ from the untouched model's")


def frozen_features(backbone: Backbone) -> Tensor:
    """Features of a few digits."""
    images = digit_tasks()[0].train.take(range(8)).inputs
    with torch.no_grad():
        return backbone.features(backbone.collate([(backbone.prepare(images), np.arange(8))]))


def check_base_unchanged(make: MakeMethod, trial: CheckRun) -> None:
    """The base weights keep every bit, and no frozen tensor holds a gradient; methods that train the base are exempt."""
    del make
    if trial.trains_the_base:
        return
    require(trial.learner.base_unchanged(), "the base weights have changed")
    base = trial.learner.backbone.base_parameters()
    held = [name for name, parameter in base.items() if parameter.grad is not None]
    require(not held, f"frozen tensor {held[:1]} holds a gradient")


def check_declared(make: MakeMethod, trial: CheckRun) -> None:
    """Gradient steps move what the method declares as trained, and no other tensor of the model."""
    del make
    require(not trial.undeclared, f"tensor {trial.undeclared[:1]} moved but is not declared as trained")


def check_no_dead_tensor(make: MakeMethod, trial: CheckRun) -> None:
    """Every trained tensor has moved after the first task."""
    del make
    require(not trial.dead, f"tensor {trial.dead[:1]} is trained but has not moved")


def check_exact_resume(make: MakeMethod, trial: CheckRun) -> None:
    """Stopped inside the second task and loaded into a fresh learner, it ends with the same bits."""
    place = trial.checkpoint
    assert place is not None
    again = new_learner(make())
    loaded = again.load_state(copied(place.state), trial.experiences[place.experience] if place.step else ())
    context = loaded if place.step and loaded is not None else again.begin(trial.experiences[place.experience])
    again.fit(context, lambda report: None, done=place.step, memory=place.memory)
    again.end(context)
    for experience in trial.experiences[place.experience + 1 :]:
        again.learn(experience)
    problem = same_state(trial.learner.state(), again.state())
    require(problem is None, f"after resuming at step {place.step}: {problem}")


def check_rows_independent(make: MakeMethod, trial: CheckRun) -> None:
    """An answer does not depend on the other rows of its batch."""
    del make
    images = few_images()
    together = trial.learner.predict(images)
    alone = [trial.learner.predict([image])[0] for image in images]
    require(together == alone, f"together the answers are {together}, one by one {alone}")


def few_images() -> list[Image]:
    """Two test digits of every task."""
    return [image for task in digit_tasks() for image in task.test.inputs[:2]]


def check_predicts_purely(make: MakeMethod, trial: CheckRun) -> None:
    """Answering changes nothing that the method remembers, and gives the same answers again."""
    del make
    before, first = copied(trial.learner.state()), trial.learner.predict(few_images())
    require(trial.learner.predict(few_images()) == first, "asked twice, the answers differ")
    problem = same_state(before, trial.learner.state())
    require(problem is None, f"answering changed the method's memory: {problem}")


def check_no_task_named(make: MakeMethod, trial: CheckRun) -> None:
    """The answers do not depend on which task an example is said to come from."""
    del make
    data = trial.learner.test_dataset(digit_tasks()[0])
    said = Dataset(data.examples, data.prepared, data.labels, np.full_like(data.tasks, trial.learner.learned - 1))
    same = np.array_equal(trial.learner.answers(data), trial.learner.answers(said))
    require(same, "the answers change with the task that the test examples are said to come from")


def check_any_classes(make: MakeMethod, trial: CheckRun) -> None:
    """Tasks of unequal size with their classes in another order are learned as well."""
    del trial
    learner = new_learner(make())
    first, second, third = digit_tasks()
    tasks, scores = [renamed(third), merged(second, first)], []
    for experience in [tasks] if learner.method.joint else [[task] for task in tasks]:
        learner.learn(experience)
        scores.append(accuracy(learner, experience))
    chance, reached = 1 / len(learner.class_names), float(np.mean(scores))
    require(reached > chance, f"with other class orders accuracy is {reached:.2f}, chance {chance:.2f}")


def renamed(task: Task) -> Task:
    """The task with its classes listed the other way round."""
    last = len(task.class_names) - 1
    train, test = (Examples(e.inputs, last - e.labels, e.ids, e.modality) for e in (task.train, task.test))
    return Task(task.name, tuple(reversed(task.class_names)), train, test)


def merged(first: Task, second: Task) -> Task:
    """One task with the classes of two."""
    shift = len(first.class_names)
    both = []
    for one, two in ((first.train, second.train), (first.test, second.test)):
        labels = np.concatenate([one.labels, two.labels + shift])
        ids = np.concatenate([one.ids, two.ids])
        both.append(Examples([*one.inputs, *two.inputs], labels, ids, "image"))
    return Task("merged", (*first.class_names, *second.class_names), *both)


def check_degenerate_tasks(make: MakeMethod, trial: CheckRun) -> None:
    """A task with one class, one with one example a class, and classes that come back are survived."""
    del trial
    learner = new_learner(make())
    first, second, _ = digit_tasks()
    alone = np.flatnonzero(first.train.labels == 0)
    single = Task("one class", first.class_names[:1], first.train.take(alone[:5]), first.test.take(range(0)))
    rows = [int(np.flatnonzero(second.train.labels == label)[0]) for label in (0, 1)]
    few = Task("one example a class", second.class_names, second.train.take(rows), second.test)
    for experience in [[single, few]] if learner.method.joint else [[single], [few], [few]]:
        learner.learn(experience)
    answers = set(learner.predict(few_images()))
    require(answers <= set(learner.class_names), f"after degenerate tasks it answers {sorted(answers)}")


def check_memory(make: MakeMethod, trial: CheckRun) -> None:
    """What is kept grows at most linearly with the tasks."""
    del make
    kept = trial.bytes_kept
    if len(kept) == 3:
        earlier, later = kept[1] - kept[0], kept[2] - kept[1]
        require(
            later <= 1.5 * max(earlier, 0) + 4096,
            f"the third task added {later} bytes, the second {earlier}: more each time",
        )


CHECKS: dict[str, Check] = {
    "learns": check_learns,
    "leaves the base unchanged": check_base_unchanged,
    "is gone when absent": check_absent,
    "changes only what it declares": check_declared,
    "has no dead tensor": check_no_dead_tensor,
    "resumes exactly": check_exact_resume,
    "answers each row on its own": check_rows_independent,
    "changes nothing by answering": check_predicts_purely,
    "needs no task named": check_no_task_named,
    "takes classes in any order": check_any_classes,
    "survives degenerate tasks": check_degenerate_tasks,
    "keeps no more each time": check_memory,
}
NO_PEEKING = "never looks at test data"


def check_method(make: MakeMethod, trial: CheckRun | None = None) -> Iterator[tuple[str, str | None]]:
    """Every check's title and what is wrong, or None. `trial`: what `run_trial(make)` gave, where it has been run."""
    try:
        trial = trial or checked_run(make)
    except CheckFailed as problem:
        yield NO_PEEKING, str(problem)
        return
    yield NO_PEEKING, None
    for title, check in CHECKS.items():
        try:
            check(make, trial)
        except CheckFailed as problem:
            yield title, str(problem)
        else:
            yield title, None


CARRIERS: dict[str, tuple[dict[str, Any], ...]] = {
    "adapter": ({"head": "linear"}, {"head": "linear", "router": "centroids"}),
    "head": (
        {"adapter": "none"},
        {"adapter": "bottleneck-per-task"},
        {"adapter": "prefix-per-task", "router": "centroids"},
    ),
    "rule": (
        {"adapter": "lora", "head": "linear"},
        {"adapter": "lora-per-task", "head": "linear"},
        {"adapter": "freezable", "head": "linear"},
    ),
    "router": ({"adapter": "prefix-per-task", "head": "linear"},),
}


def carrier_of(room: str, name: str) -> dict[str, Any]:
    """A plain composition that holds this part; raises the last refusal where none takes it."""
    from contune.method.catalog import compose

    refusal: CombinationError | None = None
    for others in CARRIERS[room]:
        config = {**others, "rules": [name]} if room == "rule" else {**others, room: name}
        try:
            compose(config)
        except CombinationError as error:
            refusal = error
        else:
            return config
    assert refusal is not None
    raise refusal


def check_part(room: str, name: str) -> Iterator[tuple[str, str | None]]:
    """`check_method` for one part in a plain composition, and whether it is documented and idle where it says so."""
    import inspect

    from contune.method.catalog import compose, parts

    config, part = carrier_of(room, name), parts(room)[name]
    yield "is documented", None if inspect.getdoc(part) else "the part has no docstring"
    yield from check_method(lambda: compose(config))
    idle = getattr(part, "idle", {})
    if room == "rule" and idle:
        bare = {key: value for key, value in config.items() if key != "rules"}
        plain, still = (
            checked_run(partial(compose, {**bare, "rules": rules})).learner.state()
            for rules in ([], [{name: dict(idle)}])
        )
        differs = [same_state(plain.inner(each), still.inner(each)) for each in ("adapter", "head")]
        problem = next((found for found in differs if found), None)
        yield "is idle where it says so", problem and f"with {dict(idle)} the carrier ends differently: {problem}"


def run_checks(name: str, trial: CheckRun | None = None) -> Iterator[tuple[str, str | None]]:
    """`check_method` for a recipe by its name, and whether it is documented."""
    import inspect

    from contune.method.catalog import build_method, option_defaults, recipes

    build_method(name, {})
    described = bool(inspect.getdoc(recipes()[name]))
    yield "is documented", None if described else "the recipe has no docstring"
    missing = [
        option for option, default in option_defaults(recipes()[name]).items() if default is inspect.Parameter.empty
    ]
    yield "works with its defaults", f"option {missing[0]!r} has no default" if missing else None
    yield from check_method(lambda: build_method(name, {}), trial)
