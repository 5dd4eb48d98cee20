"""LoRA on texts against the Trainer of transformers: the same steps take no longer in contune's loop.

    python benchmarks/trainer_text.py ../shared                       # MiniLM, one task of CLINC150
    python benchmarks/trainer_text.py ../shared --tiny                # a tiny random BERT: the loop's own cost shows

The plain side is a model with mean pooling, LoRA of peft in all layers and a linear head, trained by `Trainer` without
logging, saving or evaluation, and without the dropout of the frozen model, which contune never turns on. Both sides
tokenise each text once, pad batches to their longest text, take the same number of steps of AdamW on batches of the same
size and clip at norm 1. Batches are drawn of texts of similar length on both sides, or at random with --random-order.
The tiny model is far from done after so few steps, and its accuracy moves by 5 points or more from seed to seed.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from torch.nn import functional

import pairs
import work

BATCH, RATE, RANK, ALPHA = 32, 2e-3, 8, 16


def model_folder(chosen, folder: str) -> Path:
    """MiniLM, or a tiny random BERT with its tokenizer, written to `folder`."""
    from transformers import BertConfig, BertModel

    from contune.backbone.source import packaged_folder

    if not chosen.tiny:
        return packaged_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (packaged_folder() / name).exists():
            shutil.copy(packaged_folder() / name, folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes, initializer_range=0.2), add_pooling_layer=False).save_pretrained(folder)
    return Path(folder)


def with_contune(chosen) -> float:
    """Accuracy on the task with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    (task,) = work.clinc_tasks(chosen.shared, 40, 1)
    train = {"epochs": chosen.epochs, "batch_size": BATCH, "lr": RATE, "precision": chosen.precision}
    train |= {"group_by_length": not chosen.random_order}
    with tempfile.TemporaryDirectory() as folder:
        model = ModelConfig(path=str(model_folder(chosen, folder)), feature="mean", max_length=128)
        learner = Learner(model, "lora", rank=RANK, layers="all", train=train)
        return work.run_contune(learner, [task])


class Classifier(torch.nn.Module):
    """What `Trainer` trains: the encoder with its LoRA, mean pooling and a linear head."""

    def __init__(self, encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, torch.nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, input_ids, attention_mask, labels=None) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2)
        logits = self.head((states * mask).sum(1) / mask.sum(1))
        loss = {} if labels is None else {"loss": functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def classifier(source: Path, classes: int) -> Classifier:
    """The encoder, without dropout, with LoRA on the query and value projections of all layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = AutoModel.from_pretrained(source, dtype=torch.float32, **none)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=work.query_and_value(base))
    return Classifier(get_peft_model(base, lora), classes)


def tokenised(tokenizer, examples) -> list[dict[str, object]]:
    """Rows for `Trainer`."""
    ids = tokenizer(list(examples.inputs), truncation=True, max_length=128, return_token_type_ids=False)
    rows = zip(ids["input_ids"], ids["attention_mask"], examples.labels.tolist(), strict=True)
    return [{"input_ids": words, "attention_mask": mask, "labels": label} for words, mask, label in rows]


def arguments_of(chosen, folder: str):
    """The steps that contune takes, and nothing beside them."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=chosen.epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        train_sampling_strategy="random" if chosen.random_order else "group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )


def plain(chosen) -> float:
    """Accuracy on the task with `Trainer` and peft."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer

    (task,) = work.clinc_tasks(chosen.shared, 40, 1)
    with tempfile.TemporaryDirectory() as folder:
        source = model_folder(chosen, folder)
        tokenizer, model = AutoTokenizer.from_pretrained(source), classifier(source, len(task.class_names))
        arguments = arguments_of(chosen, folder)
        with pairs.phase("train"):
            rows, collator = tokenised(tokenizer, task.train), DataCollatorWithPadding(tokenizer)
            Trainer(model, arguments, train_dataset=rows, data_collator=collator).train()
    model.eval()

    def answers(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        return model(inputs["input_ids"], inputs["attention_mask"])["logits"].argmax(1)

    with pairs.phase("evaluate"), torch.no_grad():
        parts = torch.arange(len(task.test)).split(32)
        found = torch.cat([answers([task.test.inputs[i] for i in rows]) for rows in parts])
    return float((found == torch.from_numpy(task.test.labels)).float().mean())


def add_flags(parser) -> None:
    """Sizes of the work."""
    parser.add_argument("--tiny", action="store_true", help="a tiny random BERT in place of MiniLM")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--random-order", action="store_true", help="batches drawn without a look at lengths")


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "lora against Trainer, a task of CLINC150, {epochs} epochs, tiny: {tiny}, random order: {random_order}",
        plain,
        with_contune,
        add_flags,
    )
