"""Data that needs no download: digits, photographs, the drawing, and parts of a source."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxequi.data.sources import arrays, digits, drawing, fewshot, photographs, rotated, subset


def views(rows, count=1):
    return np.zeros((rows, count), int)


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is of the extra dev")
    train, test = digits.make("train"), digits.make("test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.class_names == tuple("0123456789")
    whole = datasets.load_digits()
    fifth = test.read([0], views(1))[0]  # the fifth of the first five
    assert fifth["label"] == whole.target[4]
    np.testing.assert_array_equal(fifth["image"][0], np.round(whole.images[4] * 15.9375))
    assert train.images.max() == 255
    every = sorted([*train.images.tobytes(), *test.images.tobytes()])
    assert every == sorted(np.round(whole.images * 15.9375).astype(np.uint8).tobytes())


def test_digits_refuse_other_splits_and_name_their_package(monkeypatch):
    with pytest.raises(ValueError, match="train and test, not 'val'"):
        digits.make("val")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        digits.make()


def test_two_photographs_in_copies():
    pair = photographs.make(copies=3)
    assert len(pair) == 6
    assert pair.class_names == ("temple", "flower")
    shown = [r["image"][0] for r in pair.read([0, 1, 4], views(3, 1))]
    assert {image.shape for image in shown} == {(427, 640, 3)}
    np.testing.assert_array_equal(shown[0], shown[2])
    assert shown[0].mean() > shown[1].mean()  # sky, and a dark ground
    with pytest.raises(ValueError, match="copies=0"):
        photographs.make(copies=0)


@pytest.mark.parametrize("size", [31, 32, 33])
def test_the_drawing_has_no_symmetry(size):
    image = drawing.draw(size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert (image.min(), image.max()) == (drawing.GROUND, drawing.LINE)
    turns = [np.rot90(m, k) for m in (image, image[:, ::-1]) for k in range(4)]
    assert len({turned.tobytes() for turned in turns}) == 8
    # it touches borders, so that a pixel left over there is seen
    assert all(line.max() == drawing.LINE for line in (image[0], image[-1], image[:, -1]))


def test_the_pair_and_its_copies():
    source = drawing.make(size=16, copies=3)
    assert len(source) == 6
    assert source.class_names == ("as drawn", "turned")
    records = source.read(range(6), views(6, 2))
    assert [record["label"] for record in records] == [0, 1, 0, 1, 0, 1]
    assert all(len(record["image"]) == 2 for record in records)
    for record in records:
        expected = np.rot90(drawing.draw(16), record["label"])
        np.testing.assert_array_equal(record["image"][1], expected)


@pytest.mark.parametrize("arguments", [{"size": 7}, {"copies": 0}])
def test_no_drawing(arguments):
    with pytest.raises(ValueError, match="8 pixels or more"):
        drawing.make(**arguments)


@pytest.fixture
def ten(tmp_path):
    """Ten images whose grey level and label are their row."""
    path = tmp_path / "ten.npz"
    grey = np.arange(10, dtype=np.uint8)
    np.savez(path, images=np.broadcast_to(grey[:, None, None], (10, 2, 2)), labels=grey)
    return {"name": "arrays", "path": str(path)}


def labels(source):
    return [record["label"] for record in source.read(range(len(source)), views(len(source)))]


def test_parts_of_one_order(ten):
    whole = labels(subset.make(ten))
    assert sorted(whole) == list(range(10))
    assert whole != list(range(10))
    parts = [subset.make(ten, start, stop) for start, stop in ((0, 0.2), (0.2, 0.75), (0.75, 1))]
    assert [len(part) for part in parts] == [2, 5, 3]  # cut off at int(7.5)
    assert [label for part in parts for label in labels(part)] == whole
    assert labels(subset.make(ten, seed=1)) != whole
    assert parts[0].class_names == arrays.make(ten["path"]).class_names
    assert parts[0].num_views == 1
    assert str(parts[1]) == "5 of 10 arrays u8[2, 2]"
    record = parts[2].read([1], views(1, 2))[0]
    assert [image[0, 0] for image in record["image"]] == [record["label"]] * 2


def test_parts_of_parts(ten):
    half = {"name": "subset", "source": ten, "stop": 0.5}
    text = f"arrays(path={ten['path']!r})"
    assert labels(subset.make(text)) == labels(subset.make(ten))
    inner = labels(subset.make(**{k: v for k, v in half.items() if k != "name"}))
    assert set(labels(subset.make(half, stop=0.4))) < set(inner)


@pytest.mark.parametrize(
    ("start", "stop"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1), (0.0, 0.05)]
)
def test_an_empty_part_is_refused(ten, start, stop):
    with pytest.raises(ValueError, match="empty or outside"):
        subset.make(ten, start, stop)


def test_an_unknown_source_is_refused(ten):
    with pytest.raises(ValueError, match="Did you mean 'arrays'"):
        subset.make({**ten, "name": "array"})


class Silent:
    """Classes 2, 0 and 4, of which there are 2, 12 and 6; the labels are known by reading only."""

    class_names, num_views = tuple("abcde"), 1
    classes = (0, 4) * 6 + (2, 0, 2) + (0,) * 5

    def __len__(self):
        return len(self.classes)

    def __str__(self):
        return "a source"

    def read(self, rows, views):
        return [{"image": [row] * views.shape[1], "label": self.classes[row]} for row in rows]


@pytest.fixture
def uneven(monkeypatch):
    monkeypatch.setattr(subset, "make_source", lambda given: Silent())
    return "silent"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (0.05, [1, 1, 1]),  # one example would be the share, and there are three classes
        (0.15, [1, 1, 1]),
        (0.3, [2, 2, 2]),
        (0.45, None),  # class 2 has no more, and of the two others one is first
        (0.6, [5, 2, 5]),
        (1.0, [12, 2, 6]),
    ],
)
def test_a_balanced_part_has_equally_many_of_each_class(uneven, stop, expected):
    part = subset.make(uneven, stop=stop, balanced=True)
    counts = np.bincount(labels(part), minlength=5)
    assert not counts[[1, 3]].any()
    assert counts.sum() == max(3, int(20 * stop))
    if expected is None:
        assert counts[2] == 2
        assert sorted(counts[[0, 4]]) == [3, 4]
    else:
        assert counts[[0, 2, 4]].tolist() == expected


def test_balanced_parts_lie_in_each_other_and_follow_their_seed(uneven):
    def rows(**arguments):
        part = subset.make(uneven, balanced=True, **arguments)
        return [record["image"][0] for record in part.read(range(len(part)), views(len(part)))]

    assert sorted(rows()) == list(range(20))
    assert rows(stop=0.3) + rows(start=0.3) == rows() == rows()
    assert rows(stop=0.05) == rows(stop=0.15)
    assert rows(stop=0.05) + rows(start=0.05) == rows()
    assert {tuple(sorted(rows(stop=0.3, seed=seed))) for seed in range(4)} != {
        tuple(sorted(rows(stop=0.3)))
    }


def test_a_balanced_part_needs_labels(uneven, monkeypatch):
    monkeypatch.setattr(Silent, "classes", (0, -1, 1))
    assert len(subset.make(uneven, stop=0.7)) == 2
    with pytest.raises(ValueError, match="a source has unlabelled examples"):
        subset.make(uneven, stop=0.7, balanced=True)


def test_a_source_that_knows_its_labels_is_not_read(ten, monkeypatch):
    expected = labels(subset.make(ten, balanced=True, seed=3))
    turned = rotated.make(ten, quarters=True, label="turn")
    turns = [record["label"] for record in turned.read(range(10), views(10))]
    monkeypatch.setattr(arrays.Arrays, "read", None)
    half = subset.make(ten, balanced=True, seed=3)
    assert half.labels.tolist() == expected
    wrapped = subset.make({"name": "rotated", "source": {"name": "subset", "source": ten}})
    assert sorted(wrapped.labels) == list(range(10))
    wrapped = {"name": "rotated", "source": ten, "quarters": True, "label": "turn"}
    assert sorted(subset.make(wrapped, balanced=True).labels) == sorted(turns)
    assert fewshot.make({"name": "subset", "source": ten, "stop": 1.0}, 1).labels.size == 10
