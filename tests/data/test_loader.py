"""Host batches: the same for any hosts, threads and restarts; bounded; errors that name rows."""

import functools
import gc
import threading
import time

import numpy as np
import pytest

from jaxequi.data import loader, order, transforms

PIPE = "decode|random_resized_crop(8, scale=(0.2, 1))|flip"
BATCH = 8


def read(source, *, start=0, stop=10, hosts=1, threads=2, views=2, pipes=(PIPE, PIPE), **more):
    """Return steps start to stop - 1, each the hosts' batches put together again."""
    rows = functools.partial(order.epochs, 5, batch_size=BATCH, n=len(source))
    parts = []
    for host in range(hosts):
        positions = np.arange(BATCH).reshape(hosts, -1)[host] if hosts > 1 else None
        iterator = loader.batches(
            source,
            transforms.make(pipes),
            rows,
            seed=5,
            start=start,
            stop=stop,
            num_views=views,
            positions=positions,
            threads=threads,
            **more,
        )
        with iterator:
            parts.append(list(iterator))
    return [
        {key: np.concatenate([part[key] for part in step]) for key in step[0] if key != "aug"}
        | {key: np.concatenate([p["aug"][key] for p in step]) for key in step[0].get("aug", {})}
        for step in zip(*parts)
    ]


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("threads", [0, 2, 4])
@pytest.mark.parametrize("start", [0, 7])
def test_batches_are_equal_for_any_hosts_threads_and_restart(toy, hosts, threads, start):
    reference = read(toy(num_views=5), threads=0)
    same(read(toy(num_views=5), hosts=hosts, threads=threads, start=start), reference[start:])


def test_a_batch_has_the_documented_keys_shapes_and_types(toy):
    [batch] = read(toy(num_views=5), stop=1)
    expected = {
        "views": ((BATCH, 2, 8, 8, 3), np.uint8),
        "label": ((BATCH,), np.int32),
        "index": ((BATCH,), np.int32),
        "mask": ((BATCH,), bool),
        "latent": ((BATCH, 2, 7), np.float32),
        "random_resized_crop": ((BATCH, 2, 4), np.float32),
        "flip": ((BATCH, 2, 1), np.float32),
    }
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == expected
    np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
    view = np.round((batch["latent"][:, :, 0] - batch["index"][:, None]) * 10).astype(int)
    np.testing.assert_array_equal(
        batch["views"][:, :, 0, 0, 0], batch["index"][:, None] + 100 * view & 255
    )


def test_stored_views_are_distinct_and_uniform(toy):
    batches = read(toy(num_views=3), stop=200, threads=0)
    latent = np.concatenate([b["latent"][..., 0] - b["index"][:, None] for b in batches])
    pairs = np.round(latent * 10).astype(int)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.bincount(pairs[:, 0] * 3 + pairs[:, 1], minlength=9).reshape(3, 3)
    off = counts[~np.eye(3, dtype=bool)]
    assert abs(off / len(pairs) - 1 / 6).max() < 5 * np.sqrt(1 / 6 * 5 / 6 / len(pairs))


def test_a_source_is_asked_once_a_batch(toy):
    source = toy(num_views=2)
    read(source, threads=0, stop=3)
    assert source.reads == 3


def test_each_host_reads_its_rows_and_no_others(toy):
    [whole] = read(toy(num_views=2), threads=0, stop=1)
    for mine in np.arange(BATCH).reshape(4, -1):
        source, seen = toy(num_views=2), []
        pixels = source.read
        source.read = lambda indices, views, seen=seen, pixels=pixels: (
            seen.extend(indices) or pixels(indices, views)
        )
        with loader.batches(
            source,
            transforms.make(["decode"] * 2),
            functools.partial(order.epochs, 5, batch_size=BATCH, n=len(source)),
            seed=5,
            start=0,
            stop=1,
            num_views=2,
            positions=mine,
            threads=0,
        ) as batches:
            list(batches)
        assert sorted(seen) == sorted(whole["index"][mine])


def test_an_evaluation_pass_covers_each_example_once(toy):
    rows = functools.partial(order.once, batch_size=16, n=40)
    transform = transforms.make(["decode"])
    with loader.batches(toy(), transform, rows, seed=0, start=0, stop=3) as batches:
        found = list(batches)
    assert [b["mask"].sum() for b in found] == [16, 16, 8]
    seen = np.concatenate([b["index"][b["mask"]] for b in found])
    assert seen.tolist() == list(range(40))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_example_is_an_error_that_names_it(toy, threads):
    with pytest.raises(ValueError, match=r"example 3 of the toy set: file_3\.jpg is broken"):
        read(toy(broken=[3]), threads=threads, views=1)


def test_a_broken_example_is_skipped_alike_on_all_hosts(toy):
    broken = [3, 4, 11]
    alone = read(toy(broken=broken), on_error="skip", views=1, pipes=[PIPE])
    for hosts in (2, 4):
        same(read(toy(broken=broken), on_error="skip", hosts=hosts, views=1, pipes=[PIPE]), alone)
    whole = read(toy(), views=1, pipes=[PIPE])
    for with_gap, without in zip(alone, whole):
        assert not set(with_gap["index"]) & set(broken)
        hit = np.isin(without["index"], broken)
        np.testing.assert_array_equal(with_gap["mask"], ~hit)
        np.testing.assert_array_equal(with_gap["views"][~hit], without["views"][~hit])


def test_skipped_examples_are_counted(toy):
    rows = functools.partial(order.epochs, 5, batch_size=8, n=40)
    transform = transforms.make([PIPE])
    iterator = loader.batches(
        toy(broken=[3, 4]), transform, rows, seed=0, start=0, stop=10, on_error="skip"
    )
    with iterator:
        list(iterator)
    assert sorted(iterator.skipped) == [3, 4]
    assert "file_3.jpg" in iterator.skipped[3]


def test_a_data_set_of_broken_examples_does_not_hang(toy):
    with pytest.raises(ValueError, match="examples in a row cannot be read"):
        read(toy(broken=range(40)), on_error="skip", views=1)


def long(source, *, batch_size=8, stop=200, **more):
    rows = functools.partial(order.epochs, 5, batch_size=batch_size, n=len(source))
    transform = transforms.make(["decode"])
    return loader.batches(
        source, transform, rows, seed=5, start=0, stop=stop, on_error="skip", **more
    )


def until_refused(batches):
    """Return how many batches came, and what the error said."""
    given = 0
    try:
        for _ in batches:
            given += 1
    except ValueError as error:
        return given, str(error)
    raise AssertionError("it was never refused")


@pytest.mark.parametrize("threads", [0, 3])
def test_more_than_a_tenth_of_the_last_thousand_is_too_much(toy, threads):
    """A fifth of 200 examples: the 17th of them ends it, wherever threads have read to."""
    with long(toy(200, broken=range(0, 200, 5)), threads=threads) as batches:
        given, error = until_refused(batches)
    rows = [order.epochs(5, step, batch_size=8, n=200) for step in range(50)]
    bad = np.cumsum([(np.asarray(some) % 5 == 0).sum() for some in rows])
    assert given == np.argmax(bad > loader.TOLERATED)
    assert f"{bad[given]} of {8 * (given + 1)} examples of the toy set cannot be read" in error
    assert error.count("example ") == 3


def test_a_twentieth_is_skipped_for_ever(toy):
    with long(toy(200, broken=range(0, 200, 20))) as batches:
        assert sum(int((~batch["mask"]).sum()) for batch in batches) == 80


def test_a_disk_that_goes_away_is_noticed_after_a_long_good_time(toy):
    source = toy(40)
    with long(source, threads=0, stop=500) as batches:
        for _ in range(400):
            next(batches)
        source.broken = set(range(0, 40, 4))
        given, error = until_refused(batches)
    assert "of 1000 examples of the toy set" in error
    assert 40 <= given <= 55  # a quarter of 8 a batch, until there are over 100


def test_more_than_half_of_a_batch_is_not_replaced(toy):
    source = toy(200, broken=range(0, 200, 3))
    source.broken |= set(range(0, 200, 2))
    with (
        long(source, batch_size=40, threads=0) as batches,
        pytest.raises(ValueError, match=r"21 of 40 examples of the toy set .* more than 50%"),
    ):
        list(batches)


def test_reading_ahead_is_bounded(toy):
    source = toy()
    rows = functools.partial(order.epochs, 0, batch_size=8, n=40)
    transform = transforms.make(["decode"])
    with loader.batches(
        source, transform, rows, seed=0, start=0, stop=10**9, threads=4, buffer=3
    ) as batches:
        next(batches)
        time.sleep(0.3)
        assert source.reads <= 1 + 3


def test_iterators_leave_no_thread_behind(toy):
    def count():
        return sum(t.name.startswith("grain") for t in threading.enumerate())

    rows = functools.partial(order.epochs, 0, batch_size=8, n=40)
    transform = transforms.make(["decode"])
    before = count()
    for _ in range(20):
        with loader.batches(toy(), transform, rows, seed=0, start=0, stop=10**6) as batches:
            next(batches)
    gc.collect()
    deadline = time.time() + 5
    while count() > before and time.time() < deadline:
        time.sleep(0.05)
    assert count() <= before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_views": 3}, "stores 1 of an example"),
        ({"on_error": "ignore"}, "raise, skip"),
        ({"threads": -1}, "at least 0"),
        ({"start": 9, "stop": 3}, "start <= stop"),
    ],
)
def test_bad_options_are_refused_at_once(toy, options, words):
    options = {"seed": 0, "start": 0, "stop": 1, **options}
    with pytest.raises(ValueError, match=words):
        loader.batches(toy(), transforms.make(["decode"]), lambda step: np.arange(4), **options)


def test_images_of_unequal_sizes_are_an_error(toy):
    class Odd(toy):
        def _read(self, row, views):
            return {"image": [np.zeros((5 + row, 6, 3), np.uint8)], "label": 0}

    with pytest.raises(ValueError, match="unequal sizes"):
        read(Odd(), views=1, pipes=["decode"])
