import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contune.errors import ConfigError
from contune.stream.order import arrival_order, cut, split_rows, task_sizes
from contune.stream.plan import plan_by_classes


def test_order_is_numpys_permutation_and_none_keeps_the_declared_one() -> None:
    # default_rng(0).permutation(5), worked by hand once in a Python shell.
    assert arrival_order(5, 0) == [2, 4, 3, 0, 1]
    assert arrival_order(5, None) == [0, 1, 2, 3, 4]
    assert arrival_order(100, 1993) == np.random.default_rng(1993).permutation(100).tolist()
    assert arrival_order(100, 1) != arrival_order(100, 2)


def test_classes_are_cut_in_that_order() -> None:
    plans = plan_by_classes(["ant", "bee", "cow", "dog", "eel"], tasks=2, sizes=None, order_seed=0)
    assert [plan.class_names for plan in plans] == [("cow", "eel", "dog"), ("ant", "bee")]
    assert [plan.name for plan in plans] == ["task 1", "task 2"]


@given(classes=st.integers(1, 300), tasks=st.integers(1, 300), seed=st.none() | st.integers(0, 2**32))
def test_every_class_comes_exactly_once(classes: int, tasks: int, seed: int | None) -> None:
    if tasks > classes:
        with pytest.raises(ConfigError, match="give at most"):
            task_sizes(classes, tasks, None)
        return
    sizes = task_sizes(classes, tasks, None)
    assert sizes == [len(part) for part in np.array_split(np.arange(classes), tasks)]
    pieces = cut(arrival_order(classes, seed), sizes)
    assert [len(piece) for piece in pieces] == sizes
    assert sorted(label for piece in pieces for label in piece) == list(range(classes))


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_given_sizes_are_met(sizes: list[int]) -> None:
    assert task_sizes(sum(sizes), None, sizes) == sizes
    with pytest.raises(ConfigError, match=rf"sums to {sum(sizes)}, but the data has {sum(sizes) + 1} classes"):
        task_sizes(sum(sizes) + 1, None, sizes)


def test_a_stream_that_nobody_cuts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neither stream\.tasks nor stream\.sizes"):
        task_sizes(4, None, None)


@given(
    count=st.integers(1, 200),
    share=st.floats(0, 0.99),
    keep=st.none() | st.integers(1, 250),
    seed=st.integers(0, 2**32),
)
def test_split_is_a_partition_of_what_is_kept(count: int, share: float, keep: int | None, seed: int) -> None:
    train, held_out = split_rows(count, share=share, keep=keep, seed=[seed, 0])
    both = [*train.tolist(), *held_out.tolist()]
    assert len(set(both)) == len(both) == min(count, keep or count)
    assert set(both) <= set(range(count))
    assert len(train) >= 1
    assert abs(len(held_out) - share * len(both)) <= 0.5 + 1e-9 or len(train) == 1
    again = split_rows(count, share=share, keep=keep, seed=[seed, 0])
    assert (train.tolist(), held_out.tolist()) == (again[0].tolist(), again[1].tolist())


def test_split_depends_on_the_seed_and_smaller_keeps_are_subsets() -> None:
    ten = set(split_rows(100, share=0, keep=10, seed=[0])[0].tolist())
    twenty = set(split_rows(100, share=0, keep=20, seed=[0])[0].tolist())
    assert ten < twenty
    assert ten != set(split_rows(100, share=0, keep=10, seed=[1])[0].tolist())
    assert len(split_rows(10, share=0.25, keep=None, seed=[0])[1]) == 3
