"""Attentive reflection: inputs like an old task's go on getting that task's attention (SAPT, arXiv 2401.08295)."""

from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.capability import AttentionMixing, Need, require
from contune.contract.context import Context
from contune.contract.parts import Rule, Trait
from contune.contract.randomness import numpy_generator
from contune.contract.state import State, on_device
from contune.errors import CombinationError, ConfigError
from contune.rule.replay.pseudo_samples import (
    dataset_of,
    filtered,
    filtering,
    fits,
    form_and_writings,
    written_samples,
)
from contune.stream.conversation import Conversation

Source = Literal["auto", "generated", "kept"]


def attention_distance(stored: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows of KL([stored, 0, ..., 0] || weights): stored (i,) of a time with i blocks, weights (B, n) of now.

    >>> round(attention_distance(torch.tensor([1.0]), torch.tensor([[0.5, 0.5]])).exp().item(), 6)
    2.0
    >>> bool(attention_distance(torch.tensor([0.25, 0.75]), torch.tensor([[0.25, 0.75]])).abs() < 1e-6)
    True
    """
    now = weights[:, : len(stored)].clamp(min=torch.finfo(weights.dtype).tiny).log()
    rows = torch.xlogy(stored, stored) - stored * now
    return rows.sum(dim=1).mean()


@final
class AttentiveReflection(Rule):
    """Inputs like an old task's go on getting that task's attention over the tasks' updates (SAPT, arXiv 2401.08295).

    Adds `weight` times the sum over old tasks i of KL([a_i, 0, ..., 0] || a(x)), the mean over inputs x like task i's.
    a_i is the mean attention over task i's training data when it ended. Only inputs are needed, and of those only what
    the attention reads: their largest embedding values (d), `size` of them per task.

    `source` says whence: `generated`, where answers are written alone: when a task ends, the adapter in training goes
    on from where it is, for as many steps, to write the task's examples after its name; `attempts` texts are drawn from
    it, the valid ones are summed up (see rule pseudo-replay for what is valid), and the adapter is put back to what it
    was. `counts` says how many were valid; a task with none is not reflected on. `kept`: of that many of the task's own
    examples, drawn by the seed, the vectors are kept, but no example itself. `auto` is `generated` where the model
    writes and `kept` elsewhere.

    Memory: size x d and one row of attention per task.
    Compute: with `generated` as much training again, and the texts.
    Differs:
    - All vectors of a task count in every step, where the released code draws a batch of its pseudo-samples.
    """

    name: ClassVar[str] = "attentive-reflection"
    needs: ClassVar[tuple[Need, ...]] = (AttentionMixing,)

    def __init__(
        self,
        *,
        weight: Annotated[float, "weight of holding old tasks' attention, from 0", "released, T5 on SuperNI"] = 0.5,
        source: Annotated[Source, "inputs written by the model, kept of each task, or as the stream allows"] = "auto",
        size: Annotated[int, "inputs held of each task, from 0; the paper has 2 in 100 of its data"] = 64,
        attempts: Annotated[int, "texts written for a task, of which valid ones are held, from 0"] = 128,
        top: Annotated[int, "likeliest tokens that each token of a text is drawn from, from 1"] = 20,
    ) -> None:
        if weight < 0 or size < 0 or attempts < 0 or top < 1:
            raise ConfigError(
                f"weight is {weight}, size {size}, attempts {attempts} and top {top}; give at least 0, and top at least 1"
            )
        self.weight, self.source, self.size, self.attempts, self.top = weight, source, size, attempts, top
        self.counts: dict[str, dict[str, int]] = {}
        self._attention: list[Tensor] = []
        self._summaries: list[Tensor] = []

    def begin_task(self, context: Context) -> None:
        if self.source == "generated" and Trait.WRITTEN not in context.model.objective.traits:
            raise CombinationError(
                f"rule {self.name!r} has source generated, but with objective: {context.model.objective.name} the model "
                "writes nothing; set source: kept, or auto"
            )

    def penalty(self, context: Context) -> Tensor | None:
        adapter = require(context.model.adapter, AttentionMixing)
        if not self.weight or not context.model.adapter_trainable:
            return None
        terms = [
            attention_distance(stored, adapter.weights(summary))
            for stored, summary in zip(self._attention, self._summaries, strict=True)
            if len(summary) and adapter.blocks > 1
        ]
        return self.weight * torch.stack(terms).sum() if terms else None

    def end_task(self, context: Context) -> None:
        adapter = require(context.model.adapter, AttentionMixing)
        if not context.model.adapter_trainable or not self.weight:
            return
        summaries = summed_up(context)
        with torch.no_grad():
            self._attention.append(adapter.weights(summaries).mean(dim=0))
        if self.source == "kept" or Trait.WRITTEN not in context.model.objective.traits:
            generator = numpy_generator(context.task.settings.seed, "reflection", context.task.index)
            chosen = generator.permutation(len(summaries))[: self.size]
            self._summaries.append(summaries[torch.from_numpy(chosen)])
        else:
            self._summaries.append(self._written(context))

    def _written(self, context: Context) -> Tensor:
        """Summaries (n, d) of examples of this task that a generator, trained for it and then forgotten, writes."""
        task, backbone = context.task, context.model.backbone
        form, turned = form_and_writings(context)
        texts: list[str] = []
        if turned is not None and self.attempts:
            before = {name: value.detach().clone() for name, value in context.model.trained().items()}
            context.passes.extra_steps(context.with_data(turned), ())
            texts = written_samples(context, form, self.attempts, self.top, 1.0)
            context.model.write(before)
        found, reasons = filtered(texts, form, self.size, -(-self.size // max(len(form.options), 1)))
        fit = [one for one in found if fits(one, backbone)][: self.size]
        self.counts[f"{task.index} {task.name}"] = {**reasons, "kept": len(fit), "written": len(texts)}
        return summaries_of(context, fit, task.index)

    def diagnostics(self) -> dict[str, float]:
        return filtering(dict(list(self.counts.items())[-1:]))

    def state(self) -> State:
        numbers = range(len(self._attention))
        tensors = {f"attention{number}": self._attention[number] for number in numbers}
        tensors |= {f"summaries{number}": self._summaries[number] for number in numbers}
        return State(tensors, {"tasks": len(self._attention), "counts": {k: dict(v) for k, v in self.counts.items()}})

    def load_state(self, state: State, context: Context) -> None:
        held = on_device(state.tensors, context.model.backbone.device)
        self.counts = {name: dict(counts) for name, counts in state.values["counts"].items()}
        numbers = range(int(state.values["tasks"]))
        self._attention = [held[f"attention{number}"] for number in numbers]
        self._summaries = [held[f"summaries{number}"] for number in numbers]


def summed_up(context: Context) -> Tensor:
    """What the attention reads (n, d) of the task's own examples, in order."""
    prepared, size = context.task.data.prepared, context.passes.batch_size
    pieces = [np.arange(at, min(at + size, len(prepared))) for at in range(0, len(prepared), size)]
    backbone = context.model.backbone
    adapter = require(context.model.adapter, AttentionMixing)
    return torch.cat([adapter.summary(backbone, backbone.prompts_only([(prepared, rows)])) for rows in pieces])


def summaries_of(context: Context, conversations: list[Conversation], task: int) -> Tensor:
    """What the attention reads (n, d) of these exchanges."""
    if not conversations:
        return torch.zeros(0, context.model.backbone.parts.prompt_width, device=context.model.backbone.device)
    return summed_up(context.with_data(dataset_of(conversations, [task] * len(conversations), context.model.backbone)))
