"""LoRA in the top quarter of a text encoder: contune computes the frozen lower layers once per text.

    python benchmarks/lora_text.py ../shared

MiniLM on tasks of CLINC150, 40 texts a class, 5 epochs. The plain side trains the same LoRA on the same top layers with
transformers and peft, and goes through the whole model at every step and evaluation. Both evaluate all seen tasks after
each task.
"""

import torch
from torch.nn import functional

import pairs
import work

TRAIN = {"epochs": 5, "batch_size": 32, "lr": 2e-3}


def with_contune(chosen) -> float:
    """Accuracy on the last task right after it."""
    from contune import Learner

    learner = Learner(work.MINILM, "lora", layers="top-quarter", train={**TRAIN, "precision": chosen.precision})
    tests: list = []
    for task in work.clinc_tasks(chosen.shared, 40, chosen.tasks):
        learner.learn(task)
        tests.append(learner.test_dataset(task))
        right = [learner.answers(data) == data.labels for data in tests]
    return float(right[-1].mean())


def plain(chosen) -> float:
    """The same by hand."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    from contune.backbone.source import packaged_folder

    folder = packaged_folder()
    tokenizer, base = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
    )
    depth = base.config.num_hidden_layers
    top = list(range(depth - -(-depth // 4), depth))
    config = LoraConfig(r=8, lora_alpha=16, target_modules=work.query_and_value(base), layers_to_transform=top)
    model = get_peft_model(base, config).eval()

    def features(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(2)
        return (states * mask).sum(1) / mask.sum(1)

    seen, head, tasks = 0, None, work.clinc_tasks(chosen.shared, 40, chosen.tasks)
    starts: list[int] = []
    for number, task in enumerate(tasks):
        starts.append(seen)
        seen += len(task.class_names)
        head = work.grown_head(head, base.config.hidden_size, seen)
        optimizer = torch.optim.AdamW(
            [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad], lr=2e-3
        )
        labels = torch.from_numpy(task.train.labels) + starts[-1]
        for _ in range(TRAIN["epochs"]):
            for rows in torch.randperm(len(task.train)).split(TRAIN["batch_size"]):
                loss = functional.cross_entropy(head(features([task.train.inputs[i] for i in rows])), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            for start, other in zip(starts, tasks[: number + 1], strict=True):
                parts = torch.arange(len(other.test)).split(32)
                answers = torch.cat([head(features([other.test.inputs[i] for i in rows])).argmax(1) for rows in parts])
                right = answers == torch.from_numpy(other.test.labels) + start
    return float(right.float().mean())


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "lora in the top quarter, MiniLM, {tasks} tasks of CLINC150",
        plain,
        with_contune,
        lambda parser: parser.add_argument("--tasks", type=int, default=3),
    )
