"""Folders, 3DIEBench and arrays on disk: what is read, and what is refused."""

import gzip
import os
import pathlib
import pickle

import numpy as np
import pytest

from configs import sie
from jaxequi.data import decoding
from jaxequi.data.sources import _views, arrays, folder, rotated, threedie

FILES = pathlib.Path(__file__).parents[1] / "files"
JPEG = (FILES / "rgb.jpg").read_bytes()


@pytest.fixture
def classes(tmp_path):
    for name, files in {"owl": ["b.JPEG", "a.jpg"], "cat": ["x.png", "sub/y.png", "z.txt"]}.items():
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEG)
    return tmp_path


def views(rows, count=1):
    return np.zeros((rows, count), int)


def test_folder_sorts_classes_and_files(classes):
    source = folder.make(str(classes))
    assert source.class_names == ("cat", "owl")
    assert source.paths == ["cat/x.png", "cat/sub/y.png", "owl/a.jpg", "owl/b.JPEG"]
    assert [r["label"] for r in source.read(range(4), views(4))] == [0, 0, 1, 1]
    assert len(source.read([0], views(1, 2))[0]["image"]) == 2


def test_folder_keeps_a_fraction_of_each_class(classes):
    assert folder.make(str(classes), fraction=0.5).paths == ["cat/x.png", "owl/a.jpg"]


def test_a_folder_with_nothing_to_read_says_so(tmp_path, classes):
    with pytest.raises(ValueError, match="cannot list"):
        folder.make(str(tmp_path / "none"))
    (classes / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        folder.make(str(classes))
    with pytest.raises(ValueError, match="one for each class"):
        folder.make(str(classes / "empty"))
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        folder.make(str(classes), fraction=0.0)


def test_a_file_that_vanished_is_named(classes):
    source = folder.make(str(classes))
    (classes / "owl" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*owl/a\.jpg: No such file"):
        source.read([2], views(1))


def test_an_unreadable_directory_is_named(classes, monkeypatch):
    """As root may read anything, the refusal is simulated."""
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("owl"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot list .*owl"):
        folder.make(str(classes))


@pytest.fixture
def threedie_root(tmp_path):
    """Three synsets, five objects, four views each; latents say where they belong."""
    for number, name in enumerate(["03/b", "01/a", "02/c", "01/d", "03/e"]):
        path = tmp_path / name
        path.mkdir(parents=True)
        for view in range(4):
            (path / f"image_{view}.jpg").write_bytes(JPEG)
            np.save(path / f"latent_{view}.npy", np.full(7, number + view / 10))
    return tmp_path


def lists(root, names, labels):
    np.save(root / "images.npy", np.array(names))
    np.save(root / "labels.npy", np.array(labels))
    return {"images_file": str(root / "images.npy"), "labels_file": str(root / "labels.npy")}


def test_threedie_reads_the_published_lists(threedie_root):
    files = lists(threedie_root, ["/03/b/", "/01/d/", "/02/c/"], [2, 0, 1])
    source = threedie.make(str(threedie_root), num_views=4, **files)
    assert source.class_names == ("01", "02", "03")
    first, second = source.read([1, 0], np.array([[3, 1], [0, 2]]))
    assert (first["label"], second["label"]) == (0, 2)
    np.testing.assert_allclose(first["latent"], np.tile([[3.3], [3.1]], 7), rtol=1e-6)
    assert first["latent"].dtype == np.float32
    assert len(second["image"]) == 2
    assert len(threedie.make(str(threedie_root), limit=2, **files)) == 2


def test_threedie_makes_lists_from_the_folder(threedie_root):
    train = threedie.make(str(threedie_root), "train", num_views=4)
    val = threedie.make(str(threedie_root), "val", num_views=4)
    assert len(train) == 4
    assert sorted(train.objects + val.objects) == ["01/a", "01/d", "02/c", "03/b", "03/e"]
    for source in (train, val):
        for name, label in zip(source.objects, source.labels):
            assert source.class_names[label] == name[:2]


PUBLISHED = {
    "train_images.npy": ["/03/b/", "/01/d/", "/03/e/"],
    "train_labels.npy": [2, 0, 2],
    "val_images.npy": ["/02/c/", "/01/a/"],
    "val_labels.npy": [1, 0],
}


def test_threedie_reads_lists_that_lie_in_its_root(threedie_root):
    for file, entries in PUBLISHED.items():
        np.save(threedie_root / file, np.array(entries))
    for published in (True, False):
        train, val = (
            threedie.make(str(threedie_root), split, num_views=4, published=published)
            for split in ("train", "val")
        )
        assert train.objects == ["03/b", "01/d", "03/e"]
        assert val.objects == ["02/c", "01/a"]
        np.testing.assert_array_equal(train.labels, [2, 0, 2])
        np.testing.assert_array_equal(val.labels, [1, 0])
    files = lists(threedie_root, ["/01/a/"], [0])  # a list that is named is preferred
    assert threedie.make(str(threedie_root), "val", **files).objects == ["01/a"]
    (threedie_root / "val_labels.npy").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*val_labels\.npy"):
        threedie.make(str(threedie_root), "val")
    (threedie_root / "val_images.npy").unlink()  # half a split is not made up
    with pytest.raises(ValueError, match=r"cannot read .*val_images\.npy"):
        threedie.make(str(threedie_root), "val")


def test_the_published_experiment_makes_up_no_split(threedie_root):
    config = sie.get_config("sie,paper")
    for part in (config.train, config.val):
        part.source.root, part.source.num_views = str(threedie_root), 4
        with pytest.raises(ValueError, match=r"holds no (train|val)_images.npy.*images_file="):
            threedie.make(**{k: v for k, v in part.source.items() if k != "name"})
    files = lists(threedie_root, ["/03/b/", "/01/d/", "/02/c/"], [2, 0, 1])
    config.train.source.update(files)
    assert len(threedie.make(**{k: v for k, v in config.train.source.items() if k != "name"})) == 3
    config.val.source.published = False
    assert len(threedie.make(**{k: v for k, v in config.val.source.items() if k != "name"})) == 1


def test_all_views_come_in_storage_order(threedie_root):
    source = _views.AllViews(threedie.make(str(threedie_root), "train", num_views=4))
    assert (len(source), source.num_views) == (4, 4)
    records = source.read(range(4), np.array([[2, 0, 3, 1]] * 4))
    latents = np.stack([record["latent"][:, 0] for record in records])
    np.testing.assert_allclose(latents % 1, np.tile([0, 0.1, 0.2, 0.3], (4, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "labels", "words"),
    [
        (["/03/b/", "/09/no/"], [2, 0], "names '09/no', which is not in"),
        (["/03/b/"], [2, 0], "1 objects, but 2 labels"),
        (["/03/b/", "/../../etc/"], [0, 1], "points out of"),
        (["/03/b/", "/01/a/"], [0, -1], "label -1 of object 1"),
        ([], [], "names no object"),
    ],
)
def test_a_wrong_list_is_refused(threedie_root, names, labels, words):
    with pytest.raises(ValueError, match=words):
        threedie.make(str(threedie_root), **lists(threedie_root, names, labels))


def test_broken_latents_are_named(threedie_root):
    source = threedie.make(str(threedie_root), "train", num_views=4)
    path = threedie_root / source.objects[0] / "latent_2.npy"
    np.save(path, np.zeros(9))
    with pytest.raises(ValueError, match=r"latent_2\.npy has shape \(9,\), not \(7,\)"):
        source.read([0], np.array([[2]]))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"latent_2\.npy is no plain \.npy array"):
        source.read([0], np.array([[2]]))
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*latent_2\.npy"):
        source.read([0], np.array([[2]]))


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_pickled_objects_are_refused_and_never_run(threedie_root, monkeypatch):
    monkeypatch.chdir(threedie_root)
    source = threedie.make(str(threedie_root), "train", num_views=4)
    path = threedie_root / source.objects[0] / "latent_0.npy"
    bomb = np.array([Bomb()], dtype=object)
    np.save(path, bomb, allow_pickle=True)
    with pytest.raises(ValueError, match=r"no plain \.npy"):
        source.read([0], views(1))
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"no plain \.npy"):
        source.read([0], views(1))
    np.savez("bomb.npz", images=bomb, labels=bomb)
    with pytest.raises(ValueError, match=r"images in bomb\.npz is no plain .* pickled objects"):
        arrays.make("bomb.npz")
    assert not (threedie_root / "executed").exists()


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.mark.parametrize("kind", ["npz", "keras", "npy", "idx", "idx.gz"])
def test_arrays_read_every_layout(tmp_path, kind):
    path = tmp_path
    if kind in ("npz", "keras"):
        path = tmp_path / "data.npz"
        names = ("images", "labels") if kind == "npz" else ("x_test", "y_test")
        np.savez(path, **dict(zip(names, (IMAGES, LABELS))))
    elif kind == "npy":
        np.save(tmp_path / "test_images.npy", IMAGES)
        np.save(tmp_path / "test_labels.npy", LABELS)
    else:
        pack = gzip.compress if kind.endswith("gz") else bytes
        end = ".gz" if kind.endswith("gz") else ""
        (tmp_path / f"t10k-images-idx3-ubyte{end}").write_bytes(pack(idx(IMAGES)))
        (tmp_path / f"t10k-labels-idx1-ubyte{end}").write_bytes(pack(idx(LABELS.astype(np.uint8))))
    source = arrays.make(str(path), "test")
    assert len(source) == 6
    assert source.class_names == ("0", "1", "2")
    [record] = source.read([4], views(1))
    np.testing.assert_array_equal(record["image"][0], IMAGES[4])
    assert record["label"] == 1


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"u8\[N, H, W"):
        arrays.Arrays(IMAGES.astype(np.float32), LABELS)
    with pytest.raises(ValueError, match=r"labels must be i\[6\]"):
        arrays.Arrays(IMAGES, LABELS[:5])
    with pytest.raises(ValueError, match="label 2 of row 2 is not in 0 to 1"):
        arrays.Arrays(IMAGES, LABELS, ["cat", "owl"])
    with pytest.raises(ValueError, match="holds none of"):
        arrays.make(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES)[:-1])
    with pytest.raises(ValueError, match="ends after 149 of 150 bytes"):
        arrays.make(str(tmp_path))
    (tmp_path / "data.npz").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"no \.npz of plain arrays"):
        arrays.make(str(tmp_path / "data.npz"))


def test_rotated_turns_each_image_once_and_for_all(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    inner = {"name": "arrays", "path": str(tmp_path / "a.npz")}
    source = rotated.make(inner, seed=3)
    first = source.read(range(6), views(6))
    again = source.read(range(6), views(6))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a["image"][0], b["image"][0])
    source.degrees[:] = 90
    [turned] = source.read([2], views(1))
    np.testing.assert_array_equal(turned["image"][0], np.rot90(decoding.decode(IMAGES[2])))


def test_quarter_turns_lose_nothing_and_can_be_the_label(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (40, 5, 7, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 3)
    inner = {"name": "arrays", "path": str(tmp_path / "a.npz")}
    source = rotated.make(inner, quarters=True, label="turn")
    assert source.class_names == ("0", "90", "180", "270")
    records = source.read(range(40), views(40))
    assert {record["label"] for record in records} == {0, 1, 2, 3}
    for image, record in zip(images, records):
        np.testing.assert_array_equal(record["image"][0], np.rot90(image, record["label"]))
    classes = rotated.make(inner, quarters=True)
    np.testing.assert_array_equal(classes.degrees, source.degrees)
    assert [record["label"] for record in classes.read([4, 5], views(2))] == [1, 2]
    with pytest.raises(ValueError, match="quarters=True"):
        rotated.make(inner, label="turn")
    with pytest.raises(ValueError, match="Did you mean 'turn'"):
        rotated.make(inner, quarters=True, label="turns")


def test_fashion_mnist_of_debian():
    place = pathlib.Path("/usr/share/datasets/fashion-mnist")
    if not place.exists():
        pytest.skip("others' data, 30 MB, is not ours to commit: apt install dataset-fashion-mnist")
    source = arrays.make(str(place), "train")
    assert len(source) == 60_000
    assert np.bincount(source.labels).tolist() == [6000] * 10
    assert source.images.mean() == pytest.approx(72.94, abs=0.01)
