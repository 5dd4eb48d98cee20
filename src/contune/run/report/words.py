"""What happened in a run, and how runs differ, in sentences for a reader who has never seen the metrics."""

from collections.abc import Sequence

from contune.run.report.compare import Comparison, Difference, MethodRuns, model_identity, stream_identity

POINT = "\N{NO-BREAK SPACE}points"
MOST_TOLD = 5


def share(value: float) -> str:
    """A share as a whole percentage.

    >>> share(0.714).replace(chr(160), " ")
    '71 %'
    """
    return f"{_round(value)}\N{NO-BREAK SPACE}%"


def _round(value: float) -> int:
    return round(100 * value)


def signed_points(value: float) -> str:
    """A difference of shares in percentage points, with its sign.

    >>> signed_points(0.084), signed_points(0.0001)
    ('+8.4', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "\N{MINUS SIGN}")


def points(value: int) -> str:
    """A number of percentage points."""
    return "1\N{NO-BREAK SPACE}point" if value == 1 else f"{value}{POINT}"


def _mean(group: MethodRuns, name: str) -> float | None:
    return group.metrics[name].mean


def scope(group: MethodRuns) -> str:
    """What the last accuracy is measured over: all classes, domains or tasks learned."""
    run = group.runs[0]
    learned = len(run.matrix)
    classes = run.stream.get("classes_per_task")
    if run.arrives == "domains":
        return f"the {_all(learned, run.tasks)} domains"
    if classes and run.arrives == "classes":
        return f"{'all ' if learned == run.tasks else 'the first '}{sum(classes[:learned])} classes"
    return f"the {_all(learned, run.tasks)} tasks"


def _all(learned: int, tasks: int) -> str:
    return str(tasks) if learned == tasks else f"first {learned} of {tasks}"


def describe_group(group: MethodRuns, joint: MethodRuns | None = None) -> list[str]:
    """The story of one method: where it ends, what it had learned, what it lost, how far joint training is."""
    last = _mean(group, "last_accuracy")
    if last is None:
        return ["The accuracy at the end was not measured on every task, so no headline can be given."]
    tasks = len(group.runs[0].matrix)
    if group.is_joint:
        return [
            f"It learned all {tasks} tasks at once and reaches {share(last)} over {scope(group)}: the upper bound for "
            "methods that see one task after another."
        ]
    found = [f"It ends at {share(last)} over {scope(group)}."]
    learned, forgotten = _mean(group, "learning_accuracy"), _mean(group, "forgetting")
    if learned is not None and forgotten is not None:
        found.append(f"Right after learning each task it knew {share(learned)}; {_lost(_round(forgotten))}.")
    elif tasks == 1:
        found.append(
            "With a single task there is nothing to forget yet; forgetting is defined from the second task on."
        )
    bound = joint.metrics["last_accuracy"].mean if joint is not None else None
    if bound is not None and joint is not None and _comparable([group, joint]):
        found.append(f"Training on all tasks at once reaches {share(bound)}{_gap(_round(bound) - _round(last))}.")
    return found


def _lost(forgotten: int) -> str:
    if forgotten > 0:
        return f"of the earlier tasks it forgot {points(forgotten)}"
    if forgotten < 0:
        return f"earlier tasks have even gained {points(-forgotten)} since"
    return "it forgot nothing of the earlier tasks"


def _gap(gap: int) -> str:
    if gap > 0:
        return f", {points(gap)} more"
    return ", no more than that" if gap == 0 else f", {points(-gap)} less"


def _comparable(groups: Sequence[MethodRuns]) -> bool:
    streams = {stream_identity(group.runs[0]) for group in groups}
    models = {model_identity(group.runs[0]) for group in groups}
    return len(streams) == len(models) == 1


def describe_comparison(comparison: Comparison) -> list[str]:
    """Which method forgets, which keeps, how far joint training is, and how sure that is."""
    if not _comparable(comparison.groups):
        return [f"{group.label}: {' '.join(describe_group(group))}" for group in comparison.groups[:MOST_TOLD]]
    learners = [
        group for group in comparison.groups if not group.is_joint and _mean(group, "last_accuracy") is not None
    ]
    forgetters = [group for group in learners if _mean(group, "forgetting") is not None]
    if not forgetters:
        return [f"{group.label}: {' '.join(describe_group(group))}" for group in comparison.groups[:MOST_TOLD]]
    reference = _reference(forgetters)
    others = sorted(
        (group for group in forgetters if group is not reference), key=lambda g: -(_mean(g, "last_accuracy") or 0.0)
    )
    found = [_describe_reference(reference)]
    found += [_against(group, reference) for group in others[:MOST_TOLD]]
    if len(others) > MOST_TOLD:
        found.append(f"{len(others) - MOST_TOLD} more methods are in the table.")
    found += _describe_joint(comparison.joint, forgetters)
    return found + _certainty(comparison, learners)


def _reference(groups: Sequence[MethodRuns]) -> MethodRuns:
    """The method that does nothing against forgetting, or the one that forgets most."""
    plain = [group for group in groups if "sequential" in group.method]
    return max(plain or groups, key=lambda group: _mean(group, "forgetting") or 0.0)


def _describe_reference(group: MethodRuns) -> str:
    last, forgotten = _mean(group, "last_accuracy") or 0.0, _round(_mean(group, "forgetting") or 0.0)
    if forgotten <= 0:
        return f"{group.label} forgets nothing and ends at {share(last)}."
    return f"{group.label} forgets {points(forgotten)} and ends at {share(last)}."


def _against(group: MethodRuns, reference: MethodRuns) -> str:
    last = _mean(group, "last_accuracy") or 0.0
    lost, base = _round(_mean(group, "forgetting") or 0.0), _round(_mean(reference, "forgetting") or 0.0)
    if base > 0 and base - lost >= 1:
        back = min(base - lost, base)
        told = f"{group.label} gives back {'all' if back == base else back} of them and ends at {share(last)}"
    elif lost == base:
        told = f"{group.label} forgets as much and ends at {share(last)}"
    elif lost <= 0:
        told = f"{group.label} forgets nothing and ends at {share(last)}"
    else:
        told = f"{group.label} forgets {points(lost)} and ends at {share(last)}"
    new, plain = _mean(group, "learning_accuracy"), _mean(reference, "learning_accuracy")
    if new is not None and plain is not None and plain - new >= 0.05:
        told += f", though it learns each new task less well ({share(new)} against {share(plain)})"
    return told + "."


def _describe_joint(joint: MethodRuns | None, learners: Sequence[MethodRuns]) -> list[str]:
    bound = None if joint is None else _mean(joint, "last_accuracy")
    if bound is None:
        return []
    best = max(learners, key=lambda group: _mean(group, "last_accuracy") or 0.0)
    gap = _round(bound) - _round(_mean(best, "last_accuracy") or 0.0)
    if gap > 0:
        return [f"Joint training is the upper bound at {share(bound)}; {best.label} stays {points(gap)} below it."]
    if gap == 0:
        return [f"Joint training, the usual upper bound, reaches {share(bound)}; {best.label} is level with it."]
    return [f"Joint training, the usual upper bound, reaches {share(bound)}; {best.label} is {points(-gap)} above it."]


def _certainty(comparison: Comparison, learners: Sequence[MethodRuns]) -> list[str]:
    if len(learners) < 2:
        return []
    ranked = sorted(learners, key=lambda group: -(_mean(group, "last_accuracy") or 0.0))
    pair = {ranked[0].label, ranked[1].label}
    for difference in comparison.differences:
        if difference.metric == "last_accuracy" and {difference.first, difference.second} == pair:
            return [_sure(difference, ranked[0].label, ranked[1].label)]
    return []


def _sure(difference: Difference, best: str, second: str) -> str:
    found = difference.estimate
    if found.low is None or found.high is None or found.mean is None:
        return (
            "One pair of runs each: a few points may be chance, so repeat with other seeds and orders before ranking."
        )
    signed = 1 if difference.first == best else -1
    low, high = sorted((signed * found.low, signed * found.high))
    ends = f"{signed_points(low)} to {signed_points(high)}"
    interval = f"{signed_points(signed * found.mean)}{POINT}, 95\N{NO-BREAK SPACE}% interval {ends}"
    if low <= 0 <= high:
        return f"Over {found.n} paired runs {best} and {second} cannot be told apart ({interval})."
    return f"Over {found.n} paired runs {best} is ahead of {second} by {interval}."
