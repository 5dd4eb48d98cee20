"""Encoders with decoders: what looks at tokens tells a decoder's positions from the encoder's, and padding from both."""

from functools import partial

import numpy as np
import pytest
import torch
from language_tasks import TRAIN, conversation, experience, writer
from resume_helpers import difference_after_a_stop
from torch import nn
from word_tasks import tiny_folder

from contune.backbone.reader.inputs import ModelInputs
from contune.contract.data import Dataset
from contune.contract.passes import input_moments
from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.method.catalog import build_method
from contune.stream.conversation import language_examples
from contune.stream.task import Task

BOTH = ["t5-writer", "bart-writer"]
PAIRS = [("Is it", "no"), ("Is the cat in", "a long answer"), ("x", "y"), ("Is", "Is that so")]
WATCHING = ["gpm", "cuber", "corda", "inflora", "migu", "osf", "i-lora"]


def task_of(pairs: list[tuple[str, str]]) -> Task:
    examples = language_examples([conversation(*pair) for pair in pairs], range(len(pairs)))
    return Task("pairs", ("answer",), examples, examples)


def learner_of(model: str, method: str = "lora", **train: object) -> Learner:
    layers = {"layers": "all"} if method in ("corda", "inflora") else {}
    built = build_method(method, layers)
    return Learner(str(tiny_folder(model)), built, objective="write", train={**TRAIN, **train})


@pytest.mark.parametrize("model", BOTH)
def test_encoder_and_decoder_never_have_as_many_positions(model: str) -> None:
    backbone = writer(model)
    for prompt in ("a", "ab", "abc", "abcd", "abcde"):
        for answer in ("a", "ab", "abc", "abcd", "abcde"):
            prepared = backbone.prepare([conversation(prompt, answer)])
            inputs = backbone.collate([(prepared, np.arange(1))])
            assert inputs.ids is not None
            assert inputs.answers is not None
            assert inputs.targets is not None
            assert inputs.ids.shape[1] != inputs.answers.shape[1]
            assert inputs.targets.sum() == len(prepared.lengths) * (len(answer) + 1)  # and the token that ends it


def test_positions_say_whose_they_are() -> None:
    mask, targets = torch.tensor([[True, True, False]]), torch.tensor([[True, False]])
    inputs = ModelInputs(1, torch.zeros(1, 3), mask, targets=targets, answers=torch.zeros(1, 2))
    assert inputs.tokens(torch.zeros(1, 3, 8)) is mask
    assert inputs.tokens(torch.zeros(1, 2, 8)) is targets
    assert inputs.tokens(torch.zeros(1, 8)) is None
    with pytest.raises(CombinationError, match="padding cannot be told from tokens"):
        inputs.tokens(torch.zeros(1, 4, 8))
    causal = ModelInputs(1, torch.zeros(1, 3), mask, targets=targets)
    with pytest.raises(CombinationError, match="padding"):
        causal.tokens(torch.zeros(1, 2, 8))
    assert ModelInputs(1, pixels=torch.zeros(1, 3, 2, 2)).tokens(torch.zeros(1, 4, 8)) is None


def keep(seen: dict[str, torch.Tensor], name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    del module
    seen[name] = args[0]


@pytest.mark.parametrize("model", BOTH)
def test_moments_of_a_padded_batch_are_those_of_its_texts_alone(model: str) -> None:
    learner = learner_of(model)
    together = learner.begin(task_of(PAIRS))
    places = {
        name: module for name, module in learner.backbone.model.named_modules() if name.endswith("lora_A.default")
    }
    whole = input_moments(together, places)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for pair in PAIRS:
        (examples,) = (task_of([pair]).train,)
        zeros = np.zeros(1, np.int64)
        dataset = Dataset.of(examples, learner.backbone, zeros, zeros)
        batch = next(iter(together.passes.batches(dataset)))
        seen: dict[str, torch.Tensor] = {}

        handles = [module.register_forward_pre_hook(partial(keep, seen, name)) for name, module in places.items()]
        together.model.encode(batch)
        for handle in handles:
            handle.remove()
        assert batch.inputs.targets is not None
        own = int(batch.inputs.targets.sum())
        assert len({given.shape[1] for given in seen.values()}) == 2  # the cross-attention's values read the encoder
        for name, given in seen.items():
            rows = given[0] if given.shape[1] != batch.inputs.targets.shape[1] else given[0, :own]
            sums[name] = sums.get(name, 0) + rows.detach().double().T @ rows.detach().double()
            counts[name] = counts.get(name, 0) + len(rows)
    for name, total in sums.items():
        assert torch.allclose(whole.tensors[whole.leaders[name]], total / counts[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("method", WATCHING)
def test_methods_that_watch_tokens_learn_and_resume(model: str, method: str) -> None:
    tasks = [task_of(PAIRS), experience("big"), experience("red", "red", "blue")]
    assert difference_after_a_stop(learner_of(model, method), learner_of(model, method), tasks) is None


@pytest.mark.parametrize("model", BOTH)
def test_they_learn_and_write_in_bf16(model: str) -> None:
    losses: list[float] = []
    for precision in ("fp32", "bf16"):
        learner = learner_of(model, precision=precision)
        context = learner.begin(experience("big"))
        learner.fit(context, lambda report: losses.append(report.loss))
        learner.end(context)
        assert all(isinstance(text, str) for text in learner.predict(["Is sun big"]))
    half = len(losses) // 2
    assert losses[half:] == pytest.approx(losses[:half], rel=0.05)
