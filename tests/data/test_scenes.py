"""The embedded data set: a pure function of seed, object and view, behind a bounded cache."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest

from jaxequi.data import objects, raycast
from jaxequi.data.sources import scenes
from jaxequi.errors import Refusal

SIZE = 16


def small(split="train", **changes):
    kwargs = {"image_size": SIZE, "num_objects": 30, "num_views": 4} | changes
    return scenes.make(split, **kwargs)


def images(source, rows, views):
    return np.stack([r["image"] for r in source.read(rows, np.asarray(views))])


def test_records():
    source = small()
    views = np.array([[0, 3, 1], [2, 2, 0]])
    records = source.read([5, 0], views)
    assert len(records) == 2
    for record, row, view in zip(records, (5, 0), views):
        assert sorted(record) == ["image", "label", "latent"]
        assert len(record["image"]) == 3
        assert all(p.shape == (SIZE, SIZE, 3) and p.dtype == np.uint8 for p in record["image"])
        assert record["label"] == source.labels[row]
        assert record["latent"].dtype == np.float32
        np.testing.assert_array_equal(
            record["latent"], source.latents[row, view].astype(np.float32)
        )
    np.testing.assert_array_equal(records[1]["image"][0], records[1]["image"][1])


def test_a_image_is_its_object_under_its_latents():
    source = small()
    parts = raycast.Parts(*(a[4] for a in source.parts))
    expected = raycast.render(parts, source.latents[4], SIZE)
    np.testing.assert_array_equal(images(source, [4], [[0, 1, 2, 3]])[0], expected)


def test_latents_have_their_ranges():
    latents = small(num_objects=250, num_views=20).latents
    assert latents.shape == (200, 20, 7)
    assert latents.dtype == np.float64
    low = [-np.pi / 2, -np.pi / 2, -np.pi / 2, 0, 0, 0, 0]
    high = [np.pi / 2, np.pi / 2, np.pi / 2, 1, np.pi / 4, 2 * np.pi, 1]
    share = (latents - low) / np.subtract(high, low)
    assert np.all((share >= 0) & (share <= 1))
    np.testing.assert_allclose(share.mean((0, 1)), 0.5, atol=0.02)
    np.testing.assert_allclose(share.var((0, 1)), 1 / 12, atol=0.005)


def test_splits_share_no_object_and_balance_the_classes():
    train, val = small(num_objects=120), small("val", num_objects=120)
    assert (len(train), len(val)) == (96, 24)
    assert np.bincount(train.labels).tolist() == [8] * 12
    assert np.bincount(val.labels).tolist() == [2] * 12
    assert tuple(train.class_names) == objects.CLASS_NAMES
    together = np.concatenate([train.parts.center, val.parts.center])
    assert len(np.unique(together.reshape(120, -1), axis=0)) == 120


def test_more_objects_and_views_only_add():
    few, many = small(), small(num_objects=60, num_views=9)
    np.testing.assert_array_equal(many.latents[: len(few), :4], few.latents)
    np.testing.assert_array_equal(images(many, [7], [[1]]), images(few, [7], [[1]]))
    assert np.abs(small(seed=1).latents - few.latents).max() > 0.1


def test_each_latent_can_be_seen():
    source = small()
    base = np.array([0.3, -0.4, 0.5, 0.2, 0.5, 1.0, 0.7])
    moved = base + np.diag([0.5, 0.5, 0.5, 0.3, 0.3, 1.0, 0.3])
    for row in range(12):
        parts = raycast.Parts(*(a[row] for a in source.parts))
        shown = raycast.render(parts, np.concatenate([base[None], moved]), 32).astype(float)
        change = np.abs(shown[1:] - shown[0]).mean((1, 2, 3))
        assert np.all(change > 1.5), change


@pytest.mark.parametrize("cache_mb", [0, 10 * 3 * SIZE**2 / 2**20, 64])
def test_the_cache_changes_nothing_and_is_bounded(cache_mb):
    source = small(cache_mb=cache_mb)
    rng = np.random.default_rng(0)
    for _ in range(6):
        rows, views = rng.integers(0, len(source), 5), rng.integers(0, 4, (5, 2))
        expected = [
            raycast.render(
                raycast.Parts(*(a[row] for a in source.parts)), source.latents[row, view], SIZE
            )
            for row, view in zip(rows, views)
        ]
        np.testing.assert_array_equal(images(source, rows, views), expected)
    kept = sum(p.nbytes for p in source._cache.values())
    assert kept <= cache_mb * 2**20
    assert (kept > 0) == (cache_mb > 0)


def test_cached_images_are_not_computed_again(monkeypatch):
    source = small()
    first = images(source, [0, 1], [[0, 1], [2, 3]])
    monkeypatch.setattr(scenes, "render", None)
    np.testing.assert_array_equal(images(source, [1, 0], [[3, 2], [1, 0]]), first[::-1, ::-1])
    with pytest.raises(ValueError, match="read-only"):
        source.read([0], np.array([[0]]))[0]["image"][0][:] = 0


def test_threads_read_the_same():
    source, alone = small(cache_mb=0.01), small()
    rng = np.random.default_rng(0)
    asked = [(rng.integers(0, len(source), 6), rng.integers(0, 4, (6, 2))) for _ in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda a: images(source, *a), asked))
    for a, shown in zip(asked, given):
        np.testing.assert_array_equal(shown, images(alone, *a))


def test_the_stated_statistics_are_those_of_the_images():
    source = small(image_size=24, num_objects=120)
    shown = images(source, range(96), np.tile([0, 1], (96, 1))) / 255
    np.testing.assert_allclose(shown.mean((0, 1, 2, 3)), scenes.MEAN, atol=0.025)
    np.testing.assert_allclose(shown.std((0, 1, 2, 3)), scenes.STD, atol=0.015)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "valid"}, "unknown split 'valid'. Did you mean 'val'"),
        ({"image_size": 4}, "image_size must be at least 8, got 4"),
        ({"num_objects": 4, "split": "val"}, "num_objects=4 leaves the split 'val' empty"),
        ({"num_objects": 0}, "num_objects=0 leaves the split 'train' empty"),
        ({"num_views": 0}, "num_views must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"cache_mb": -1}, "cache_mb must be at least 0"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


@pytest.mark.parametrize(
    ("rows", "views", "message"),
    [
        ([25], [[0]], r"rows must lie in 0..24, got 25..25"),
        ([-1], [[0]], r"rows must lie in 0..24, got -1..-1"),
        ([0], [[4]], r"views must lie in 0..3, got 4..4"),
        ([0, 1], [[0]], r"rows must be \[N\] and views \[N, V\], got shapes \(2,\) and \(1, 1\)"),
        ([0], [0], r"got shapes \(1,\) and \(1,\)"),
    ],
)
def test_bad_readings_are_refused(rows, views, message):
    with pytest.raises(ValueError, match=message):
        small().read(rows, np.array(views))


def test_the_context_tells_the_class_in_training_alone():
    train, val = (
        small(split, num_objects=240, num_views=2, context=context)
        for split, context in (("train", 0.75), ("val", 0.0))
    )
    for source, share in ((train, 0.75), (val, 0.0)):
        own = [scenes.hues(label) for label in source.labels]
        off = source.latents[:, :, scenes.HUES] - [[pair] for pair in own]
        near = (abs((off + 0.5) % 1 - 0.5) < 0.06).all(axis=-1)
        assert abs(near.mean() - share) < 0.06
    plain = small("train", num_objects=240, num_views=2)
    others = [i for i in range(7) if i not in scenes.HUES]
    assert (plain.latents[:, :, others] == train.latents[:, :, others]).all()
    with pytest.raises(Refusal, match="from 0 to 1"):
        scenes.make("train", context=1.5)
