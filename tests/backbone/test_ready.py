"""What inputs were made ready for is kept while they live, in bounds, and never for lists that may change."""

import gc

import numpy as np

from contune.backbone.reader.inputs import PreparedText, from_token_lists
from contune.backbone.reader.ready import Ready
from contune.stream.inputs import Indexed, Inputs, indexed


class Counting:
    """Makes every text as many tokens as it has letters, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: Inputs) -> PreparedText:
        self.calls += 1
        return from_token_lists([np.zeros(len(text), np.int32) for text in inputs], np.zeros(len(inputs), np.bool_))


def rows(*texts: str) -> Indexed:
    return indexed(list(texts))


def test_rows_are_made_ready_once() -> None:
    ready, count, inputs = Ready(), Counting(), rows("abc", "de")
    first = ready.get(inputs, count)
    assert ready.get(inputs, count) is first
    assert count.calls == 1
    ready.get(rows("abc", "de"), count)  # other rows that say the same
    assert count.calls == 2


def test_a_list_that_was_changed_is_made_ready_again() -> None:
    ready, count, texts = Ready(), Counting(), ["abc"]
    ready.get(texts, count)
    texts[0] = "abcde"
    assert ready.get(texts, count).lengths.tolist() == [5]
    assert ready.positions() == 0


def test_what_is_kept_stays_within_bounds_and_goes_with_its_inputs() -> None:
    ready, count = Ready(most=5), Counting()
    first, second = rows("abc"), rows("def")
    ready.get(first, count), ready.get(second, count)
    assert ready.positions() == 3
    ready.get(second, count)
    assert count.calls == 3  # there was no room for the second
    del first
    gc.collect()
    assert ready.positions() == 0
    ready.get(second, count)
    assert ready.positions() == 3
