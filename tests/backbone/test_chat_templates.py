"""What is learned of a conversation: token by token what the template of a family writes, and nothing of ours."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import CHATML, FAMILIES, Family
from tiny_models import byte_tokenizer

from contune.backbone.config import ModelConfig
from contune.backbone.reader.chat import chat_frame, plain_text
from contune.backbone.reader.language import LanguageReader, language_reader
from contune.errors import ConfigError, DataError
from contune.stream.conversation import Conversation, Message, every_answer

TURNS = (
    Message("system", "Be brief."),
    Message("user", "Hi?"),
    Message("assistant", "Yo."),
    Message("user", "Well?"),
)


def tokenizer_of(family: Family) -> Any:
    from transformers import AddedToken

    tokenizer = byte_tokenizer("llama")
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in family.marks])
    tokenizer.add_tokens([AddedToken(word, special=False) for word in family.words])
    tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    tokenizer.chat_template = family.template
    return tokenizer


def reader_of(tokenizer: Any, length: int = 512, **config: Any) -> LanguageReader:
    table = torch.zeros(len(tokenizer), 1)
    whole = SimpleNamespace(
        generation_config=None,
        config=SimpleNamespace(is_encoder_decoder=False),
        device=torch.device("cpu"),
        get_input_embeddings=lambda: SimpleNamespace(weight=table),
    )
    return language_reader(ModelConfig(path="a model", **config), whole, tokenizer, length, 0, None)


def asked(family: Family, answer: str = "Fine.") -> Conversation:
    return Conversation(TURNS if family.system else TURNS[1:], (answer,))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_is_what_its_template_writes_token_by_token(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    reader = reader_of(tokenizer)
    prepared = reader.prepare([asked(family)])
    tokens, start = prepared.texts.tokens(0).tolist(), int(prepared.starts[0])
    assert tokens[:start] == ids(tokenizer, family.prompt)
    assert tokens[start:] == ids(tokenizer, family.learned)
    assert tokenizer.convert_tokens_to_ids(family.end) in reader.end
    assert reader.text(np.array(tokens[start:])) == "Fine."


@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_is_asked_as_it_is_learned(name: str) -> None:
    family = FAMILIES[name]
    reader = reader_of(tokenizer_of(family))
    learned, unknown = reader.prepare([asked(family)]), reader.prepare([asked(family, "")])
    both = [prepared.texts.tokens(0)[: prepared.starts[0]].tolist() for prepared in (learned, unknown)]
    assert both[0] == both[1]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.system])
def test_a_template_that_refuses_is_a_sentence_with_the_row(name: str) -> None:
    reader = reader_of(tokenizer_of(FAMILIES[name]))
    one = Conversation(TURNS, ("Fine.",), place="chats.jsonl, line 3")
    with pytest.raises(DataError, match=r"cannot write chats\.jsonl, line 3 \(.*[Ss]ystem|Only user"):
        reader.prepare([one])


def test_turns_that_do_not_alternate_are_a_sentence_with_the_row() -> None:
    reader = reader_of(tokenizer_of(FAMILIES["Llama 2"]))
    good, bad = (Conversation((Message("user", "a"),) * count, ("b",)) for count in (1, 2))
    with pytest.raises(DataError, match=r"cannot write row 1 \(Roles must alternate\)"):
        reader.prepare([good, bad])


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages.nothing.at.all }}", "no attribute"),
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", "leaves the answer out"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "otherwise than the same turns"),
    ],
)
def test_a_template_that_can_write_no_answer_is_refused_when_the_model_is_loaded(template: str, problem: str) -> None:
    tokenizer = byte_tokenizer("llama")
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=problem):
        chat_frame(tokenizer, "a model")


def test_an_answer_that_no_template_ends_gets_the_end_of_texts() -> None:
    tokenizer = byte_tokenizer("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens = reader_of(tokenizer).prepare([Conversation(TURNS[1:2], ("ok",))]).texts.tokens(0).tolist()
    assert tokens == [*ids(tokenizer, "Hi?ok"), tokenizer.eos_token_id]


def test_without_a_template_several_turns_say_whose_they_are() -> None:
    assert plain_text(TURNS) == "System: Be brief.\nUser: Hi?\nAssistant: Yo.\nUser: Well?\nAssistant:\n"
    tokenizer = byte_tokenizer("llama")
    tokens = reader_of(tokenizer).prepare([Conversation(TURNS, ("ok",))])
    prompt = tokens.texts.tokens(0)[: tokens.starts[0]].tolist()
    assert prompt == [tokenizer.bos_token_id, *ids(tokenizer, plain_text(TURNS))]


def test_every_turn_of_the_assistant_may_be_learned_each_as_it_is_asked() -> None:
    family = FAMILIES["Qwen 3"]
    tokenizer = tokenizer_of(family)
    rows = reader_of(tokenizer).prepare(every_answer(asked(family)))
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    first = start + "<think>\n\n</think>\n\nYo.<|im_end|>\n"
    expected = [ids(tokenizer, first), ids(tokenizer, family.prompt + family.learned)]
    assert [rows.texts.tokens(at).tolist() for at in range(len(rows))] == expected
    assert int(rows.starts[0]) == len(ids(tokenizer, start))


def test_what_is_cut_is_the_oldest_and_never_the_frame() -> None:
    tokenizer = tokenizer_of(replace(FAMILIES["ChatML, Qwen 2"], template="{{ bos_token }}" + CHATML))
    head = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    whole = len(ids(tokenizer, head + "Well?" + tail)) + len(ids(tokenizer, "Fine.<|im_end|>\n"))

    def prompt_of(length: int, last: str = "Well?") -> tuple[str, int]:
        turns = (*TURNS[:3], Message("user", last))
        prepared = reader_of(tokenizer, length, cut_prompts=True).prepare([Conversation(turns, ("Fine.",))])
        assert int(prepared.lengths[0]) <= length
        return tokenizer.decode(prepared.texts.tokens(0)[: prepared.starts[0]].tolist()), prepared.truncated

    assert prompt_of(512)[1] == 0
    assert prompt_of(whole) == (head + "Well?" + tail, 1)  # the older question and its answer are gone
    assert prompt_of(whole, "x" * 40 + "Well?") == (head + "Well?" + tail, 1)
    assert prompt_of(whole - 2) == (head + "ll?" + tail, 1)
    with pytest.raises(DataError, match="even without its text"):
        prompt_of(whole - 6)
