"""The common checks: what must hold for every method and every part, tried on small tasks with a tiny frozen model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from contune.checks.entries import check_every_entry_acts
from contune.checks.run import (
    CheckFailed,
    CheckRun,
    MakeMethod,
    checked_run,
    copied,
    require,
    same_state,
)
from contune.checks.setting import Setting, stored
from contune.checks.settings.images import SETTING as IMAGES
from contune.engine.learner import Learner
from contune.errors import ContuneError
from contune.stream.inputs import Inputs
from contune.stream.task import Examples, Kind

Check = Callable[[MakeMethod, CheckRun], None]


def check_learns(make: MakeMethod, trial: CheckRun) -> None:
    """Right after a task the method answers it well above chance; what it writes has become likelier."""
    del make
    problem = trial.setting.not_learned(trial)
    require(problem is None, str(problem))


def check_absent(make: MakeMethod, trial: CheckRun) -> None:
    """With the adapter absent the features are those of the untouched model, to the bit, before and after training."""
    if trial.trains_the_base:
        return
    untouched = trial.setting.base_features(trial.setting.untouched())
    fresh = trial.setting.learner(make())
    require(fresh.base_unchanged(), "attaching the adapter changed the base weights")
    for learner, when in ((fresh, "attached"), (trial.learner, "trained")):
        with learner.method.adapter.disabled():
            features = trial.setting.base_features(learner.backbone)
        same = torch.equal(features, untouched)
        require(same, f"with the adapter {when} and absent, the features differ from the untouched model's")


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
    again = trial.setting.learner(make())
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
    inputs = trial.setting.inputs()
    together = answers_to(trial.learner, inputs)
    alone = [answer for one in inputs for answer in answers_to(trial.learner, [one])]
    same = trial.setting.same(together, alone)
    require(same, f"together the answers are {together}, one by one {alone}")


def answers_to(learner: Learner, inputs: Inputs, task: int | None = None) -> list[Any]:
    """What the learner answers, as a run would store it."""
    return [stored(prediction) for prediction in learner.predict(inputs, task=task)]


def check_predicts_purely(make: MakeMethod, trial: CheckRun) -> None:
    """Answering changes nothing that the method remembers, and gives the same answers again."""
    del make
    inputs = trial.setting.inputs()
    before, first = copied(trial.learner.state()), answers_to(trial.learner, inputs)
    require(answers_to(trial.learner, inputs) == first, "asked twice, the answers differ")
    problem = same_state(before, trial.learner.state())
    require(problem is None, f"answering changed the method's memory: {problem}")


def check_no_task_named(make: MakeMethod, trial: CheckRun) -> None:
    """The answers do not depend on which task an example is said to come from."""
    del make
    data = trial.learner.test_dataset(trial.setting.tasks()[0])
    said = replace(data, tasks=np.full_like(data.tasks, trial.learner.learned - 1))
    first, second = (trial.learner.judge(one).columns["prediction"] for one in (data, said))
    same = list(first) == list(second)
    require(same, "the answers change with the task that the test examples are said to come from")


def check_any_order(make: MakeMethod, trial: CheckRun) -> None:
    """Tasks of unequal size in another order are learned as well."""
    setting = trial.setting
    learner, tasks, scores = setting.learner(make()), setting.other_orders(), []
    for experience in [tasks] if learner.method.joint else [[task] for task in tasks]:
        learner.learn(experience)
        scores.append(setting.score(learner, experience))
    problem = setting.not_learned_in_order(learner, scores)
    require(problem is None, f"in another order: {problem}")


def check_degenerate_tasks(make: MakeMethod, trial: CheckRun) -> None:
    """A task with one example or class, one with one example a class, and tasks that come back are survived."""
    setting = trial.setting
    learner = setting.learner(make())
    single, few, again = setting.odd_tasks()
    for experience in [[single, few]] if learner.method.joint else [[single], [few], [again]]:
        learner.learn(experience)
    answers = answers_to(learner, setting.inputs())
    require(setting.possible(learner, answers), f"after degenerate tasks it answers {answers}")


def check_measures_what_it_answers(make: MakeMethod, trial: CheckRun) -> None:
    """What a run measures after its tasks is what the learner answers when it is asked, in every kind of stream."""
    for kind in trial.setting.kinds:
        learner = trial.learner if kind == trial.setting.kinds[0] else briefly_taught(make, trial.setting, kind)
        if learner is None:
            continue
        for index, task in enumerate(trial.setting.tasks()[: learner.learned]):
            found = learner.judge_task(index, learner.test_dataset(task, index)).columns["prediction"]
            asked = answers_to(learner, task.test.inputs, index if kind == "task-incremental" else None)
            differ = [row for row in trial.setting.answered(task) if not trial.setting.same([found[row]], [asked[row]])]
            require(
                not differ,
                f"in a {kind} stream {len(differ)} test examples of task {index} are measured with another answer than "
                "the one that predict gives",
            )


def briefly_taught(make: MakeMethod, setting: Setting, kind: Kind) -> Learner | None:
    """A learner that has learned a little of each task in a stream of another kind; None where that is refused."""
    method = make()
    try:
        learner = setting.learner(method, kind=kind, train={"epochs": min(1, int(method.train.get("epochs", 1)))})
    except ContuneError:
        return None
    tasks = [replace(task, train=beginnings(task.train)) for task in setting.tasks()]
    for experience in [tasks] if method.joint else [[task] for task in tasks]:
        learner.learn(experience)
    return learner


def beginnings(examples: Examples) -> Examples:
    """The first examples of each label: enough to learn something of it."""
    each = 4 if examples.targets is None else 16
    rows = [np.flatnonzero(examples.labels == label)[:each] for label in np.unique(examples.labels)]
    return examples.take(np.sort(np.concatenate(rows)))


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
    "takes tasks in any order": check_any_order,
    "survives degenerate tasks": check_degenerate_tasks,
    "keeps no more each time": check_memory,
    "measures what it answers": check_measures_what_it_answers,
    "trains nothing that cannot act": check_every_entry_acts,
}
NO_PEEKING = "never looks at test data"


def check_method(
    make: MakeMethod, trial: CheckRun | None = None, setting: Setting = IMAGES
) -> Iterator[tuple[str, str | None]]:
    """Every check's title and what is wrong, or None. `trial`: what `checked_run(make, setting)` gave, where it has run."""
    try:
        trial = trial or checked_run(make, setting)
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
