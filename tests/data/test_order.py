"""The order of examples: passes, the endless stream, the evaluation pass."""

import numpy as np
import pytest

from jaxequi.data import order


def test_a_pass_holds_every_example_at_most_once_and_drops_the_rest():
    steps = order.steps_per_epoch(16, 100)
    assert steps == 6
    for epoch in range(3):
        rows = [order.epochs(7, epoch * steps + t, 16, 100) for t in range(steps)]
        assert len(set(np.concatenate(rows).tolist())) == 96


def test_passes_differ_and_seeds_differ():
    first, second = order.epochs(0, 0, 50, 50), order.epochs(0, 1, 50, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    assert (order.epochs(1, 0, 50, 50) != first).any()


def test_the_order_is_stored():
    """A change of these numbers changes what every resumed run sees."""
    assert order.epochs(0, 3, 4, 10).tolist() == [7, 6, 0, 4]
    assert order.stream(0, 3, 4, 10).tolist() == [3, 8, 7, 6]


def test_the_stream_is_whole_permutations_one_after_the_other():
    rows = np.concatenate([order.stream(3, t, 7, 10) for t in range(20)])
    for epoch in range(14):
        assert sorted(rows[epoch * 10 : epoch * 10 + 10]) == list(range(10))


def test_the_stream_serves_batches_larger_than_the_data_set():
    rows = order.stream(0, 0, 25, 10)
    assert np.bincount(rows, minlength=10).tolist().count(3) == 5


def test_once_covers_every_example_once_in_storage_order():
    assert order.once_steps(16, 100) == 7
    rows = np.concatenate([order.once(t, 16, 100) for t in range(7)])
    assert rows[:100].tolist() == list(range(100))
    assert (rows[100:] == order.PADDING).all()
    assert len(rows) == 112


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: order.epochs(0, 0, 101, 100), "batch_size 101 is more than the 100"),
        (lambda: order.epochs(0, 0, 0, 100), "at least 1"),
        (lambda: order.stream(0, 0, 4, 0), "empty"),
        (lambda: order.once(7, 16, 100), "no batch 7"),
    ],
)
def test_bad_requests_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
