"""Learning holds no more decoded inputs than the cache and the batches in work: memory does not grow with the data."""

import weakref
from pathlib import Path
from typing import Any

import pytest
from stream_files import png

from contune import Learner, StreamConfig, load_stream
from contune.backbone.reader import images as reader
from contune.backbone.reader.inputs import PreparedItems
from contune.checks.run import tiny_model
from contune.modality.image import Images

COUNT, SIDE = 480, 48
ONE = SIDE * SIDE * 3
LIMIT = 2**20 + 70 * ONE  # the cache, and two batches of 32


class Living:
    """Bytes of decoded images that something still holds, and the most there ever were."""

    def __init__(self) -> None:
        self.bytes = self.most = 0

    def add(self, image: Any) -> Any:
        self.bytes += image.nbytes
        self.most = max(self.most, self.bytes)
        weakref.finalize(image, self.drop, image.nbytes)
        return image

    def drop(self, count: int) -> None:
        self.bytes -= count


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> Living:
    found, plain = Living(), Images.decode
    monkeypatch.setattr(Images, "decode", lambda self, value: found.add(plain(self, value)))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("images")
    for at in range(COUNT):
        path = home / ("test" if at % 8 == 0 else "train") / "ab"[at // 8 % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(at, (SIDE, SIDE)))
    return home


def learn(folder: Path) -> None:
    stream = load_stream(StreamConfig(data=str(folder), tasks=1, decoded_mb=1))
    stream.content_hash()
    learner = Learner(tiny_model(), method="nmc")
    learner.learn(stream.tasks[0])
    learner.predict(stream.tasks[0].test.inputs)


def test_a_learner_holds_few_decoded_images(folder: Path, living: Living) -> None:
    learn(folder)
    assert 2**20 - ONE <= living.most <= LIMIT < 0.7 * COUNT * ONE


def test_a_reader_that_held_them_would_be_seen(folder: Path, living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        reader.ImageReader, "prepare", lambda self, inputs: PreparedItems(tuple(inputs), self.positions)
    )
    learn(folder)
    assert living.most > LIMIT
