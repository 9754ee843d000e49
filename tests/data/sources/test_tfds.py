"""Directories that stock TFDS prepared, in both file formats."""

import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from jaxequi.data import decoding
from jaxequi.data.sources import tfds

FILES = pathlib.Path(__file__).parents[1] / "files" / "tfds"
ONE = np.zeros((1, 1), int)


@pytest.fixture
def data_dir(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is of the extra tfds")
    shutil.copytree(FILES, tmp_path / "tfds")
    return tmp_path / "tfds"


def all_of(source):
    records = source.read(range(len(source)), np.zeros((len(source), 1), int))
    images = [decoding.decode(record["image"][0]) for record in records]
    labels = [record["label"] for record in records]
    order = np.argsort(labels)
    return np.stack(images)[order], np.asarray(labels)[order]


def test_both_formats_hold_the_same_examples(data_dir):
    left = tfds.make("fashion_mnist", "train", str(data_dir / "array_record"))
    right = tfds.make("fashion_mnist", "train", str(data_dir / "tfrecord"))
    images, labels = all_of(left)
    assert images.shape == (10, 28, 28, 3)
    assert labels.tolist() == list(range(10))
    np.testing.assert_array_equal(all_of(right)[0], images)
    assert left.class_names[0] == right.class_names[0] == "T-shirt/top"


def test_splits_can_be_cut(data_dir):
    place = str(data_dir / "array_record" / "fashion_mnist")
    assert len(tfds.make(place, "train[:30%]")) == 3
    assert len(tfds.make(place, "train+test")) == 20


def test_an_unknown_split_lists_those_there_are(data_dir):
    for kind in ("array_record", "tfrecord"):
        with pytest.raises(ValueError, match=r"train"):
            tfds.make("fashion_mnist", "valid", str(data_dir / kind))


def test_a_missing_data_set_gives_the_command_that_prepares_it(data_dir):
    with pytest.raises(ValueError, match=r"python -m jaxequi.prepare.tfds cifar10 --data-dir"):
        tfds.make("cifar10", data_dir=str(data_dir))


def folder_of(data_dir):
    return data_dir / "array_record" / "fashion_mnist" / "3.0.1"


def test_a_flipped_bit_is_found(data_dir):
    file = folder_of(data_dir) / "fashion_mnist-train.array_record-00000-of-00001"
    data = bytearray(file.read_bytes())
    data[2000] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"fashion_mnist.*(cannot be read|among records)"):
        all_of(tfds.make("fashion_mnist", "train", str(data_dir / "array_record")))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "features.json").write_bytes(b"{"), "is no prepared TFDS data set"),
        (lambda d: (d / "dataset_info.json").write_bytes(b"\xff"), "is no prepared TFDS data set"),
        (lambda d: (d / "label.labels.txt").write_text("a\n"), "among records|is no prepared"),
        (lambda d: os.mkfifo(d / "pipe"), "pipe is no regular file"),
        (lambda d: [f.unlink() for f in d.glob("*train*")], "among records"),
    ],
    ids=["features", "info", "labels", "pipe", "missing"],
)
def test_a_damaged_data_set_is_refused(data_dir, spoil, words):
    spoil(folder_of(data_dir))
    with pytest.raises(ValueError, match=words):
        all_of(tfds.make("fashion_mnist", "train", str(data_dir / "array_record")))


def test_other_folders_beside_the_versions_do_not_matter(data_dir):
    for name in ("3.0.1.incompleteABC", "10.x"):
        shutil.copytree(folder_of(data_dir), folder_of(data_dir).parent / name)
    assert tfds.locate("fashion_mnist", str(data_dir / "array_record")).name == "3.0.1"


def test_a_feature_without_classes_is_named(data_dir):
    with pytest.raises(
        ValueError, match=r"has no classes 'image'; its features are image, label\."
    ):
        tfds.make("fashion_mnist", "train", str(data_dir / "array_record"), label="image")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxequi\[tfds\]'"):
        tfds.make("cifar10")
