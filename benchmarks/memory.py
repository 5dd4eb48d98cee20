"""Does memory grow with the data? Peak resident memory of `nmc` on a few examples and on many.

    python benchmarks/memory.py images                       # 200 and 20,000 JPEG files of 224 x 224 pixels
    python benchmarks/memory.py texts                        # 2,000 and 200,000 rows of a Parquet file
    python benchmarks/memory.py images --few 50 --many 500   # quick
    python benchmarks/memory.py images --model PATH          # another model; one forward pass an example

The data are made in a temporary folder, a tenth of them to test, ten classes in five tasks; each size is learned and
answered in a process of its own, on one thread, and one JSON line each says the most that it ever held in MB, with the
processor seconds. The last line is the growth. The models are tiny and random (the images' one reads 224 x 224 pixels in
patches of 32), because a larger one takes longer and not more per example: what is kept of an example is its feature.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES, TASKS, SIDE = 10, 5, 224


def write_images(folder: Path, count: int) -> dict[str, object]:
    """JPEG files of smooth random colours, each another picture, ten classes by their first colour."""
    from PIL import Image

    for split, share in (("train", 0.9), ("test", 0.1)):
        for at in range(round(count * share)):
            draw = np.random.default_rng([share > 0.5, at])
            small = draw.integers(0, 256, (7, 7, 3), dtype=np.uint8)
            small[:3, :, at % 3] = 25 * (at % CLASSES)
            buffer = io.BytesIO()
            Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=90)
            path = folder / split / f"class {at % CLASSES}" / f"{at:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
    return {"folder": str(folder)}


def write_texts(folder: Path, count: int) -> dict[str, object]:
    """Parquet files with a short text and a label a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {}
    for split, share in (("train", 0.9), ("test", 0.1)):
        rows = range(round(count * share))
        texts = [f"{split} sentence {at} about the subject {'abcdefghij'[at % CLASSES] * 6}" for at in rows]
        files[split] = str(folder / f"{split}.parquet")
        pq.write_table(pa.table({"text": texts, "label": [at % CLASSES for at in rows]}), files[split])
    return files


def write_model(kind: str, folder: Path) -> str:
    """A tiny random model of images or of texts."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "images":
        from contune.checks.run import random_vit

        return random_vit(folder, image_size=SIDE, patch_size=32, **sizes)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {token: at for at, token in enumerate(["<pad>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)


def learn(data: dict[str, object], model: str) -> dict[str, float]:
    """Learn and answer everything in this process."""
    import torch

    from contune import Learner, StreamConfig, load_stream

    torch.set_num_threads(1)
    stream = load_stream(StreamConfig.model_validate({"data": data, "tasks": TASKS}))
    learner, right, asked = Learner(model, method="nmc"), 0, 0
    for task in stream.tasks:
        learner.learn(task)
        answers = learner.predict(task.test.inputs)
        right += sum(task.class_names[label] == said for label, said in zip(task.test.labels, answers, strict=True))
        asked += len(task.test)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "examples": sum(len(task.train) + len(task.test) for task in stream.tasks),
        "accuracy": round(right / asked, 3),
        "peak_mb": round(own.ru_maxrss / 1024, 1),
        "cpu_seconds": round(own.ru_utime + own.ru_stime, 1),
    }


def measured(kind: str, counts: list[int], model: str | None) -> list[float]:
    """Peak MB for each number of examples, each in a process of its own."""
    peaks = []
    with tempfile.TemporaryDirectory(prefix="contune-memory-") as home:
        chosen = model or write_model(kind, Path(home) / "model")
        for count in counts:
            folder = Path(home) / str(count)
            folder.mkdir()
            started = time.process_time()
            data = (write_images if kind == "images" else write_texts)(folder, count)
            made = time.process_time() - started
            order = json.dumps({"data": data, "model": chosen})
            own = subprocess.run(
                [sys.executable, __file__, "one", order], stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(own.stdout.strip().splitlines()[-1])
            print(json.dumps({"kind": kind, **found, "seconds_to_make_data": round(made, 1)}), flush=True)
            peaks.append(found["peak_mb"])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["images", "texts", "one"])
    parser.add_argument("order", nargs="?")
    parser.add_argument("--few", type=int)
    parser.add_argument("--many", type=int)
    parser.add_argument("--model")
    given = parser.parse_args()
    if given.kind == "one":
        print(json.dumps(learn(**json.loads(given.order))))
        return
    few, many = (200, 20_000) if given.kind == "images" else (2_000, 200_000)
    peaks = measured(given.kind, [given.few or few, given.many or many], given.model)
    print(json.dumps({"kind": given.kind, "growth_mb": round(peaks[1] - peaks[0], 1)}))


if __name__ == "__main__":
    main()
