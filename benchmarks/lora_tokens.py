"""LoRA training of a language model: tokens per second of contune against a bare loop over the same peft model.

    python benchmarks/lora_tokens.py ../shared                 # a random Llama of 11 million weights
    python benchmarks/lora_tokens.py ../shared --hidden 0      # stories260k, where a step is mostly overhead
    python benchmarks/lora_tokens.py ../shared --answers       # questions: loss on the answers' tokens alone

Both sides train LoRA of rank 8 on queries and values with AdamW on the same texts in batches of the same size, drawn at
random, and evaluate nothing. Seconds are those of the steps. The figure beside them is the loss per token on the last
tenth of the texts, which nothing trains. The bare side hands `labels` to the stock model, as the examples of peft do.
"""

import gzip
import json
import tempfile
from pathlib import Path

import torch

import pairs

TRAIN = {"batch_size": 16, "lr": 2e-3, "schedule": "constant", "optimizer": "adamw", "clip": None}
TOKENS = 256
STORIES = "weights/stories260k_llama"


def conversations(chosen) -> tuple[list, list]:
    """Training and test exchanges: pieces of plays, or questions with their answers."""
    from contune.stream.chat.documents import pieces
    from contune.stream.conversation import Conversation, Message

    if chosen.answers:
        file = chosen.shared / "data" / "gsm8k" / "train.jsonl.gz"
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()[: chosen.texts]]
        found = [Conversation((Message("user", row["question"][:120]),), (row["answer"][-60:],)) for row in rows]
    else:
        text = gzip.decompress((chosen.shared / "data" / "corpora" / "shakespeare.txt.gz").read_bytes()).decode()
        found = [Conversation((), (piece,), (), "tokens") for piece in pieces(text, 220)[: chosen.texts]]
    border = 9 * len(found) // 10
    return found[:border], found[border:]


def model_folder(chosen, folder: Path) -> Path:
    """The pretrained model, or one of the same family with random weights and the same tokenizer."""
    if not chosen.hidden:
        return chosen.shared / STORIES
    sizes = {"hidden_size": chosen.hidden, "intermediate_size": 3 * chosen.hidden, "num_hidden_layers": 6}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": chosen.hidden // 8}
    return random_llama(chosen.shared, folder, sizes)


def random_llama(shared: Path, folder: Path, sizes: dict[str, int]) -> Path:
    """A model of the family of stories260k, in other sizes, with random weights and the same tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    stories = shared / STORIES
    config = AutoConfig.from_pretrained(stories)
    config.update(sizes)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(stories).save_pretrained(folder)
    return folder


def with_contune(chosen) -> float:
    """Loss per token of texts that nothing trains."""
    from contune import Learner, Task
    from contune.backbone.config import ModelConfig
    from contune.objective.write import read_answers
    from contune.stream.conversation import language_examples

    learned, asked = conversations(chosen)
    with tempfile.TemporaryDirectory() as name:
        path = model_folder(chosen, Path(name))
        model = ModelConfig(path=str(path), max_length=TOKENS)
        learner = Learner(
            model, "lora", objective="write", train={**TRAIN, "epochs": chosen.epochs, "precision": chosen.precision}
        )
        examples, test = (language_examples(each, range(len(each))) for each in (learned, asked))
        context = learner.begin(Task("texts", ("answer",), examples, test))
        with pairs.phase("train"):
            learner.fit(context, lambda report: None)
        learner.end(context)
        data = learner.test_dataset(Task("texts", ("answer",), examples, test))
        reading = read_answers(learner.reading(data), data)
    return float(reading.nats.sum() / reading.tokens.sum())


def plain(chosen) -> float:
    """The same by hand."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    learned, asked = conversations(chosen)
    with tempfile.TemporaryDirectory() as name:
        path = model_folder(chosen, Path(name))
        tokenizer = AutoTokenizer.from_pretrained(path)
        base = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    end, start = tokenizer.eos_token_id, tokenizer.bos_token_id

    def rows_of(found: list) -> list[tuple[torch.Tensor, int]]:
        rows = []
        for one in found:
            prompt = tokenizer(f"{one.prompt}\n")["input_ids"] if one.messages else [start]
            prompt = prompt[:-1] if prompt[-1] == end else prompt
            answer = [*tokenizer(one.answer, add_special_tokens=False)["input_ids"], *([end] if one.ends else [])]
            rows.append((torch.tensor([*prompt[max(0, len(prompt) + len(answer) - TOKENS) :], *answer]), len(answer)))
        return rows

    def batch_of(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.stack([torch.nn.functional.pad(each, (0, width - len(each))) for each, _ in rows])
        mask = torch.stack([torch.arange(width) < len(each) for each, _ in rows]).long()
        labels = ids.masked_fill(mask == 0, -100)
        for row, (each, answer) in enumerate(rows):
            labels[row, : len(each) - answer] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    rows, optimizer = rows_of(learned), torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    with pairs.phase("train"):
        for _ in range(chosen.epochs):
            for places in torch.randperm(len(rows)).split(TRAIN["batch_size"]):
                loss = model(**batch_of([rows[place] for place in places.tolist()])).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows_of(asked):
            nats += float(model(**batch_of([row])).loss) * row[1]
            tokens += row[1]
    return nats / tokens


def add(parser) -> None:
    """The flags of this benchmark."""
    parser.add_argument("--hidden", type=int, default=384, help="width of a random model; 0 for the pretrained one")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--answers", action="store_true", help="questions and answers instead of plays")


if __name__ == "__main__":
    pairs.main(__doc__, "tokens of LoRA training, random Llama of width {hidden}", plain, with_contune, add)
