from pathlib import Path

import pytest
from stream_files import png, write_lines

from contune.errors import ConfigError, DataError
from contune.stream import DataConfig, Stream, StreamConfig, load_stream


def build(root: Path, paths: list[str]) -> Path:
    for seed, name in enumerate(paths):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    train = [f"train/{name}/{at}.png" for name in ("dog", "ant", "cow", "bee") for at in range(2)]
    return build(tmp_path / "images", [*train, *(f"test/{name}/x.png" for name in ("ant", "bee", "cow", "dog"))])


def load(folder: Path, **keys: object) -> Stream:
    return load_stream(StreamConfig(data=str(folder), **({"tasks": 2} | keys)))


def test_sub_folders_are_classes_in_sorted_order(images: Path) -> None:
    stream = load(images, order_seed=None)
    assert [task.class_names for task in stream.tasks] == [("ant", "bee"), ("cow", "dog")]
    assert stream.tasks[1].train.ids.tolist() == [4, 5, 6, 7]
    assert stream.tasks[1].train.labels.tolist() == [0, 0, 1, 1]
    assert stream.tasks[0].test.ids.tolist() == [0, 1]
    (images / "train" / ".DS_Store").write_bytes(b"x")
    (images / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    assert load(images, order_seed=None).content_hash() == stream.content_hash()


def test_first_level_is_the_domain_where_the_kind_says_so(tmp_path: Path) -> None:
    paths = [f"{split}/{d}/{c}/{at}.png" for split in ("train", "test") for d in "ab" for c in "xy" for at in range(2)]
    root = build(tmp_path / "d", paths)
    stream = load(root, kind="domain-incremental", order_seed=None)
    assert [(task.name, task.class_names) for task in stream.tasks] == [("a", ("x", "y")), ("b", ("x", "y"))]
    assert stream.tasks[1].train.ids.tolist() == [4, 5, 6, 7]
    with pytest.raises(DataError, match=r"folder inside the folder of one class.*stream\.by: folder"):
        load(root)


def test_links_out_of_the_folder_are_refused(images: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    link = images / "train" / "ant" / "link.png"
    link.symlink_to(secret)
    with pytest.raises(DataError, match=r"link\.png is a link to .*secret\.png, outside the image folder"):
        load(images, skip_bad=True)
    link.unlink()
    link.symlink_to(images / "train" / "ant" / "0.png")
    assert len(load(images, order_seed=None).tasks[0].train) == 5
    (images / "train" / "eel").symlink_to(tmp_path)
    with pytest.raises(DataError, match="eel is a link to"):
        load(images)


def test_a_split_that_is_a_link_elsewhere_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "test").rename(tmp_path / "elsewhere")
    (images / "test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="test is a link to"):
        load(images)


def test_what_is_no_image_is_named(images: Path) -> None:
    notes = images / "train" / "bee" / "notes.txt"
    notes.write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt: its suffix is none of"):
        load(images)
    assert "notes.txt" in load(images, skip_bad=True).notes[0]
    notes.rename(images / "train" / "bee" / "0a.png")
    with pytest.raises(DataError, match=r"0a\.png: the image cannot be read"):
        load(images)
    stream = load(images, skip_bad=True, order_seed=None)
    # 0.png, 0a.png, 1.png: the bad file keeps its number, so the ids of the others do not move.
    assert stream.tasks[0].train.ids.tolist() == [0, 1, 2, 4]


def test_a_stray_or_missing_part_of_the_layout_is_named(images: Path, tmp_path: Path) -> None:
    (images / "train" / "stray.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"stray\.png lies outside a class's folder"):
        load(images)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no train file"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "test").mkdir()
    with pytest.raises(DataError, match=r"train holds no images"):
        load(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"data\.label names a column"):
        load_stream(StreamConfig(data=DataConfig(folder=str(images), label="y"), tasks=1))


def test_a_folder_with_table_files_is_read_by_their_names(tmp_path: Path) -> None:
    rows = [{"text": f"t {at}", "label": str(at % 2)} for at in range(6)]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", rows[:2])
    write_lines(tmp_path / "validation.jsonl", rows[2:4])
    stream = load(tmp_path, order_seed=None)
    assert [task.validation and len(task.validation) for task in stream.tasks] == [1, 1]
    shared = load(tmp_path, validation=0.3, order_seed=None)
    assert "is not used" in shared.notes[0]
    assert all(task.validation is not None and set(task.validation.ids) <= set(range(6)) for task in shared.tasks)
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"both train\.jsonl and train\.csv"):
        load(tmp_path)
