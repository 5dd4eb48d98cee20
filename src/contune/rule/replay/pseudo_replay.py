"""Replay of examples that the model writes itself, with distillation on them (LFPT5, arXiv 2110.07298)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Dataset, Outputs, Rows, Selection
from contune.contract.parts import Rule, Trait
from contune.contract.randomness import numpy_generator
from contune.contract.state import State, on_device
from contune.errors import ConfigError
from contune.numerics.divergences import softmax_divergence
from contune.rule.average.ema_teacher import rows_of
from contune.rule.replay.pseudo_samples import (
    TaskForm,
    as_writing,
    dataset_of,
    filtered,
    filtering,
    fits,
    form_and_writings,
    writings,
    written_samples,
)
from contune.stream.conversation import Conversation, decoded

SAMPLES = "pseudo-samples"
WRITING = "writing"


def dealt_share(count: int, step: int, steps: int, generator: np.random.Generator) -> Rows:
    """The rows of `count` that fall to this step of a pass, in which every row comes once.

    >>> [len(dealt_share(5, step, 3, np.random.default_rng(0))) for step in range(3)]
    [1, 2, 2]
    """
    return generator.permutation(count)[step * count // steps : (step + 1) * count // steps]


def share_of_step(dataset: Dataset | None, context: Context, purpose: str, step: int) -> Rows:
    """The rows that fall to a step of the task, where every row comes once in a pass over the task's own examples."""
    if dataset is None:
        return np.zeros(0, dtype=np.int64)
    steps = context.task.steps_per_epoch
    generator = numpy_generator(context.task.settings.seed, purpose, context.task.index, step // steps)
    return dealt_share(len(dataset), step % steps, steps, generator)


@final
class PseudoReplay(Rule):
    """Before each later task the model writes examples of every earlier one, which then join the task's own (2110.07298).

    With L_solve the mean loss over the answers of the task's and the written examples, L_write that of writing the same
    examples (task's name -> prompt, separator, answer), and KL(before || now) on the answers of the written examples,
    the trained tensors of the task's start as teacher,

        L = (1 - distillation) [L_solve + writing L_write] + distillation KL

    KL is summed over vocabulary and tokens and averaged over the written examples of the step; the released code sums
    those too. Every written example, and every example in its turned form, comes once in a pass over the task's own, as
    where all are one training set; each step of the pass gets its share, drawn for itself.

    Kept are texts with one separator and an answer that is an option of the task, or where it has none is not empty:
    the first `per_option` of each option, or `per_task`. `counts` says how many were kept and why others were not; a
    task of which none is kept is not replayed. A conversation of several turns is written as one text. Examples that do
    not fit in the model with the task's name, or hold the separator, are learned but not written.

    Memory: names and options of the tasks, and in a task the written examples and one copy of what is trained. No
    training example is kept.
    Compute: `attempts` texts per earlier task; a step has about twice the rows, and one more forward pass on the
    written ones.
    """

    name: ClassVar[str] = "pseudo-replay"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.WRITTEN})

    def __init__(
        self,
        *,
        writing: Annotated[float, "weight of learning to write a task's examples, from 0", "paper"] = 0.25,
        distillation: Annotated[float, "share of the distance to the old model, 0 to below 1", "paper"] = 0.01,
        attempts: Annotated[int, "texts written for each earlier task, from 0"] = 64,
        per_task: Annotated[int, "most texts kept of a task whose answers are free, from 0"] = 16,
        per_option: Annotated[int, "most texts kept of each option of a task, from 0", "paper, to train on"] = 2,
        top: Annotated[int, "likeliest tokens that each token is drawn from, from 1", "released code"] = 64,
        repetition_penalty: Annotated[float, "makes tokens written already less likely; 1: not", "released code"] = 2.5,
    ) -> None:
        if writing < 0 or not 0 <= distillation < 1:
            raise ConfigError(
                f"writing is {writing} and distillation {distillation}; give at least 0, and distillation less than 1"
            )
        if min(attempts, per_task, per_option) < 0 or top < 1 or repetition_penalty <= 0:
            raise ConfigError(
                f"attempts is {attempts}, per_task {per_task}, per_option {per_option}, top {top} and "
                f"repetition_penalty {repetition_penalty}; give numbers of at least 0, top at least 1, a penalty above 0"
            )
        self.writing, self.distillation = writing, distillation
        self.attempts, self.per_task, self.per_option = attempts, per_task, per_option
        self.top, self.repetition_penalty = top, repetition_penalty
        self.counts: dict[str, dict[str, int]] = {}
        self._forms: list[TaskForm] = []
        self._samples: list[tuple[TaskForm, Conversation]] = []
        self._teacher: dict[str, Tensor] = {}
        self._solving: Dataset | None = None
        self._turned: Dataset | None = None
        self._drawn = 0

    @property
    def samples(self) -> list[Conversation]:
        """The written examples that are replayed in this task."""
        return [one for _, one in self._samples]

    def begin_task(self, context: Context) -> None:
        self.counts, texts = {}, []
        for form in self._forms:
            texts.append(written_samples(context, form, self.attempts, self.top, self.repetition_penalty))
        self.take(context, texts)

    def take(self, context: Context, texts: Sequence[Sequence[str]]) -> None:
        """Sift what was written for each earlier task and get ready to replay it; `begin_task` does this itself."""
        self._samples = []
        for form, written in zip(self._forms, texts, strict=True):
            found, reasons = filtered(written, form, self.per_task, self.per_option)
            fit = [one for one in found if fits(one, context.model.backbone)]
            more = {"kept": len(fit), "too long": len(found) - len(fit), "written": len(written)}
            self.counts[f"{form.task} {form.name}"] = {**reasons, **more}
            self._samples += [(form, one) for one in fit]
        wanted = bool(self.distillation) and bool(self._samples)
        self._teacher = {name: p.detach().clone() for name, p in context.model.trained().items()} if wanted else {}
        self._prepare(context)

    def _prepare(self, context: Context) -> None:
        backbone, own = context.model.backbone, list(context.task.data.examples.inputs)
        tasks = [form.task for form, _ in self._samples]
        self._solving = dataset_of(self.samples, tasks, backbone) if self._samples else None
        if not self.writing or not own:
            self._turned = None
            return
        turned = writings(context.task.name, own, backbone)
        again = [(form.task, as_writing(form.name, one)) for form, one in self._samples]
        old = [(task, one) for task, one in again if fits(one, backbone)]
        both = [*turned, *(one for _, one in old)]
        places = [*[context.task.index] * len(turned), *(task for task, _ in old)]
        self._turned = dataset_of(both, places, backbone) if both else None

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        del epoch
        chosen: dict[str, Selection] = {}
        solved = share_of_step(self._solving, context, SAMPLES, step)
        self._drawn = len(solved)
        if self._solving is not None and len(solved):
            chosen[SAMPLES] = Selection(self._solving, solved)
        turned = share_of_step(self._turned, context, WRITING, step)
        if self._turned is not None and len(turned):
            chosen[WRITING] = Selection(self._turned, turned, (1 - self.distillation) * self.writing)
        return chosen

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        if not self.distillation:
            return None
        places = [batch.segments[name] for name in (TASK, SAMPLES) if name in batch.segments]
        count = sum(batch.counts[name] for name in (TASK, SAMPLES) if name in batch.counts)
        rows = torch.cat([torch.arange(place.start, place.stop) for place in places]).to(batch.labels.device)
        solve = functional.cross_entropy(outputs.logits[rows], batch.labels[rows], reduction="sum") / count
        distance = self._distance(context, batch, outputs)
        # The loop counts the answers' loss whole.
        loss = -self.distillation * solve
        return loss if distance is None else loss + self.distillation * distance

    def _distance(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        """KL(before || now) on the answers of the step's written examples."""
        rows = None if self._solving is None else rows_of(batch, self._solving)
        if rows is None or not self._teacher:
            return None
        with torch.no_grad(), context.model.swapped(self._teacher):
            before = context.model.forward(rows).logits
        distances = softmax_divergence(outputs.logits[batch.segments[SAMPLES]], before, 1.0)
        return distances.sum() / self._drawn

    def end_task(self, context: Context) -> None:
        form, _ = form_and_writings(context)
        self._forms = [*(old for old in self._forms if old.name != form.name), form]
        self._samples, self._teacher, self._solving, self._turned = [], {}, None, None

    def diagnostics(self) -> dict[str, float]:
        return filtering(self.counts)

    def state(self) -> State:
        samples = [[form.task, str(one)] for form, one in self._samples]
        forms = [form.values() for form in self._forms]
        own = State({}, {"forms": forms, "samples": samples, "counts": {k: dict(v) for k, v in self.counts.items()}})
        return State.nested({"own": own, "teacher": State(dict(self._teacher))})

    def load_state(self, state: State, context: Context) -> None:
        own = state.inner("own").values
        self._forms = [TaskForm.of_values(values) for values in own["forms"]]
        self.counts = {name: dict(counts) for name, counts in own["counts"].items()}
        by_task = {form.task: form for form in self._forms}
        self._samples = [(by_task[task], decoded(text)) for task, text in own["samples"]]
        self._teacher = on_device(state.inner("teacher").tensors, context.model.backbone.device)
        self._prepare(context)
