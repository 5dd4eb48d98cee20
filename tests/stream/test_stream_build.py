from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_files import labelled, load, png, write_image_parquet, write_lines

from contune.errors import ConfigError, DataError
from contune.stream import DataConfig, StreamConfig, load_stream

NAMES = ["ant", "bee", "cow", "dog", "eel"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    train = write_lines(tmp_path / "train.jsonl", labelled(NAMES * 8))
    return train, write_lines(tmp_path / "test.jsonl", labelled(NAMES * 2, "test"))


def test_class_order_on_a_hand_worked_example(files: tuple[Path, Path]) -> None:
    # default_rng(0).permutation(5) is [2 4 3 0 1], and 5 classes in 2 tasks are 3 and 2.
    stream = load(*files, tasks=2, order_seed=0)
    assert [task.class_names for task in stream.tasks] == [("cow", "eel", "dog"), ("ant", "bee")]
    first = stream.tasks[0].train
    # Rows 2, 3, 4 are cow, dog, eel: positions 0, 2, 1 of the task.
    assert first.ids.tolist()[:4] == [2, 3, 4, 7]
    assert first.labels.tolist()[:4] == [0, 2, 1, 0]
    assert first.inputs[0] == "text 2"
    assert stream.tasks[0].test.ids.tolist() == [2, 3, 4, 7, 8, 9]
    assert stream.class_names == ("cow", "eel", "dog", "ant", "bee")


def test_declared_classes_replace_the_sorted_order(files: tuple[Path, Path]) -> None:
    declared = ["eel", "dog", "cow", "bee", "ant"]
    assert load(*files, classes=declared, order_seed=None).class_names == tuple(declared)
    permuted = load(*files, classes=declared, order_seed=0)
    assert permuted.class_names == ("cow", "ant", "bee", "eel", "dog")
    with pytest.raises(DataError, match=r"line 5: the label 'eel' is not in stream\.classes"):
        load(*files, classes=declared[1:])
    with pytest.raises(ConfigError, match=r"names 'fox', but no training example"):
        load(*files, classes=[*declared, "fox"])


def test_declared_class_labels_without_examples_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = write_image_parquet(tmp_path / "a.parquet", [png(0), png(1)], [2, 0], ["z", "y", "x"])
    stream = load(path, path, order_seed=None)
    assert stream.class_names == ("z", "x")
    assert any("1 of 3 declared classes" in note and "'y'" in note for note in stream.notes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    classes=st.integers(1, 12),
    tasks=st.integers(1, 12),
    seed=st.none() | st.integers(0, 1000),
    share=st.floats(0, 0.9),
    keep=st.none() | st.integers(1, 6),
)
def test_tasks_partition_classes_and_examples(
    tmp_path: Path, classes: int, tasks: int, seed: int | None, share: float, keep: int | None
) -> None:
    names = [f"c{at}" for at in range(classes)]
    train = write_lines(tmp_path / "train.jsonl", labelled(names * 5))
    test = write_lines(tmp_path / "test.jsonl", labelled(names))
    if tasks > classes:
        with pytest.raises(ConfigError):
            load(train, test, tasks=tasks)
        return
    stream = load(train, test, tasks=tasks, order_seed=seed, validation=share, per_class=keep)
    assert sorted(stream.class_names) == sorted(names)
    assert sum(len(task.class_names) for task in stream.tasks) == classes
    used = [row for task in stream.tasks for row in task.train.ids.tolist()]
    held = [row for task in stream.tasks if task.validation is not None for row in task.validation.ids.tolist()]
    assert len(set(used + held)) == len(used) + len(held) == classes * min(5, keep or 5)
    assert sorted(row for task in stream.tasks for row in task.test.ids.tolist()) == list(range(classes))
    for task in stream.tasks:
        for part in (task.train, task.test, task.validation):
            if part is not None:
                source = names * 5 if part is not task.test else names
                expected = [source[row] for row in part.ids.tolist()]
                assert [task.class_names[label] for label in part.labels.tolist()] == expected


def test_validation_is_a_share_of_every_class_and_independent_of_the_order(files: tuple[Path, Path]) -> None:
    def held_out(**keys: object) -> set[int]:
        stream = load(*files, tasks=2, validation=0.25, **keys)
        for task in stream.tasks:
            assert task.validation is not None
            assert set(Counter(task.validation.labels.tolist()).values()) == {2}
            assert set(Counter(task.train.labels.tolist()).values()) == {6}
        return {row for task in stream.tasks if task.validation for row in task.validation.ids.tolist()}

    assert held_out(order_seed=0) == held_out(order_seed=7) == held_out(order_seed=None)
    assert held_out(seed=0) != held_out(seed=1)
    # Row r is the (r // 5)-th of class r % 5: every class draws for itself.
    assert len({frozenset(row // 5 for row in held_out() if row % 5 == label) for label in range(5)}) > 1
    plain = load(*files, tasks=2)
    assert [task.validation for task in plain.tasks] == [None, None]


def test_per_class_keeps_the_same_examples_whatever_the_order(files: tuple[Path, Path]) -> None:
    one = load(*files, tasks=5, per_class=3, order_seed=0)
    other = load(*files, tasks=1, per_class=3, order_seed=5)
    kept = sorted(row for task in one.tasks for row in task.train.ids.tolist())
    assert kept == sorted(other.tasks[0].train.ids.tolist())
    assert len(kept) == 15
    assert sum(len(task.test) for task in one.tasks) == 10


def test_sizes_cut_as_given(files: tuple[Path, Path]) -> None:
    assert [len(task.class_names) for task in load(*files, sizes=[1, 3, 1]).tasks] == [1, 3, 1]
    with pytest.raises(ConfigError, match="sums to 4, but the data has 5 classes"):
        load(*files, sizes=[2, 2])
    with pytest.raises(ConfigError, match=r"stream\.tasks is 6 but the data has only 5"):
        load(*files, tasks=6)
    with pytest.raises(ConfigError, match=r"neither stream\.tasks nor"):
        load_stream(StreamConfig(data=DataConfig(train=str(files[0]), test=str(files[1]))))


def test_test_label_that_training_never_has_is_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    test = write_lines(tmp_path / "t.jsonl", labelled([*NAMES, "fox", "fox"]))
    with pytest.raises(DataError) as caught:
        load(files[0], test)
    assert f"{test}, line 6: the label 'fox' never occurs in training" in str(caught.value)
    assert "1 more bad row" in str(caught.value)
    stream = load(files[0], test, skip_bad=True)
    assert "left out 2 rows" in stream.notes[0]
    assert stream.notes[0].endswith("line 6, 7")
    assert len(stream.tasks[0].test) == 5


def test_bad_rows_are_listed_by_reason_with_their_first_places(tmp_path: Path, files: tuple[Path, Path]) -> None:
    rows = [*labelled(NAMES), *({"text": "", "label": "ant"} for _ in range(7)), {"text": "x"}]
    stream = load(write_lines(tmp_path / "bad.jsonl", rows), files[1], skip_bad=True)
    assert len(stream.notes) == 2
    assert "left out 7 rows" in stream.notes[0]
    assert stream.notes[0].endswith("line 6, 7, 8, 9, 10, and 2 more")
    assert "left out 1 row" in stream.notes[1]


def test_nothing_usable_or_no_test_example_is_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    empty = write_lines(tmp_path / "empty.jsonl", [{"text": "", "label": "ant"}])
    with pytest.raises(DataError, match=r"the train data of .* has no usable row"):
        load(empty, files[1], skip_bad=True)
    part = write_lines(tmp_path / "part.jsonl", labelled(["ant", "cow"]))
    with pytest.raises(DataError, match=r"task \d \('\w+'\) has no test example"):
        load(files[0], part, tasks=5)
    assert any(
        "no test example has the classes 'bee', 'dog', 'eel'" in note
        for note in load(files[0], part, order_seed=None).notes
    )


def test_the_same_file_for_training_and_test_is_noted(files: tuple[Path, Path]) -> None:
    assert "read as training and as test data" in load(files[0], files[0]).notes[0]
    assert load(*files).notes == ()


def domain_rows(split: str) -> list[dict[str, object]]:
    rows = [("shop", "good"), ("shop", "bad"), ("film", "good"), ("film", "bad"), ("food", "good")]
    return [{"text": f"{split} {at}", "label": label, "site": site} for at, (site, label) in enumerate(rows * 2)]


def test_domains_follow_the_permutation_law(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "a.jsonl", domain_rows("train"))
    test = write_lines(tmp_path / "b.jsonl", domain_rows("test"))
    keys: dict[str, object] = {"kind": "domain-incremental", "by": "site"}
    declared = load(train, test, order_seed=None, **keys)
    assert [task.name for task in declared.tasks] == ["film", "food", "shop"]
    assert [task.class_names for task in declared.tasks] == [("bad", "good"), ("good",), ("bad", "good")]
    order = np.random.default_rng(3).permutation(3)
    assert [task.name for task in load(train, test, order_seed=3, **keys).tasks] == [
        ("film", "food", "shop")[at] for at in order
    ]
    given_order = load(train, test, order_seed=None, domains=["shop", "film", "food"], **keys)
    assert [task.name for task in given_order.tasks] == ["shop", "film", "food"]
    assert given_order.tasks[0].train.ids.tolist() == [0, 1, 5, 6]
    for names, error, message in (
        (["shop", "film"], DataError, r"line 5: the domain 'food' is not in stream\.domains"),
        (["shop", "film", "food", "toys"], ConfigError, "names 'toys'"),
    ):
        with pytest.raises(error, match=message):
            load(train, test, domains=names, **keys)
    with pytest.raises(ConfigError, match=r"stream\.tasks is 2, but the data has 3 domains"):
        load(train, test, tasks=2, **keys)
    with pytest.raises(DataError, match="has no column 'sit' for the domain"):
        load(train, test, kind="domain-incremental", by="sit")
    with pytest.raises(ConfigError, match="where every class comes once"):
        load(train, test, by="site")


def test_test_rows_of_unknown_domains_or_of_unseen_pairs_are_named(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "a.jsonl", domain_rows("train"))
    keys: dict[str, object] = {"kind": "domain-incremental", "by": "site"}
    unknown = write_lines(tmp_path / "b.jsonl", [*domain_rows("t"), {"text": "x", "label": "good", "site": "toys"}])
    with pytest.raises(DataError, match="line 11: the domain 'toys' of this test row never occurs in training"):
        load(train, unknown, **keys)
    unseen = write_lines(tmp_path / "c.jsonl", [*domain_rows("t"), {"text": "x", "label": "bad", "site": "food"}])
    with pytest.raises(DataError, match="line 11: the label 'bad' never occurs in the training data of its domain"):
        load(train, unseen, **keys)


def test_files_by_domain_equal_a_domain_column(tmp_path: Path) -> None:
    files: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for split in files:
        rows = sorted(domain_rows(split), key=lambda row: str(row["site"]))
        write_lines(tmp_path / f"{split}.jsonl", rows)
        for site in ("film", "food", "shop"):
            own = [row for row in rows if row["site"] == site]
            files[split][site] = str(write_lines(tmp_path / f"{split}-{site}.jsonl", own))
    config = StreamConfig(data=DataConfig(**files), kind="domain-incremental", order_seed=4)  # type: ignore[arg-type]
    by_column = load(
        tmp_path / "train.jsonl", tmp_path / "test.jsonl", kind="domain-incremental", by="site", order_seed=4
    )
    by_file = load_stream(config)
    assert by_file.content_hash() == by_column.content_hash()
    assert [task.train.ids.tolist() for task in by_file.tasks] == [task.train.ids.tolist() for task in by_column.tasks]


def test_groups_of_classes_make_a_class_incremental_stream(tmp_path: Path) -> None:
    rows = [{"text": f"t {at}", "label": name, "field": name in ("ant", "bee")} for at, name in enumerate(NAMES)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    stream = load(path, path, by="field", order_seed=None)
    assert [(task.name, task.class_names) for task in stream.tasks] == [
        ("false", ("cow", "dog", "eel")),
        ("true", ("ant", "bee")),
    ]


def test_hash_feels_one_byte_one_label_and_the_order(tmp_path: Path, files: tuple[Path, Path]) -> None:
    stream = load(*files, tasks=2)
    reference = stream.content_hash()
    assert stream.content_hash() is reference  # read once, asked for after every task
    assert load(*files, tasks=2).content_hash() == reference
    rows = labelled(NAMES * 8)
    rows[17]["text"] = "text 17 "
    byte = load(write_lines(tmp_path / "b.jsonl", rows), files[1], tasks=2).content_hash()
    rows = labelled(NAMES * 8)
    rows[0]["label"], rows[5]["label"] = "bee", "ant"
    label = load(write_lines(tmp_path / "l.jsonl", rows), files[1], tasks=2).content_hash()
    order = load(*files, tasks=2, order_seed=1).content_hash()
    kind = load(*files, tasks=2, kind="task-incremental").content_hash()
    assert len({reference, byte, label, order, kind}) == 5


def test_hash_feels_one_pixel(tmp_path: Path) -> None:
    first = write_image_parquet(tmp_path / "a.parquet", [png(0), png(1)], [0, 1], ["x", "y"])
    second = write_image_parquet(tmp_path / "b.parquet", [png(0), png(2)], [0, 1], ["x", "y"])
    assert load(first, first).content_hash() != load(second, first).content_hash()


def test_texts_and_images_do_not_mix(tmp_path: Path, files: tuple[Path, Path]) -> None:
    images = write_image_parquet(tmp_path / "a.parquet", [png(0)], [0], ["ant"])
    with pytest.raises(DataError, match="holds texts but its test data holds images"):
        load(files[0], images)


def test_one_file_alone_or_an_unknown_path_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a stream needs a test file too"):
        load_stream(StreamConfig(data="train.jsonl", tasks=1), base=tmp_path)
    for name in ("gone.jsonl", "no/such/folder"):
        with pytest.raises(DataError, match="there is no file or folder"):
            load_stream(StreamConfig(data=name, tasks=1), base=tmp_path)
