"""Streams from real data sets, where they are at hand."""

from pathlib import Path

import numpy as np

from contune.stream import DataConfig, StreamConfig, load_stream


def test_cifar100(shared: Path) -> None:
    stream = load_stream(StreamConfig(data="cifar100", tasks=10, order_seed=1993), base=shared / "data")
    assert [(len(task.class_names), len(task.train), len(task.test)) for task in stream.tasks] == [(10, 600, 200)] * 10
    alphabetical = sorted(stream.class_names)
    order = np.random.default_rng(1993).permutation(100)
    assert list(stream.class_names) == [alphabetical[label] for label in order]
    image = stream.tasks[3].train.inputs[7]
    assert isinstance(image, np.ndarray)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)


def test_clinc150_by_intent_and_by_domain(shared: Path) -> None:
    stream = load_stream(StreamConfig(data="clinc150", tasks=10), base=shared / "data")
    parts = [(len(task.class_names), len(task.train), len(task.test)) for task in stream.tasks]
    assert parts == [(15, 1500, 450)] * 10
    assert [len(task.validation or ()) for task in stream.tasks] == [300] * 10
    by_domain = load_stream(StreamConfig(data="clinc150", by="domain", order_seed=None), base=shared / "data")
    assert [task.name for task in by_domain.tasks][:2] == ["auto_and_commute", "banking"]
    assert sorted(by_domain.class_names) == sorted(stream.class_names)


def test_hwu64_and_fewrel(shared: Path) -> None:
    hwu = load_stream(StreamConfig(data="hwu64", tasks=8), base=shared / "data")
    assert len(hwu.class_names) == 64
    assert sum(len(task.train) for task in hwu.tasks) == 9960
    fewrel = load_stream(StreamConfig(data="fewrel16", tasks=8), base=shared / "data")
    assert [(len(task.class_names), len(task.train), len(task.test)) for task in fewrel.tasks] == [(2, 400, 120)] * 8


def test_text_sets_as_domains(shared: Path) -> None:
    names = ["agnews", "dbpedia", "amazon", "boolq", "mnli", "copa"]
    data = DataConfig(
        train={name: f"text_cl/{name}/train.jsonl.gz" for name in names},
        test={name: f"text_cl/{name}/test.jsonl.gz" for name in names},
    )
    config = StreamConfig(data=data, kind="domain-incremental", domains=names, order_seed=None)
    stream = load_stream(config, base=shared / "data")
    assert [(task.name, len(task.class_names)) for task in stream.tasks] == [
        ("agnews", 4),
        ("dbpedia", 14),
        ("amazon", 5),
        ("boolq", 2),
        ("mnli", 3),
        ("copa", 2),
    ]


def test_corruptions_as_domains(shared: Path) -> None:
    files = {path.stem: str(path) for path in (shared / "data" / "cifar10_corrupted").glob("*.parquet")}
    config = StreamConfig(data=DataConfig(train=files, test=files), kind="domain-incremental")
    stream = load_stream(config)
    assert len(stream.tasks) == 6
    assert all(len(task.class_names) == 10 and len(task.train) == 300 for task in stream.tasks)
    assert len(stream.notes) == 6
