"""LoRA in all layers of a ViT: contune is never slower than a bare loop, and takes no more memory.

    python benchmarks/lora.py ../shared                     # ViT-Tiny at 224 pixels, two tasks of CIFAR-100, one epoch
    python benchmarks/lora.py ../shared --image-size 112 --rounds 3

The plain side is the loop one would write by hand with transformers and peft. Both train and evaluate the same images.
"""

import numpy as np
import torch
from torch.nn import functional

import pairs
import work


def with_contune(chosen) -> float:
    """Learn with contune; accuracy on the last task among the classes seen."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    train = {"epochs": 1, "batch_size": 32, "lr": 2e-3, "augment": False, "precision": chosen.precision}
    learner = Learner(model, "lora", train=train)
    for task in work.cifar_tasks(chosen.shared, 2):
        learner.learn(task)
        data = learner.test_dataset(task)
        accuracy = float(np.mean(learner.answers(data) == data.labels))
    return accuracy


def plain(chosen) -> float:
    """The loop by hand; the same accuracy."""
    from peft import LoraConfig, get_peft_model

    base, features, width = work.plain_vit(chosen.shared, chosen.image_size)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=work.query_and_value(base)))
    seen, head = 0, None
    for task in work.cifar_tasks(chosen.shared, 2):
        head = work.grown_head(head, width, seen + len(task.class_names))
        trained = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-3)
        labels = torch.from_numpy(task.train.labels) + seen
        for rows in torch.randperm(len(task.train)).split(32):
            loss = functional.cross_entropy(head(features([task.train.inputs[i] for i in rows], model)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right, labels = 0, torch.from_numpy(task.test.labels) + seen
        with torch.no_grad():
            for rows in torch.arange(len(task.test)).split(32):
                scores = head(features([task.test.inputs[i] for i in rows], model))
                right += int((scores.argmax(1) == labels[rows]).sum())
        seen += len(task.class_names)
    return right / len(task.test)


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "lora in all layers, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        lambda parser: parser.add_argument("--image-size", type=int, default=224),
    )
