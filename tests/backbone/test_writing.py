"""How answers are written: from the whole prompt, as many tokens as fit, and by nothing that a model's folder says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_tasks import TRAIN, conversation, writer
from tiny_models import WRITERS, byte_tokenizer, save_tiny

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.language import first_bytes
from contune.checks.architectures.models import save_architecture
from contune.checks.tiny_models import MAX_POSITIONS
from contune.engine.learner import Learner
from contune.errors import DataError
from contune.stream.conversation import Conversation, Message, language_examples
from contune.stream.task import Task

LEAKS = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(20, 200)),
    "begin_suppress_tokens": list(range(20, 200)),
    "min_length": 60,
    "min_new_tokens": 20,
    "forced_bos_token_id": 77,
    "forced_eos_token_id": 78,
    "num_beams": 3,
    "do_sample": True,
    "max_length": 2,
    "encoder_repetition_penalty": 3.0,
    "bad_words_ids": [[token] for token in range(60, 200)],
    "sequence_bias": [[[90], 50.0]],
    "exponential_decay_length_penalty": [1, 3.0],
}


def llama(folder: Path, **config: Any) -> Backbone:
    """A tiny Llama whose tokenizer puts a start token before every text, and no end behind it."""
    save_tiny("llama-writer", folder)
    byte_tokenizer("llama").save_pretrained(folder)
    return Backbone.load(ModelConfig(path=str(folder), **config), reads="chat")


@pytest.mark.parametrize("name", ["llama-writer", "t5-writer"])
def test_no_setting_of_the_models_folder_changes_what_is_written(name: str, tmp_path: Path) -> None:
    def written(more: dict[str, Any]) -> list[list[int]]:
        folder = save_tiny(name, tmp_path / name)
        settings = {"bos_token_id": 4, "eos_token_id": 5, "decoder_start_token_id": 0, "pad_token_id": 0, **more}
        (folder / "generation_config.json").write_text(json.dumps(settings))
        backbone = Backbone.load(ModelConfig(path=str(folder)), reads="chat")
        asked = [(backbone.prepare(["one", "a much longer question"]), np.arange(2))]
        return backbone.features(backbone.prompts_only(asked, max_new_tokens=12)).tolist()

    plain = written({})
    for setting, value in LEAKS.items():
        assert written({setting: value}) == plain, setting


def test_the_settings_of_the_models_folder_stay_the_models_own(tmp_path: Path) -> None:
    folder = save_tiny("llama-writer", tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 5, "repetition_penalty": 5.0}))
    backbone = Backbone.load(ModelConfig(path=str(folder)), reads="chat")
    backbone.features(backbone.prompts_only([(backbone.prepare(["one"]), np.arange(1))], max_new_tokens=2))
    assert backbone.stock.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("name", WRITERS)
def test_a_prompt_that_fits_is_seen_whole_and_writes_what_room_there_is(name: str) -> None:
    """Alone or beside a short prompt, and up to the model's last place."""
    backbone = writer(name)
    lengths = (1, 60, 100, 110, 117)
    texts = ["".join(chr(97 + (at * 7 + length) % 26) for at in range(length)) for length in lengths]
    prepared = backbone.prepare(texts)
    inputs = backbone.prompts_only([(prepared, np.arange(5))], max_new_tokens=40)
    assert inputs.mask is not None
    assert inputs.mask.sum(dim=1).tolist() == prepared.starts.tolist()  # type: ignore[attr-defined]
    together = backbone.features(inputs)
    rooms = backbone.language.reader.rooms(inputs, inputs.mask)
    decoder = backbone.language.reader.decoder
    assert rooms == [40] * 5 if decoder else [min(40, MAX_POSITIONS - int(start)) for start in prepared.starts]  # type: ignore[attr-defined]
    for row, room in enumerate(rooms):
        alone = backbone.features(backbone.prompts_only([(prepared, np.array([row]))], max_new_tokens=40))
        assert together[row].tolist() == alone[0].tolist()
        assert set(together[row, room:].tolist()) <= {backbone.language.reader.fill}


def test_the_longest_training_answer_cuts_no_prompt(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m").config.path
    examples = language_examples([conversation("x" * 33, "yes"), conversation("b", "z" * 25)], range(2))
    learner = Learner(ModelConfig(path=folder, max_length=40), "lora", objective="write", train=TRAIN)
    learner.learn(Task("t", ("answer",), examples, examples))
    backbone = learner.backbone
    prepared = backbone.prepare(examples.inputs)
    inputs = backbone.prompts_only([(prepared, np.arange(1))], max_new_tokens=34)
    assert inputs.mask is not None
    assert int(inputs.mask.sum()) == 35 == int(prepared.starts[0])  # type: ignore[attr-defined]
    assert prepared.truncated == 0


def test_a_prompt_that_is_cut_keeps_its_start_its_system_turn_and_room_to_write(tmp_path: Path) -> None:
    backbone = llama(tmp_path / "m", max_length=80, cut_prompts=True)
    turns = (
        Message("system", "Be brief."),
        Message("user", "a" * 30),
        Message("assistant", "b"),
        Message("user", "c" * 90),
    )
    prepared = backbone.prepare([Conversation(turns, ("",)), Conversation(turns[1:2], ("yes",))])
    prompt = prepared.texts.tokens(0)[: prepared.starts[0]].tolist()  # type: ignore[attr-defined]
    text = backbone.language.reader.tokenizer.decode(prompt)
    assert text.startswith("<s>System: Be brief.\nUser: ccc")
    assert text.endswith("c\nAssistant:\n")
    assert len(prompt) == 60  # a quarter is left to write in
    assert prepared.truncated == 1


@pytest.mark.parametrize("start", [True, False])
def test_a_completion_stands_right_behind_its_prompt_with_its_blanks(start: bool, tmp_path: Path) -> None:
    folder = save_tiny("llama-writer" if start else "gpt2-writer", tmp_path / "m")
    tokenizer = byte_tokenizer("llama" if start else "gpt2")
    tokenizer.save_pretrained(folder)
    backbone = Backbone.load(ModelConfig(path=str(folder)), reads="chat")
    code = conversation("def f(x):\n", "    return x\n", verbatim=True)
    tokens = backbone.prepare([code]).texts.tokens(0).tolist()  # type: ignore[attr-defined]
    assert tokens == [
        *([4] if start else []),
        *tokenizer("def f(x):\n    return x\n", add_special_tokens=False)["input_ids"],
        5,
    ]
    learned = backbone.prepare([code]).texts.tokens(0)[-14:]  # type: ignore[attr-defined]
    assert backbone.language.reader.text(learned) == "    return x\n"


def test_a_token_without_an_embedding_is_named_with_its_row(tmp_path: Path) -> None:
    folder = save_tiny("llama-writer", tmp_path / "m")
    tokenizer = byte_tokenizer("llama")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    backbone = Backbone.load(ModelConfig(path=str(folder)), reads="chat")
    backbone.prepare(["old"])
    with pytest.raises(DataError, match="row 1 has the token '<new>', number 262 of the tokenizer"):
        backbone.prepare(["old", "one <new>"])


@pytest.mark.parametrize("load", ["bert", "llama-writer"])
def test_padding_without_an_embedding_is_replaced(load: str, tmp_path: Path) -> None:
    folder = save_tiny(load, tmp_path / "m")
    tokenizer = byte_tokenizer(load.removesuffix("-writer"))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    backbone = Backbone.load(ModelConfig(path=str(folder)), reads="chat" if load == "llama-writer" else None)
    prepared = backbone.prepare(["one", "a longer one"])
    states = backbone.encode(backbone.collate([(prepared, np.arange(2))])).states
    alone = backbone.encode(backbone.collate([(prepared, np.array([0]))])).states
    torch.testing.assert_close(states[0, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-4)


def document(text: str, **more: Any) -> Conversation:
    return Conversation((), (text,), (), "tokens", ends=False, **more)


def without_start(folder: Path) -> Backbone:
    save_tiny("gpt2-writer", folder)
    tokenizer = byte_tokenizer("gpt2")
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    return Backbone.load(ModelConfig(path=str(folder)), reads="chat")


def test_bytes_that_nothing_predicts_are_not_counted(tmp_path: Path) -> None:
    bare = without_start(tmp_path / "m")
    rows = [document("abc"), document("是b"), document("c", before="ab"), conversation("q", "abc")]
    found = bare.prepare(rows)
    assert found.unscored.tolist() == [1, 1, 0, 0]  # type: ignore[attr-defined]
    assert writer().prepare(rows[:1]).unscored.tolist() == [0]  # type: ignore[attr-defined]
    scored = [len(one.answer.encode()) - lost for one, lost in zip(rows[:3], found.unscored.tolist(), strict=False)]  # type: ignore[attr-defined]
    assert [found.units(np.array([at])) for at in range(3)] == scored  # a token a byte


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "größe": 1, "one": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_a_first_token_is_as_long_as_the_text_it_stands_for() -> None:
    assert first_bytes(word_tokenizer(), "größe one") == len("größe".encode()) == 7
    assert first_bytes(word_tokenizer(), "") == 0
    assert first_bytes(byte_tokenizer("gpt2"), "ab") == 1


def test_a_piece_is_read_with_the_text_before_it_and_scored_alone(tmp_path: Path) -> None:
    """The tokens to predict stay the same; the nats are those of the stock model after that text."""
    backbone = llama(tmp_path / "m")
    plain, carried = (backbone.prepare([one]) for one in (document("cde"), document("cde", before="ab")))
    assert [list(one.texts.tokens(0)[one.starts[0] :]) for one in (plain, carried)] == [  # type: ignore[attr-defined]
        backbone.language.reader.tokenizer("cde", add_special_tokens=False)["input_ids"]
    ] * 2
    inputs = backbone.collate([(carried, np.arange(1))])
    ours = torch.nn.functional.cross_entropy(backbone.language.scores(backbone.features(inputs)), inputs.target_ids())
    whole = torch.tensor([backbone.language.reader.tokenizer("abcde")["input_ids"]])
    labels = whole.clone()
    labels[:, :3] = -100
    assert ours.item() == pytest.approx(backbone.stock(input_ids=whole, labels=labels).loss.item(), abs=1e-5)


def test_text_before_a_piece_gives_way_to_it_and_is_no_cut(tmp_path: Path) -> None:
    backbone = llama(tmp_path / "m", max_length=10)
    prepared = backbone.prepare([document("cde", before="abcdefghijkl")])
    assert backbone.language.reader.tokenizer.decode(prepared.texts.tokens(0).tolist()) == "<s>ghijklcde"  # type: ignore[attr-defined]
    assert prepared.truncated == 0


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3", "llama"])
def test_padding_does_not_stand_between_soft_prompts_and_a_text(architecture: str, tmp_path: Path) -> None:
    """A layer that sees few positions back would count it, so that an answer would depend on the longest row beside it."""
    # Tied embeddings of this size would repeat the last token, whatever the layers say.
    folder = save_architecture(architecture, tmp_path / "m", initializer_range=0.5, tie_word_embeddings=False)
    backbone = Backbone.load(ModelConfig(path=str(folder)), reads="chat")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(4, backbone.parts.prompt_width, generator=generator)
    prepared = backbone.prepare(["hi", "a question much longer than the window of any layer"])

    def written(*rows: int) -> list[list[int]]:
        asked = backbone.prompts_only([(prepared, np.array(rows))], max_new_tokens=10)
        return backbone.features(asked, prompts=prompts).tolist()

    assert written(0) == written(0, 1)[:1]
    assert written(1) == written(0, 1)[1:]
    plain = backbone.prompts_only([(prepared, np.array([0]))], max_new_tokens=10)
    assert written(0) != backbone.features(plain).tolist(), "prompts change nothing, so that nothing was tried"
