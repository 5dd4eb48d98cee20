"""Written answers: contune's batches of like length against stock `generate` in the order of the file, and one by one.

    python benchmarks/generation.py ../shared
    python benchmarks/generation.py ../shared --batch 1        # the plain side asks one question at a time

stories260k writes at most 32 tokens after questions of very different lengths; both sides take the likeliest token. The
figure beside the seconds is the share of answers that are those of stock `generate` for each question alone.
"""

import gzip
import json

import torch

import pairs

ROOM = 32


def questions(chosen) -> list[str]:
    """Questions of 10 to 320 characters."""
    rows = gzip.decompress((chosen.shared / "data" / "gsm8k" / "train.jsonl.gz").read_bytes()).splitlines()
    texts = [json.loads(row)["question"] for row in rows[: chosen.questions]]
    return [text[: 10 + 310 * (at * 7919 % 100) // 100].strip() for at, text in enumerate(texts)]


def stock(chosen):
    """The stock model with its tokenizer."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = chosen.shared / "weights" / "stories260k_llama"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def written(model, tokenizer, texts: list[str], size: int) -> list[str]:
    """What stock `generate` writes, batch after batch."""
    found = []
    for start in range(0, len(texts), size):
        ids = [tokenizer(f"{text}\n")["input_ids"] for text in texts[start : start + size]]
        ids = [each[:-1] if each[-1] == tokenizer.eos_token_id else each for each in ids]
        inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.no_grad():
            new = model.generate(**inputs, max_new_tokens=ROOM, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        rows = new[:, inputs["input_ids"].shape[1] :]
        found += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    return found


def share_of_stock(chosen, answers: list[str]) -> float:
    """How many answers are those of stock `generate` for the question alone."""
    texts = questions(chosen)[:50]
    alone = written(*stock(chosen), texts, 1)
    return sum(one == other for one, other in zip(answers, alone, strict=False)) / len(texts)


def with_contune(chosen) -> float:
    """The share that agrees."""
    from contune import Learner, Task
    from contune.objective.write import write_answers
    from contune.stream.conversation import Conversation, Message, language_examples

    texts = questions(chosen)
    learner = Learner(str(chosen.shared / "weights" / "stories260k_llama"), "linear-probe", objective="write")
    conversations = [Conversation((Message("user", text),), ("yes",)) for text in texts]
    examples = language_examples(conversations, range(len(conversations)))
    task = Task("questions", ("answer",), examples.take(range(4)), examples)
    learner.learn(task)
    data = learner.test_dataset(task)
    with pairs.phase("write"):
        answers = write_answers(learner.reading(data), data, ROOM)
    return share_of_stock(chosen, answers)


def plain(chosen) -> float:
    """The same with stock `generate`."""
    model, tokenizer = stock(chosen)
    with pairs.phase("write"):
        answers = written(model, tokenizer, questions(chosen), chosen.batch)
    return share_of_stock(chosen, answers)


def add(parser) -> None:
    """The flags of this benchmark."""
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="questions at a time on the plain side")


if __name__ == "__main__":
    pairs.main(__doc__, "{questions} written answers, {batch} at a time by hand", plain, with_contune, add)
