"""Preparation without TensorFlow: small archives in the original formats, read back by TFDS."""

import gzip
import io
import pathlib
import re
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxequi.data import decoding
from jaxequi.data.errors import DataError
from jaxequi.data.sources import tfds as source
from jaxequi.prepare import archives, tfds

RNG = np.random.default_rng(0)
FILES = pathlib.Path(__file__).parents[1] / "data" / "files"


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A directory of archives whose checksums are not the real ones, and are not compared."""
    pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is of the extra tfds")
    import tensorflow_datasets.core.dataset_builder as core

    monkeypatch.setattr(core.DatasetBuilder, "url_infos", {})
    (tmp_path / "manual").mkdir()
    return tmp_path / "manual"


def prepared(name, manual, **splits):
    """Prepare, and read every split: images u8[N, H, W, 3] and labels, sorted by label."""
    data_dir = str(manual.parent / "tfds")
    tfds.prepare(name, data_dir, str(manual))
    out = {}
    for split in splits:
        data = source.make(name, split, data_dir)
        records = data.read(range(len(data)), np.zeros((len(data), 1), int))
        records.sort(key=lambda record: record["label"])
        images = [np.asarray(decoding.decode(record["image"][0])) for record in records]
        out[split] = images, [record["label"] for record in records], data.class_names
    return out


def tar(members, path=None):
    """Write {name: content} as a tar, and return its bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist(manual, name):
    images = RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for stem in ("train", "t10k"):
        (manual / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        labels = idx(np.arange(10, dtype=np.uint8))
        (manual / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    found = prepared(name, manual, train=10, test=10)
    for split in ("train", "test"):
        np.testing.assert_array_equal(np.stack(found[split][0])[..., 0], images)
        assert found[split][1] == list(range(10))
    assert found["train"][2][9] == ("9" if name == "mnist" else "Ankle boot")


def cifar_rows(labels, images):
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels, flat], axis=1).astype(np.uint8).tobytes()


def test_cifar10(manual):
    images = RNG.integers(0, 256, (5, 2, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(10).reshape(5, 2, 1)
    base = "cifar-10-batches-bin"
    files = {f"{base}/data_batch_{i + 1}.bin": cifar_rows(labels[i], images[i]) for i in range(5)}
    files[f"{base}/test_batch.bin"] = cifar_rows(labels[0], images[0])
    names = [f"class {i}" for i in range(10)]
    files[f"{base}/batches.meta.txt"] = ("\n".join(names) + "\n\n").encode()
    (manual / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar(files)))
    found = prepared("cifar10", manual, train=10, test=2)
    np.testing.assert_array_equal(np.stack(found["train"][0]), images.reshape(10, 32, 32, 3))
    assert list(found["train"][2]) == names
    assert found["test"][1] == [0, 1]


def test_cifar100(manual):
    images = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    rows = cifar_rows(np.array([[0, 3], [1, 5], [19, 7], [2, 99]]), images)
    base = "cifar-100-binary"
    files = {f"{base}/train.bin": rows, f"{base}/test.bin": rows}
    files[f"{base}/fine_label_names.txt"] = "\n".join(map(str, range(100))).encode()
    files[f"{base}/coarse_label_names.txt"] = "\n".join(map(str, range(20))).encode()
    (manual / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(tar(files)))
    found = prepared("cifar100", manual, train=4)
    assert found["train"][1] == [3, 5, 7, 99]
    np.testing.assert_array_equal(np.stack(found["train"][0]), images)


def test_stl10(manual):
    images = RNG.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    stored = images.transpose(0, 3, 2, 1).tobytes()
    files = {
        "stl10_binary/class_names.txt": "\n".join(f"c{i}" for i in range(10)).encode() + b"\n",
        "stl10_binary/train_X.bin": stored,
        "stl10_binary/train_y.bin": bytes([1, 5, 10]),
        "stl10_binary/test_X.bin": stored,
        "stl10_binary/test_y.bin": bytes([2, 3, 4]),
        "stl10_binary/unlabeled_X.bin": stored,
    }
    (manual / "stl10_binary.tar.gz").write_bytes(gzip.compress(tar(files)))
    found = prepared("stl10", manual, train=3, test=3, unlabelled=3)
    np.testing.assert_array_equal(np.stack(found["train"][0]), images)
    assert found["train"][1] == [0, 4, 9]
    assert found["unlabelled"][1] == [-1, -1, -1]


def test_flowers(manual):
    scipy_io = pytest.importorskip("scipy.io", reason="scipy is of the extra dev")
    jpeg = (FILES / "rgb.jpg").read_bytes()
    tar({f"jpg/image_{i:05d}.jpg": jpeg for i in range(1, 7)}, manual / "102flowers.tgz")
    scipy_io.savemat(manual / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 4, 5, 102]])})
    split = {"trnid": [[1, 6]], "valid": [[2]], "tstid": [[3, 4, 5]]}
    scipy_io.savemat(manual / "setid.mat", {k: np.array(v) for k, v in split.items()})
    found = prepared("oxford_flowers102", manual, train=2, validation=1, test=3)
    assert found["train"][1] == [0, 101]
    assert found["test"][1] == [2, 3, 4]
    np.testing.assert_array_equal(found["validation"][0][0], decoding.decode(jpeg))


def test_patch_camelyon(manual):
    h5py = pytest.importorskip("h5py", reason="h5py is of the extra dev")
    images = RNG.integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    for split in ("train", "valid", "test"):
        for kind, array in (("x", images), ("y", np.array([0, 1]).reshape(2, 1, 1, 1))):
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                file[kind] = array
            path = manual / f"camelyonpatch_level_2_split_{split}_{kind}.h5.gz"
            path.write_bytes(gzip.compress(buffer.getvalue()))
    found = prepared("patch_camelyon", manual, train=2, validation=2, test=2)
    np.testing.assert_array_equal(np.stack(found["validation"][0]), images)
    assert found["test"][1] == [0, 1]


JPEG = (FILES / "rgb.jpg").read_bytes()
CMYK = (FILES / "cmyk.jpg").read_bytes()
PNG = (FILES / "png_named.JPEG").read_bytes()


def check_imagenet(manual):
    found = prepared("imagenet2012", manual, train=3, validation=2)
    assert found["train"][1] == [0, 1, 1]
    assert found["train"][2][:2] == ("n01440764", "n01443537")
    np.testing.assert_array_equal(found["train"][0][0], decoding.decode(JPEG))
    assert all(image.shape == (40, 48, 3) for image in found["train"][0])
    return found["validation"][1]


def test_imagenet_from_the_tars(manual):
    train = {
        "n01440764.tar": tar({"n01440764_1.JPEG": JPEG}),
        "n01443537.tar": tar({"n01443537_2.JPEG": CMYK, "n01443537_3.JPEG": PNG}),
    }
    tar(train, manual / "ILSVRC2012_img_train.tar")
    val = {f"ILSVRC2012_val_0000000{i}.JPEG": JPEG for i in (1, 2)}
    tar(val, manual / "ILSVRC2012_img_val.tar")
    assert check_imagenet(manual) == [65, 970]  # the stored labels of the first two


def test_imagenet_from_class_folders(manual):
    for path, content in {
        "train/n01440764/a.JPEG": JPEG,
        "train/n01443537/b.JPEG": CMYK,
        "train/n01443537/c.JPEG": PNG,
        "val/n01440764/d.JPEG": JPEG,
        "val/n01443537/e.JPEG": JPEG,
    }.items():
        (manual / path).parent.mkdir(parents=True, exist_ok=True)
        (manual / path).write_bytes(content)
    assert check_imagenet(manual) == [0, 1]


def test_a_missing_part_of_imagenet_is_named_before_anything_is_written(manual, capsys):
    (manual / "train" / "n01440764").mkdir(parents=True)
    arguments = ["imagenet2012", "--manual-dir", str(manual), "--data-dir", str(manual / "out")]
    assert tfds.main(["tfds", *arguments]) == 2
    error = capsys.readouterr().err
    assert "ILSVRC2012_img_val.tar" in error
    assert str(manual / "val") in error
    assert "train:" not in error
    assert not (manual / "out").exists()
    assert tfds.main(["tfds", "imagenet2012"]) == 2
    assert "--manual-dir" in capsys.readouterr().err


def refused(name, manual):
    """What the program says of archives that it refuses; it leaves nothing behind."""
    before = sorted(manual.parent.rglob("*"))
    with pytest.raises(ValueError) as caught:
        tfds.prepare(name, str(manual.parent / "new" / "tfds"), str(manual))
    assert type(caught.value) is DataError
    assert sorted(manual.parent.rglob("*")) == before
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def imagenet_tars(manual, train=None, val=None):
    train = {"n01440764.tar": tar({"a.JPEG": JPEG})} if train is None else train
    tar(train, manual / "ILSVRC2012_img_train.tar")
    val = {"ILSVRC2012_val_00000001.JPEG": JPEG} if val is None else val
    tar(val, manual / "ILSVRC2012_img_val.tar")


GOOD = {"n01440764.tar": tar({"a.JPEG": JPEG, "b.JPEG": JPEG})}


@pytest.mark.parametrize(
    ("tars", "words"),
    [
        ({"train": GOOD | {"n99.tar": tar({"c.JPEG": JPEG})}}, "holds 'n99', which is none of"),
        ({"train": GOOD | {"n01443537.tar": b"no tar"}}, r"n01443537\.tar is no whole tar"),
        ({"train": {"n01440764.tar": tar({"a.JPEG": b"GIF89a"})}}, r"tar:a\.JPEG: cannot decode"),
        ({"val": {"ILSVRC2012_val_50001.JPEG": JPEG}}, r"50001\.JPEG is not ILSVRC2012_val_N"),
        ({"val": {"val_x.JPEG": JPEG}}, r"val_x\.JPEG is not ILSVRC2012_val_N"),
        ({"val": {"ILSVRC2012_val_1.JPEG": b""}}, r"_1\.JPEG: cannot decode 0 bytes"),
    ],
    ids=["synset", "inner", "train image", "number", "name", "val image"],
)
def test_imagenet_tars_of_something_else_leave_nothing(manual, tars, words):
    imagenet_tars(manual, **tars)
    assert re.search(words, refused("imagenet2012", manual))


def test_a_folder_that_is_no_synset_is_named_at_once(manual):
    imagenet_tars(manual)
    (manual / "ILSVRC2012_img_train.tar").unlink()
    for name in ("n01440764", "new\nline"):
        (manual / "train" / name).mkdir(parents=True)
        (manual / "train" / name / "a.JPEG").write_bytes(JPEG)
    assert r"new\\nline" in refused("imagenet2012", manual)


@pytest.mark.parametrize("rows", [7 * 3073 + 5, 3073, 10 * 3073])
def test_cifar_of_something_else_leaves_nothing(manual, rows):
    base = "cifar-10-batches-bin"
    content = b"\x0a" * rows
    files = {f"{base}/data_batch_{i + 1}.bin": content for i in range(5)}
    files[f"{base}/batches.meta.txt"] = "\n".join(map(str, range(10))).encode()
    if rows > 3073:
        files[f"{base}/test_batch.bin"] = content
    (manual / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar(files)))
    error = refused("cifar10", manual)
    assert re.search(r"has the label 10; there are 10|is not what its authors|KeyError", error)


def test_what_was_there_before_a_failure_stays(manual):
    imagenet_tars(manual, train=GOOD | {"n99.tar": b""})
    place = manual.parent / "tfds" / "downloads"
    place.mkdir(parents=True)
    (place / "kept.tar").write_bytes(b"of another data set")
    with pytest.raises(ValueError, match="n99"):
        tfds.prepare("imagenet2012", str(manual.parent / "tfds"), str(manual))
    assert [p.name for p in place.parent.rglob("*")] == ["downloads", "kept.tar"]


def test_an_archive_may_not_claim_more_than_memory(tmp_path):
    """A gigabyte of name, four of content, a sparse file: each a few hundred bytes, packed."""
    for kind, size in ((tarfile.GNUTYPE_LONGNAME, 1 << 30), (tarfile.XHDTYPE, 2 << 20)):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, size
        (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
        with pytest.raises(DataError, match=rf"x\.tar: the member .* claims {size} bytes"):
            list(archives.members(tmp_path / "x.tar"))
    info = tarfile.TarInfo("x")
    info.size = (4 << 30) + 1
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DataError, match=r"x\.tar: the member x claims 4294967297 bytes"):
        list(archives.members(tmp_path / "x.tar"))
    info.size, info.pax_headers = 5, {"size": str((4 << 30) + 1)}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"x\.tar: the member x claims 4294967297 bytes"):
        list(archives.members(tmp_path / "x.tar"))
    info.pax_headers = {"GNU.sparse.size": "9999999999", "GNU.sparse.map": "0,5"}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="is no plain file"):
        list(archives.members(tmp_path / "x.tar"))
    info.pax_headers = {}
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="is no plain file"):
        list(archives.members(tmp_path / "x.tar"))
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(16 << 20)))
    with pytest.raises(DataError, match=r"x\.gz unpacks to over [\d,]+ bytes from"):
        archives.gunzip(tmp_path / "x.gz")


def test_an_archive_that_ends_between_two_members_is_not_taken_for_whole(tmp_path):
    whole = tar({"a": bytes(600), "b": bytes(600)})
    for spoilt in (whole[:1536], whole[:1536] + b"?" + whole[1537:]):
        (tmp_path / "x.tar").write_bytes(spoilt)
        with pytest.raises(DataError, match=r"x\.tar is no whole tar archive: it ends or breaks"):
            list(archives.members(tmp_path / "x.tar"))


def test_an_archive_with_a_wrong_checksum_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is of the extra tfds")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the file that TFDS knows"):
        tfds.prepare("cifar10", str(tmp_path / "out"), str(tmp_path))


def test_unknown_names_and_missing_packages(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        tfds.prepare("cifar_10")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"jaxequi\[tfds\]"):
        tfds.prepare("cifar10")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_a_member_that_points_outside_is_refused(tmp_path, name):
    tar({"good": b"1", name: b"2"}, tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"x\.tar: the member .* points out of the archive"):
        list(archives.members(tmp_path / "x.tar"))


def test_links_and_broken_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ValueError, match="no plain file"):
        list(archives.members(tmp_path / "link.tar"))
    whole = tar({"a": bytes(3000)})
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match="no whole tar archive"):
        list(archives.members(tmp_path / "cut.tar"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(bytes(5000))[:-9])
    with pytest.raises(ValueError, match="broken gzip"):
        archives.gunzip(tmp_path / "cut.gz")


def test_images_survive_png():
    for shape in ((5, 4), (5, 4, 1), (5, 4, 3)):
        image = RNG.integers(0, 256, shape, dtype=np.uint8)
        again = np.asarray(Image.open(io.BytesIO(tfds.png(image))))
        np.testing.assert_array_equal(again.reshape(shape), image)
