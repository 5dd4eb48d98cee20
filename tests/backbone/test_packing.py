"""Texts that share rows: the same loss, gradients and token rows from fewer positions, or a sentence that says why not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resume_helpers import go_on, learn_keeping
from tiny_models import byte_tokenizer
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.packing import Packing, bins, cost, packing_of, shared_rows
from contune.checks.run import same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Selection
from contune.contract.processes import Processes
from contune.engine.learner import Learner
from contune.engine.steps.loop import local_batch
from contune.errors import CombinationError, ConfigError
from contune.stream.conversation import Conversation, Message, language_examples
from contune.stream.task import Task

SUBJECTS = ("sun", "a rather long walk by the sea", "cat", "sea side", "ant", "hills and more hills", "bee", "moon")
TRAIN = {"epochs": 2, "batch_size": 8, "lr": 5e-2, "optimizer": "sgd", "group_by_length": False}
FAMILIES = ("llama-writer", "gpt2-writer", "mistral-writer", "qwen2-writer")


def experience(name: str, odd: str = "yes", even: str = "no") -> Task:
    asked = [
        Conversation((Message("user", f"{word} {name}"),), (odd if at % 2 else even,))
        for at, word in enumerate(SUBJECTS)
    ]
    examples = language_examples(asked, range(len(asked)))
    return Task(name, ("answer",), examples, examples)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model; Mistral and Qwen2 in one class with a window of 6 tokens, so that it matters."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name in ("llama-writer", "gpt2-writer", "t5-writer"):
            return tiny_folder(name)
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            windowed(name).save_pretrained(made[name])
            byte_tokenizer("llama").save_pretrained(made[name])
        return made[name]

    return folder


def windowed(name: str) -> Any:
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    own = {
        "vocab_size": 272,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
    }
    own |= {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": None}
    more = {
        **own,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "sliding_window": 6,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "bloom-writer":
            return BloomForCausalLM(BloomConfig(**{**own, "n_layer": 3, "n_head": 4})).eval()
        if name == "mistral-writer":
            return MistralForCausalLM(MistralConfig(**more)).eval()
        return Qwen2ForCausalLM(Qwen2Config(**more, use_sliding_window=True, max_window_layers=1)).eval()


def learner_of(folder: Path, method: str = "lora", *, packing: bool = True, **options: Any) -> Learner:
    own = options.pop("train", {})
    return Learner(str(folder), method, objective="write", train={**TRAIN, "packing": packing, **own}, **options)


def stepped(context: Context, batch: Batch) -> dict[str, Tensor]:
    """Token rows, loss and gradients of a batch."""
    outputs = context.model.forward(batch)
    loss = functional.cross_entropy(outputs.logits, batch.labels)
    gradients = torch.autograd.grad(loss, list(context.model.trained().values()), allow_unused=True)
    named = {name: g for name, g in zip(context.model.trained(), gradients, strict=True) if g is not None}
    rows = {"features": outputs.features.detach(), "logits": outputs.logits.detach(), "loss": loss.detach()}
    return {**rows, "labels": batch.labels, "tasks": batch.tasks, **named}


def both_ways(context: Context) -> tuple[Batch, dict[str, Tensor], dict[str, Tensor]]:
    """The packed batch of a whole task and of some of its rows once more, and what it and the plain one give."""
    parts = [(context.task.data, np.arange(8)), (context.task.data, np.array([5, 0, 2]))]
    shared, apart = (context.passes.batch(parts, packed=packed) for packed in (True, False))
    return shared, stepped(context, shared), stepped(context, apart)


def off_identity(context: Context) -> None:
    """LoRA begins as no change, with half of its gradients at 0; move it away."""
    generator = torch.Generator().manual_seed(1)
    context.model.write(
        {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in context.model.trained().items()}
    )


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the size of each tensor where that is above 1."""
    assert one.keys() == other.keys()
    pairs = [(one[name].double(), other[name].double()) for name in one]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


@pytest.mark.parametrize("layers", ["all", [2]])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_batch_gives_the_same_loss_gradients_and_token_rows(
    name: str, layers: Any, folder_of: Callable[[str], Path]
) -> None:
    learner = learner_of(folder_of(name), layers=layers)
    context = learner.begin(experience("big"))
    off_identity(context)
    batch, shared, apart = both_ways(context)
    assert batch.inputs.packing is not None
    assert (batch.resume is None) == (layers == "all")  # lower layers are read from what is kept, in shared rows too
    assert len(batch.inputs.packing.positions) < len(batch.inputs)
    assert far(shared, apart) < 1e-5
    assert torch.equal(shared["labels"], apart["labels"])
    assert len(shared) > 6  # there are gradients


def stretched(self: Packing) -> Packing:
    return replace(self, positions=torch.arange(self.positions.shape[1]).expand_as(self.positions))


@pytest.mark.parametrize("fault", ["positions that go on", "a mask that lets texts see each other"])
@pytest.mark.parametrize("name", FAMILIES)
def test_faults_are_caught(
    name: str, fault: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(folder_of(name))
    context = learner.begin(experience("big"))
    if fault.startswith("positions"):
        made = packing_of
        for module in ("contune.backbone.reader.packing", "contune.backbone.backbone"):
            monkeypatch.setattr(f"{module}.packing_of", lambda *given: stretched(made(*given)))  # type: ignore[arg-type]
    else:
        monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    _, shared, apart = both_ways(context)
    assert far(shared, apart) > 1e-2
    with pytest.raises(ConfigError, match="see each other"):
        learner_of(folder_of(name))


def test_a_model_that_does_not_keep_texts_apart_is_refused(folder_of: Callable[[str], Path]) -> None:
    Learner(str(folder_of("bloom-writer")), "lora", objective="write")
    with pytest.raises(ConfigError, match=r"bloom.* every text needs a row of its own; set train.packing: false"):
        learner_of(folder_of("bloom-writer"))


def trained_both_ways(method: str, **options: Any) -> tuple[Learner, Learner]:
    found = []
    for packing in (True, False):
        learner = learner_of(tiny_folder("llama-writer"), method, packing=packing, **options)
        for task in (experience("big"), experience("red", "red", "blue")):
            learner.learn(task)
        found.append(learner)
    return found[0], found[1]


@pytest.mark.parametrize("method", ["lora", "er", "lwf", "i-lora", "rl-subnetwork", "finetune"])
def test_methods_learn_the_same(method: str) -> None:
    shared, apart = trained_both_ways(method, train={"lr": 5e-3})
    assert far(dict(shared.state().tensors), dict(apart.state().tensors)) < 1e-4
    assert shared.ledger.examples_backward == apart.ledger.examples_backward


def test_fewer_positions_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    for packing in (True, False):
        learner, shapes = learner_of(tiny_folder("llama-writer"), packing=packing), []
        learner.backbone.layers[0].register_forward_pre_hook(
            lambda module, args, kept=shapes: kept.append(args[0].shape[:2])
        )
        learner.learn(experience("big"))
        seen[packing] = sum(rows * positions for rows, positions in shapes)
        tokens = int(learner.begin(experience("red")).task.data.prepared.lengths.sum())
    assert 2 * tokens <= seen[True] < 0.7 * seen[False]  # two epochs


def test_packing_resumes_to_the_bit_in_the_middle_of_a_task() -> None:
    def learner() -> Learner:
        return learner_of(tiny_folder("llama-writer"), "er", size=4, train={"batch_size": 4, "optimizer": "adamw"})

    one = learner()
    one.learn(experience("big"))
    halfway = learn_keeping(one, experience("red", "red", "blue"), 2)
    again = learner()
    go_on(again, halfway)
    assert same_state(one.state(), again.state()) is None


def test_segments_and_counts_stay_those_of_tokens() -> None:
    learner = learner_of(tiny_folder("llama-writer"))
    context = learner.begin(experience("big"))
    selections = {
        TASK: Selection(context.task.data, np.arange(8)),
        "old": Selection(context.task.data, np.array([3, 1])),
    }
    found = []
    for packing in (True, False):
        own = context.with_settings(context.task.settings.with_changes({"packing": packing}))
        batch = local_batch(own, Processes(), selections, (0, 0))
        assert batch is not None
        found.append(batch)
    shared, apart = found
    assert (shared.inputs.packing is None, apart.inputs.packing is None) == (False, True)
    assert (shared.segments, shared.counts) == (apart.segments, apart.counts)
    assert torch.equal(shared.inputs.target_rows(), apart.inputs.target_rows())
    assert torch.equal(shared.labels, apart.labels)


def test_rows_that_are_taken_out_share_no_rows() -> None:
    learner = learner_of(tiny_folder("llama-writer"))
    context = learner.begin(experience("big"))
    batch = context.passes.batch([(context.task.data, np.arange(8))], packed=True)
    assert batch.inputs.take(torch.tensor([1, 0])).packing is None


def test_packing_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="packing is for objective: write"):
        Learner(tiny_model(), "lora", train={"packing": True})
    with pytest.raises(ConfigError, match="an encoder and a decoder"):
        learner_of(tiny_folder("t5-writer"))


@pytest.mark.parametrize("method", ["lfpt5", "slm", "dualprompt", "coda-prompt", "progressive-prompts", "sapt"])
def test_adapters_that_add_tokens_or_look_at_single_texts_are_refused(method: str) -> None:
    with pytest.raises(CombinationError, match="several texts share a row; set train"):
        learner_of(tiny_folder("llama-writer"), method)


def test_what_no_flag_says_is_refused_where_it_happens() -> None:
    learner = learner_of(tiny_folder("llama-writer"))
    context, backbone = learner.begin(experience("big")), learner.backbone
    inputs = context.passes.batch([(context.task.data, np.arange(8))], packed=True).inputs
    with pytest.raises(CombinationError, match="stand before every text"):
        backbone.features(inputs, prompts=torch.zeros(2, backbone.parts.prompt_width))
    pair = (torch.zeros(2, backbone.kv_width(1)),) * 2
    with backbone.prefixes({1: pair}), pytest.raises(CombinationError, match="stand before every text"):
        backbone.features(inputs)
    assert inputs.packing is not None
    with pytest.raises(CombinationError, match="adds positions or rows"):
        inputs.packing.unpack(torch.zeros(len(inputs), inputs.packing.positions.shape[1], 4))


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@given(LENGTHS, st.integers(40, 100))
def test_every_text_is_in_one_row_and_no_row_is_too_long(lengths: list[int], limit: int) -> None:
    rows = bins(lengths, limit)
    assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[text] for text in row) <= limit for row in rows)
    assert rows == bins(lengths, limit)
    assert len(rows) <= 2 * -(-sum(lengths) // limit)  # any two rows together hold more than the limit


@given(LENGTHS, st.integers(40, 100), st.integers(1, 64))
def test_shared_rows_cost_no_more_than_padding(lengths: list[int], most: int, width: int) -> None:
    rows = shared_rows(lengths, most, width)
    assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
    assert max(sum(lengths[text] for text in row) for row in rows) <= most
    assert cost(rows, lengths, width) <= cost([[text] for text in range(len(lengths))], lengths, width)


@given(LENGTHS)
def test_tokens_come_back_to_their_places(lengths: list[int]) -> None:
    packing = packing_of(lengths, bins(lengths, 60))
    if packing is None:
        return
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    values = torch.arange(1, mask.numel() + 1).reshape(mask.shape) * mask
    rows = packing.pack(values)
    assert torch.equal(packing.unpack(rows), values)
    assert torch.equal(rows > 0, packing.pack(mask))
    starts = torch.tensor([[place % max(lengths) for place in row] for row in (rows - 1).clamp(min=0).tolist()])
    assert torch.equal(starts * (rows > 0), packing.positions)


def test_padding_of_a_shared_row_is_seen_by_nobody() -> None:
    backbone = Backbone.load(ModelConfig(path=str(tiny_folder("llama-writer"))), reads="chat")
    packing = packing_of([4, 2, 3], [[0, 1], [2]])
    assert packing is not None
    ids = packing.pack(torch.arange(12).reshape(3, 4))
    found = []
    for filler in (0, 7):
        filled = ids.clone()
        filled[1, 3:] = filler
        states = backbone.parts.forward(input_ids=filled, position_ids=packing.positions)
        found.append(packing.unpack(states)[2, :3])
    torch.testing.assert_close(*found)
