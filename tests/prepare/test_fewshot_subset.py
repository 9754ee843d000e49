"""Few-shot subsets: the same positions in every class, or a draw for each class."""

import os

import numpy as np
import pytest

from jaxequi.data.sources import fewshot
from jaxequi.prepare import fewshot_subset


@pytest.fixture
def train(tmp_path):
    for name in ("a", "b", "c"):
        for number in range(50):
            path = tmp_path / "train" / name / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name}{number}".encode())
    return tmp_path / "train"


def kept(folder):
    return {d.name: sorted(int(f.stem) for f in d.iterdir()) for d in sorted(folder.iterdir())}


def test_the_same_positions_in_every_class(train, tmp_path):
    assert fewshot_subset.subset(train, tmp_path / "out", 10) == 30
    found = kept(tmp_path / "out")
    assert found["a"] == found["b"] == found["c"]
    assert len(found["a"]) == 10
    assert (tmp_path / "out" / "b" / f"{found['b'][0]:02d}.jpg").read_bytes().startswith(b"b")


def test_an_independent_draw_differs_between_classes(train, tmp_path):
    fewshot_subset.subset(train, tmp_path / "out", 10, independent=True)
    found = kept(tmp_path / "out")
    assert found["a"] != found["b"]
    assert all(len(files) == 10 for files in found.values())


def test_the_seed_decides(train, tmp_path):
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        fewshot_subset.subset(train, tmp_path / name, 5, seed)
    assert kept(tmp_path / "x") == kept(tmp_path / "y") != kept(tmp_path / "z")


def test_all_fifty(train, tmp_path):
    fewshot_subset.subset(train, tmp_path / "out", 50)
    assert kept(tmp_path / "out")["c"] == list(range(50))


def test_what_cannot_be_is_refused(train, tmp_path, capsys):
    with pytest.raises(ValueError, match="every class must have 51 files; the smallest has 50"):
        fewshot_subset.subset(train, tmp_path / "out", 51)
    (train / "c" / "00.jpg").unlink()
    with pytest.raises(ValueError, match="every class must have 50 files; the smallest has 49"):
        fewshot_subset.subset(train, tmp_path / "out", 10)
    with pytest.raises(ValueError, match="is not empty"):
        fewshot_subset.subset(train, train, 10)
    assert (
        fewshot_subset.main(
            ["fewshot", str(tmp_path / "none"), str(tmp_path / "out"), "--shots", "1"]
        )
        == 2
    )
    assert "cannot list" in capsys.readouterr().err


def test_nothing_is_half_copied(train, tmp_path, monkeypatch):
    copy = fewshot_subset.shutil.copyfileobj
    left = [5]

    def fail(file, other):
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        copy(file, other)

    monkeypatch.setattr(fewshot_subset.shutil, "copyfileobj", fail)
    with pytest.raises((ValueError, OSError), match="No space left"):
        fewshot_subset.subset(train, tmp_path / "out", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_pipe_among_the_images_is_named(train, tmp_path):
    (train / "b" / "07.jpg").unlink()
    os.mkfifo(train / "b" / "07.jpg")
    with pytest.raises(ValueError, match=r"07\.jpg is a pipe"):
        fewshot_subset.subset(train, tmp_path / "out", 10)
    assert not (tmp_path / "out").exists()


def test_the_source_takes_the_same_of_any_source(train, tmp_path):
    """Of a source that knows its labels, and of one that must be read for them."""
    folder = {"name": "folder", "root": str(train)}
    fewshot_subset.subset(train, tmp_path / "out", 5, seed=3)
    expected = kept(tmp_path / "out")["a"]
    read = {"name": "subset", "source": folder, "seed": 1}
    for source, few in ((folder, expected), (read, None)):
        found = fewshot.make(source, 5, seed=3)
        records = found.read(range(len(found)), np.zeros((len(found), 1), int))
        images = [record["image"][0].decode() for record in records]
        assert [record["label"] for record in records].count(2) == 5
        if few is not None:
            assert images == [f"{name}{number}" for name in "abc" for number in few]
        assert len(set(images)) == 15
    anew = fewshot.make(folder, 5, seed=3, independent=True)
    images = [anew.read([row], np.zeros((1, 1), int))[0]["image"][0] for row in range(15)]
    assert len({image[1:] for image in images}) > 5
    (train / "b" / "00.jpg").unlink()
    with pytest.raises(ValueError, match=r"'b' has 49 examples in .*take 1 to 49 shots"):
        fewshot.make(folder, 50)
