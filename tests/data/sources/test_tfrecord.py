"""TFRecords of TensorFlow and others: layouts, index, labels, broken and missing shards."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from jaxequi.data import decoding, example, tfrecord_file
from jaxequi.data.sources import tfrecord

FILES = pathlib.Path(__file__).parents[1] / "files"
ONE = np.zeros((1, 1), int)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXEQUI_CACHE", str(tmp_path / "cache"))
    for file in FILES.glob("imagenet-train-*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def read(source, row):
    [record] = source.read([row], ONE)
    return record


def test_imagenets_layout_counts_labels_from_one(imagenet):
    source = tfrecord.make(str(imagenet / "imagenet-train-*"), classes=3)
    assert len(source) == 5
    assert [read(source, row)["label"] for row in range(5)] == [0, 1, 2, 0, 1]
    assert decoding.decode(read(source, 4)["image"][0]).size == (32, 24)


def test_tfds_layout(tmp_path):
    shutil.copy(FILES / "tensorboardx.tfrecord", tmp_path)
    source = tfrecord.make(str(tmp_path / "*.tfrecord"), classes=3)
    assert [read(source, row)["label"] for row in range(3)] == [0, 1, 2]


def test_both_writers_stored_the_same_images(imagenet, tmp_path):
    shutil.copy(FILES / "tensorboardx.tfrecord", tmp_path / "x")
    left = tfrecord.make(str(imagenet / "imagenet-*"), classes=3)
    right = tfrecord.make(str(tmp_path / "x"), classes=3)
    for row in range(3):
        a, b = (decoding.decode(read(source, row)["image"][0]) for source in (left, right))
        np.testing.assert_array_equal(a, b)


def test_the_index_is_cached_beside_the_data_and_renewed_when_files_change(imagenet):
    tfrecord.make(str(imagenet / "imagenet-*"), classes=3)
    [cached] = imagenet.glob(f"{tfrecord.INDEX_NAME}_*.npy")
    calls = []
    build = tfrecord.build_index
    tfrecord.build_index = lambda files: calls.append(1) or build(files)
    try:
        assert len(tfrecord.make(str(imagenet / "imagenet-*"), classes=3)) == 5
        assert not calls
        last = imagenet / "imagenet-train-00001-of-00002"
        last.write_bytes(last.read_bytes() * 2)
        assert len(tfrecord.make(str(imagenet / "imagenet-*"), classes=3)) == 7
        assert calls
    finally:
        tfrecord.build_index = build
    assert cached.exists()


def rows_of(index):
    """Save an array in the place of the index."""

    def save(path):
        spoilt = index(np.load(path))
        np.save(path, spoilt)

    return save


def swapped(index):
    index[[0, 1]] = index[[1, 0]]
    return index


def joined(index):
    """Two records taken for one, where only its header tells."""
    index[0, 2] += index[1, 2] + 16
    return np.delete(index, 1, axis=0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\0\x08\0{[]: 1}\n"),
        lambda path: (path.unlink(), path.mkdir()),
        rows_of(lambda index: index[:0]),
        rows_of(lambda index: index[:-1]),
        rows_of(lambda index: index[1:]),
        rows_of(lambda index: index.astype(np.float64)),
        rows_of(lambda index: index[:, :2]),
        rows_of(lambda index: index + np.array([0, 1, 0])),
        rows_of(lambda index: index + np.array([7, 0, 0])),
        rows_of(lambda index: index * [0, 1, 1]),
        rows_of(swapped),
        rows_of(joined),
        rows_of(lambda index: np.zeros_like(index)),
        rows_of(lambda index: -index),
    ],
)
def test_a_wrong_index_is_made_again(imagenet, spoil):
    pattern = str(imagenet / "imagenet-*")
    tfrecord.make(pattern, classes=3)
    [cached] = imagenet.glob(f"{tfrecord.INDEX_NAME}_*.npy")
    spoil(cached)
    source = tfrecord.make(pattern, classes=3)
    assert [read(source, row)["label"] for row in range(5)] == [0, 1, 2, 0, 1]


def test_an_index_that_is_wrong_in_the_middle_is_found_by_reading(imagenet):
    """Only the outermost headers of a file are compared when it is opened."""
    file = imagenet / "imagenet-train-00000-of-00002"
    file.write_bytes(file.read_bytes() * 2)
    tfrecord.make(str(imagenet / "imagenet-*"), classes=3)
    caches = imagenet.glob(f"{tfrecord.INDEX_NAME}_*.npy")
    cached = max(caches, key=lambda path: path.stat().st_mtime_ns)

    def spoil(index):
        index[1, 2] += index[2, 2] + 16
        return np.delete(index, 2, axis=0)

    rows_of(spoil)(cached)
    source = tfrecord.make(str(imagenet / "imagenet-*"), classes=3)
    assert read(source, 0)["label"] == 0
    with pytest.raises(ValueError, match=r"record 1: no record of \d+ bytes begins at"):
        read(source, 1)


def test_an_empty_file_between_others_is_no_fault_of_the_index(imagenet):
    for name in ("a", "b", "z"):
        (imagenet / f"set-{name}").write_bytes(b"")
    shutil.copy(imagenet / "imagenet-train-00000-of-00002", imagenet / "set-m")
    build = tfrecord.build_index
    tfrecord.make(str(imagenet / "set-*"), classes=3)
    tfrecord.build_index = None
    try:
        assert len(tfrecord.make(str(imagenet / "set-*"), classes=3)) == 3
    finally:
        tfrecord.build_index = build


def test_the_index_of_a_read_only_folder_goes_to_the_cache(imagenet, monkeypatch):
    """As root may write anywhere, the refusal is simulated."""
    place = type(tfrecord.epath.Path(str(imagenet)))
    opened = place.open

    def refuse(self, mode="r", **more):
        if "w" in mode and "cache" not in str(self):
            raise PermissionError(30, "Read-only file system")
        return opened(self, mode, **more)

    monkeypatch.setattr(place, "open", refuse)
    assert len(tfrecord.make(str(imagenet / "imagenet-*"), classes=3)) == 5
    assert len(list((imagenet / "cache").glob("*.npy"))) == 1


def test_a_class_list_gives_names(imagenet):
    (imagenet / "names.txt").write_text("cat\ndog\nowl\n")
    source = tfrecord.make(str(imagenet / "imag*"), class_names=str(imagenet / "names.txt"))
    assert source.class_names == ("cat", "dog", "owl")


def test_a_missing_shard_is_named(imagenet):
    (imagenet / "imagenet-train-00001-of-00002").unlink()
    with pytest.raises(ValueError, match=r"1 of 00002 shards are missing.*00001-of-00002"):
        tfrecord.make(str(imagenet / "imagenet-*"), classes=3)


@pytest.mark.parametrize("count", ["99999999999999999", "00003"])
def test_however_many_shards_are_said_to_be_missing_the_first_is_named(imagenet, count):
    for number in (0, 2):
        (imagenet / f"x-{number:05d}-of-{count}").write_bytes(b"")
    words = rf"{int(count) - 2} of {count} shards are missing, first number 1"
    with pytest.raises(ValueError, match=words):
        tfrecord.make(str(imagenet / "x-*"), classes=3)


def test_a_pipe_among_the_files_is_named(imagenet):
    os.mkfifo(imagenet / "imagenet-train-00002-of-00002")
    with pytest.raises(ValueError, match="00002-of-00002 is no regular file"):
        tfrecord.make(str(imagenet / "imagenet-*"), classes=3)


@pytest.mark.parametrize("classes", [-5, 10**9])
def test_a_number_of_classes_that_cannot_be_is_refused(imagenet, classes):
    with pytest.raises(ValueError, match=f"classes={classes} asks for"):
        tfrecord.make(str(imagenet / "imagenet-*"), classes=classes)


def test_class_names_are_utf_8(imagenet):
    (imagenet / "names.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"names\.txt is no UTF-8 text"):
        tfrecord.make(str(imagenet / "im*"), class_names=str(imagenet / "names.txt"))
    with pytest.raises(ValueError, match="cannot read /none"):
        tfrecord.make(str(imagenet / "im*"), class_names="/none")


def test_other_kinds_of_values_are_named(tmp_path):
    wrong = {"image": np.zeros(1, np.float32), "label": b"0"}
    tfrecord_file.write(tmp_path / "r", [example.build(wrong)])
    source = tfrecord.make(str(tmp_path / "r"), classes=2)
    with pytest.raises(ValueError, match=r"r, record 0: image has 1 values of float32"):
        read(source, 0)


def test_a_label_out_of_range_names_file_and_record(imagenet):
    source = tfrecord.make(str(imagenet / "imagenet-*"), classes=2)
    with pytest.raises(ValueError, match=r"00000-of-00002, record 2: label 3 is not in 1 to 2"):
        read(source, 2)


def test_a_bad_crc_names_file_and_record(imagenet):
    file = imagenet / "imagenet-train-00001-of-00002"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    source = tfrecord.make(str(imagenet / "imagenet-*"), classes=3)
    assert read(source, 0)["label"] == 0
    with pytest.raises(ValueError, match=r"00001-of-00002, record 3: bad CRC"):
        read(source, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: tfrecord.make(str(d / "no-*"), classes=3), "no TFRecord file"),
        (lambda d: tfrecord.make(str(d / "imagenet-*")), "how many classes"),
        (lambda d: tfrecord.make(str(d), classes=3, layout="coco"), "auto, imagenet, tfds"),
    ],
)
def test_bad_requests_say_what_is_wrong(imagenet, call, words):
    with pytest.raises(ValueError, match=words):
        call(imagenet)


def test_other_features_are_listed(tmp_path):
    tfrecord_file.write(tmp_path / "r", [example.build({"pixels": b"x", "class": 1})])
    with pytest.raises(ValueError, match=r"has \['class', 'pixels'\], not \(image/encoded"):
        tfrecord.make(str(tmp_path / "r"), classes=2)


def test_a_file_without_records_is_refused(tmp_path):
    (tmp_path / "r").write_bytes(b"")
    with pytest.raises(ValueError, match="hold no record"):
        tfrecord.make(str(tmp_path / "r"), classes=2)
