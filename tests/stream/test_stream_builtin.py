from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from contune.errors import ConfigError, DataError
from contune.stream import BUILTIN_STREAMS, Stream, StreamConfig, load_stream
from contune.stream.builtin.stdlib_docs import exclusive_texts, first_paragraph, module_texts, read_stdlib_docs


@pytest.fixture(scope="module")
def docs() -> Stream:
    return load_stream(StreamConfig(data="stdlib-docs"))


def test_digits_are_all_there_once_with_their_own_pixels() -> None:
    from sklearn.datasets import load_digits

    stream = load_stream(StreamConfig(data="digits"))
    assert [len(task.class_names) for task in stream.tasks] == [2] * 5
    train = sum(len(task.train) for task in stream.tasks)
    test = sum(len(task.test) for task in stream.tasks)
    assert train + test == 1797
    assert abs(test / 1797 - 0.25) < 0.01
    sums = Counter(
        int(image[:, :, 0].astype(int).sum())
        for task in stream.tasks
        for part in (task.train, task.test)
        for image in part.inputs
        if isinstance(image, np.ndarray)
    )
    scaled = np.rint(load_digits().images * 255 / 16).sum(axis=(1, 2)).astype(int)
    assert sums == Counter(scaled.tolist())
    image = stream.tasks[0].train.inputs[0]
    assert isinstance(image, np.ndarray)
    assert (image.shape, image.dtype, image.max()) == ((8, 8, 3), np.uint8, 255)


def test_digits_split_is_the_same_under_every_seed() -> None:
    one = load_stream(StreamConfig(data="digits", order_seed=None, tasks=1))
    other = load_stream(StreamConfig(data="digits", order_seed=None, tasks=1, seed=5))
    assert one.content_hash() == other.content_hash()
    assert one.class_names == tuple("0123456789")


def test_stdlib_docs_has_balanced_modules_and_no_repeats(docs: Stream) -> None:
    assert len(docs.tasks) == 10
    assert 30 <= len(docs.class_names) <= 60
    assert {"asyncio", "email", "tkinter", "unittest"} <= set(docs.class_names)
    assert not any(name.startswith("_") or name in {"test", "idlelib", "lib2to3"} for name in docs.class_names)
    texts = [text for task in docs.tasks for part in (task.train, task.test) for text in part.inputs]
    assert len(set(map(str, texts))) == len(texts)
    for task in docs.tasks:
        for label in range(len(task.class_names)):
            train = int((task.train.labels == label).sum())
            test = int((task.test.labels == label).sum())
            assert 40 <= train + test <= 100
            assert test == (train + test) // 4
    assert "Python 3." in docs.notes[0]


def test_stdlib_docs_texts_are_single_lines_of_prose(docs: Stream) -> None:
    texts = [str(text) for task in docs.tasks for text in task.train.inputs]
    assert all(len(text.split()) >= 3 for text in texts)
    assert not any("\n" in text or "  " in text or ">>>" in text for text in texts)
    letters = [sum(map(str.isalpha, text)) / len(text.replace(" ", "")) for text in texts]
    assert min(letters) >= 0.75
    assert np.mean([len(text) for text in texts]) < 200


def test_stdlib_docs_parses_and_never_imports(tmp_path: Path) -> None:
    (tmp_path / "marker.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_suffix('.ran').write_text('x')\n"
        + "".join(f"def f{at}():\n    '''Does thing number {chr(97 + at % 26)}{at} well.'''\n" for at in range(44))
    )
    (tmp_path / "_private.py").write_text((tmp_path / "marker.py").read_text())
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "case.py").write_text((tmp_path / "marker.py").read_text())
    (tmp_path / "broken.py").write_text("def f(:\n" * 50)
    (tmp_path / "small.py").write_text("def f():\n    '''One small thing only.'''\n")
    splits, _ = read_stdlib_docs(tmp_path)
    assert {row.label for row in splits["train"].rows} == {"marker"}
    assert (len(splits["train"].rows), len(splits["test"].rows)) == (33, 11)
    assert not (tmp_path / "marker.ran").exists()
    with pytest.raises(DataError, match="holds no sources"):
        read_stdlib_docs(tmp_path / "test" / "none")


def test_docstrings_are_found_wherever_definitions_hide(tmp_path: Path) -> None:
    source = '''
class Outer:
    """Outer class of things."""
    if True:
        async def method(self):
            """Inner method of things."""
            def deeper():
                "Deeper function of things."
try:
    pass
except Exception:
    def fallback():
        """Fallback in a handler."""
else:
    def otherwise():
        """Otherwise in an else."""
match 1:
    case 1:
        def matched():
            """Matched in a case."""
'''
    padding = "\n".join(f"def g{at}(): pass" for at in range(40))
    (tmp_path / "nest.py").write_text(source + padding)
    assert module_texts(tmp_path) == {
        "nest": [
            "Outer class of things.",
            "Inner method of things.",
            "Deeper function of things.",
            "Fallback in a handler.",
            "Otherwise in an else.",
            "Matched in a case.",
        ]
    }


def test_what_is_no_prose_is_dropped() -> None:
    assert first_paragraph("od.__iter__() <==> iter(od)") is None
    assert first_paragraph("Too short.") is None
    assert first_paragraph("\n   Spread over\n   two lines.\n\n   And more.") == "Spread over two lines."
    assert first_paragraph("Shows what it does: >>> f(1)\n2") == "Shows what it does:"


def test_texts_of_two_modules_belong_to_neither() -> None:
    assert exclusive_texts({"a": ["x", "y", "y"], "b": ["x", "z"]}) == {"a": ["y"], "b": ["z"]}


def test_built_ins_have_no_domains() -> None:
    for name in BUILTIN_STREAMS:
        with pytest.raises(ConfigError, match="has no domains"):
            load_stream(StreamConfig(data=name, kind="domain-incremental"))
