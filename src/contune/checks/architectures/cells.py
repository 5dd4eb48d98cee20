"""One method on one architecture: two tasks, answers, reloading, stopping, exporting, and nats against stock libraries."""

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from contune.backbone.reader.language import PreparedConversations
from contune.checks.architectures.models import save_architecture, stock_class
from contune.checks.run import copied, same_state
from contune.checks.setting import CheckFailed, require
from contune.checks.settings.answers import question_tasks
from contune.contract.capability import Modules, find
from contune.engine.learner import Learner
from contune.engine.steps.loop import StepReport
from contune.errors import ContuneError
from contune.method.catalog import build_method
from contune.objective.write import read_answers
from contune.stream.task import Task

TRAIN = {"epochs": 2, "batch_size": 4, "lr": 3e-3}
ASKED = ["Is sun big", "Is an elephant by the sea red"]
CLOSE = 1e-3  # nats a token, between contune's batch and stock libraries asked with one text at a time


@final
@dataclass(frozen=True)
class Cell:
    """What came of a method on an architecture: `pass`, `refused` with the sentence, or `FAIL` with what is wrong.

    `stock` says which stock form was compared: `peft`, `transformers`, or nothing where a method has neither.
    """

    verdict: str
    words: str = ""
    stock: str = ""


def tried(architecture: str, method: str, **options: Any) -> Cell:
    """Everything that a cell of the table asks, in this process; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="contune-architecture-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = save_architecture(architecture, Path(folder) / architecture)
        try:
            return Cell("pass", stock=_learned(architecture, model, Path(folder), method, options))
        except ContuneError as refusal:
            return Cell("refused", str(refusal).replace(folder, ""))
        except CheckFailed as found:
            return Cell("FAIL", str(found))
        except Exception as error:  # whatever a library throws is what the table is there to show
            return Cell("FAIL", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _learned(architecture: str, model: Path, folder: Path, method: str, options: dict[str, Any]) -> str:
    """Two tasks, answers, a saved learner and one stopped in the second task; gives the stock form it was compared in."""

    def fresh() -> Learner:
        recipe = build_method(method, options)
        train = TRAIN if recipe.train.get("epochs", 1) else {**TRAIN, "epochs": 0}
        return Learner(str(model), recipe, objective="write", train=train)

    learner, kept = fresh(), []
    first, second, _ = question_tasks()
    joint = learner.method.joint
    if not joint:
        learner.learn(first)
    last: Task | list[Task] = [first, second] if joint else second
    context = learner.begin(last)

    def keep(report: StepReport) -> None:
        if report.step == 2:
            kept.append((copied(learner.state()), {name: value.clone() for name, value in report.memory().items()}))

    learner.fit(context, keep)
    learner.end(context)
    answers = [str(one) for one in learner.predict(ASKED)]
    alone = [str(learner.predict([one])[0]) for one in ASKED]
    require(answers == alone, f"together the answers are {answers}, one by one {alone}")
    again = fresh()
    again.load_state(copied(learner.state()))
    reloaded = [str(one) for one in again.predict(ASKED)]
    require(reloaded == answers, f"loaded again it answers {reloaded}, not {answers}")
    if kept:
        _resumed(fresh(), learner, last if isinstance(last, list) else [last], *kept[0])
    return _stock(architecture, model, folder, learner, second)


def _resumed(again: Learner, learner: Learner, tasks: list[Task], state: Any, memory: dict[str, Tensor]) -> None:
    """Stopped after two steps of the last task, a new learner ends with the same bits."""
    context = again.load_state(state, tasks)
    assert context is not None
    again.fit(context, lambda report: None, done=2, memory=memory)
    again.end(context)
    problem = same_state(learner.state(), again.state())
    require(problem is None, f"stopped inside the second task: {problem}")


def _stock(architecture: str, model: Path, folder: Path, learner: Learner, task: Task) -> str:
    """Export, load with peft or transformers alone, and compare the nats of a task's answers."""
    ours, rows = nats_of(learner, task), list(token_rows(learner, task))
    adapter, stock = learner.method.adapter, stock_class(architecture)
    if find(adapter, Modules) is not None or learner.method.router is not None:
        return ""
    if adapter.export_answering(folder / "adapter"):
        from peft import PeftModel

        whole = PeftModel.from_pretrained(stock.from_pretrained(model, dtype=torch.float32), str(folder / "adapter"))
        form = "peft"
    elif adapter.merge():
        learner.backbone.stock.save_pretrained(folder / "merged")
        whole, form = stock.from_pretrained(folder / "merged", dtype=torch.float32), "transformers"
    else:
        return ""
    theirs = [stock_nats(whole.eval(), prompt, answer, learner) for prompt, answer in rows]
    tokens = sum(len(answer) for _, answer in rows)
    apart = abs(ours.sum() - sum(theirs)) / tokens
    require(apart < CLOSE, f"answers cost {apart:.1e} nats a token more or less in {form}")
    return form


def nats_of(learner: Learner, task: Task) -> Any:
    """What the right answers of a task's tests cost, example by example."""
    data = learner.test_dataset(task)
    return read_answers(learner.reading(data), data).nats


def token_rows(learner: Learner, task: Task) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens before and of each right answer, as the reader lays them out."""
    prepared = learner.test_dataset(task).prepared
    assert isinstance(prepared, PreparedConversations)
    for row in range(len(prepared)):
        tokens, start = np.asarray(prepared.texts.tokens(row)).tolist(), int(prepared.starts[row])
        yield tokens[:start], tokens[start:]


def stock_nats(whole: Any, prompt: list[int], answer: list[int], learner: Learner) -> float:
    """What an answer costs a stock model that is asked with it alone."""
    with torch.no_grad():
        if learner.backbone.language.reader.decoder:
            scores = whole(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).logits[0]
        else:
            scores = whole(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    logs = scores.float().log_softmax(-1)
    return -float(logs[torch.arange(len(answer)), torch.tensor(answer)].sum())
