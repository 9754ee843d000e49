"""Bytes of every format, spoilt: right data or a `ValueError`, soon, and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import shutil
import tarfile
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from jaxequi import pipes
from jaxequi.data import decoding, example, recipes, tfrecord_file, transforms
from jaxequi.data.sources import _files, _open, arrays, features, packed, tfrecord
from jaxequi.prepare import archives, models, pack
from tests.limits import soon

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and numpy say what is odd, too

EXAMPLES = 60  # of each format
SECONDS = 5.0  # for any one of them; milliseconds are usual
VIEWS = np.zeros((6, 1), int)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])

fuzz = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)


NUMBERS = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80" * 9 + b"\1"]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "drop", "insert", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 7),
        st.sampled_from(NUMBERS) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def spoil(data, edits):
    """Flip a bit, overwrite, cut off, drop, insert or repeat bytes."""
    for kind, where, bit, content in edits:
        at = int(where * len(data))
        if kind == "flip":
            data = data[:at] + bytes(x ^ 1 << bit for x in data[at : at + 1]) + data[at + 1 :]
        elif kind == "set":
            data = data[:at] + content + data[at + len(content) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + len(content) :]
        elif kind == "insert":
            data = data[:at] + content + data[at:]
        else:
            data = data[:at] + data[at : at + 1 << bit] + data[at:]
    return data


def saved(function, *arguments, **keywords):
    stream = io.BytesIO()
    function(stream, *arguments, **keywords)
    return stream.getvalue()


def image(kind, **more):
    return saved(Image.fromarray(IMAGES[0]).save, kind, **more)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("a/1.jpg", "a/" + "long" * 40, "größe"):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(range(70)) * 10))
    return stream.getvalue()


def decoded(file):
    return np.asarray(decoding.decode(file.read_bytes()))


def whole_array(file):
    source = arrays.make(str(file))
    return np.concatenate([source.images.ravel(), source.labels])


def one_example(file):
    found = example.parse(file.read_bytes())
    with contextlib.suppress(ValueError):
        example.image(found, "image")
    with contextlib.suppress(ValueError):
        example.integer(found, "label")


def records(file):
    with file.open("rb") as opened:
        return [tfrecord_file.read(opened, *map(int, at), True) for at in tfrecord_file.scan(file)]


EXAMPLE = example.build(
    {"image": b"bytes", "label": np.array([3, -1, 1 << 62]), "latent": np.ones(7, np.float32)}
)
ZIP = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA}


def npz(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("images.npy", saved(np.save, IMAGES))
        archive.writestr("labels.npy", saved(np.save, LABELS))
    return stream.getvalue()


# name -> (whole file, its reader, whether checksums tell each change that matters)
FORMATS = {
    **{f"npz, {name}": (npz(method), whole_array, True) for name, method in ZIP.items()},
    "npy": (saved(np.save, LABELS), _files.load_array, False),
    "npy of strings": (saved(np.save, np.array(["/a/b/", "/c/d/"])), models.read_list, False),
    "idx": (idx(IMAGES), arrays.load_idx, False),
    "idx, gzipped": (gzip.compress(idx(IMAGES)), arrays.load_idx, True),
    "gzip": (gzip.compress(bytes(range(256)) * 4), archives.gunzip, False),
    "tar": (tar(), lambda file: list(archives.members(file)), False),
    "tar, gzipped": (gzip.compress(tar()), lambda file: list(archives.members(file)), False),
    "example": (EXAMPLE, one_example, False),
    "png": (image("PNG"), decoded, True),
    **{kind.lower(): (image(kind), decoded, False) for kind in ("JPEG", "GIF", "BMP", "WEBP")},
    "tiff": (image("TIFF", compression="tiff_lzw"), decoded, False),
    "ppm": (image("PPM"), decoded, False),
}


@pytest.mark.parametrize("name", FORMATS)
@fuzz
@hypothesis.given(edits=EDITS)
def test_a_spoilt_file(name, edits, tmp_path_factory):
    data, read, checked = FORMATS[name]
    file = tmp_path_factory.getbasetemp() / "spoilt.npz"
    file.write_bytes(data)
    right = read(file)
    file.write_bytes(spoil(data, edits))
    with soon(SECONDS), contextlib.suppress(ValueError):
        found = read(file)
        if checked:
            np.testing.assert_array_equal(found, right)


@fuzz
@hypothesis.given(edits=EDITS)
def test_spoilt_records_are_those_that_were_written(edits, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoilt.tfrecord"
    written = [b"", b"a", b"record" * 20]
    tfrecord_file.write(file, written)
    file.write_bytes(spoil(file.read_bytes(), edits))
    with soon(SECONDS), contextlib.suppress(ValueError):
        assert set(records(file)) <= set(written)


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    """Two TFRecord files and their index."""
    folder = tmp_path_factory.mktemp("records")
    for number in range(2):
        content = [example.build({"image": b"x" * row, "label": row}) for row in range(4)]
        tfrecord_file.write(folder / f"set-{number}", content)
    tfrecord.make(str(folder / "set-*"), classes=4)
    [index] = folder.glob(f"{tfrecord.INDEX_NAME}_*.npy")
    return folder, index, index.read_bytes()


@fuzz
@hypothesis.given(edits=EDITS)
def test_a_spoilt_index_never_gives_other_records(edits, record_set):
    folder, index, data = record_set
    index.unlink()  # others may have it mapped
    index.write_bytes(spoil(data, edits))
    with soon(SECONDS), contextlib.suppress(ValueError):
        source = tfrecord.make(str(folder / "set-*"), classes=4)
        found = source.read(range(8), np.zeros((8, 1), int))
        assert [record["label"] for record in found] == [0, 1, 2, 3] * 2


@pytest.fixture(scope="module")
def packed_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack.pack(arrays.Arrays(IMAGES, LABELS), folder)
    return folder, {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["manifest.json", ".array_record"])
@fuzz
@hypothesis.given(edits=EDITS)
def test_a_spoilt_pack_gives_the_same_examples_or_none(suffix, edits, packed_set):
    folder, content = packed_set
    [name] = [name for name in content if name.endswith(suffix)]
    data = content[name]
    if suffix == ".array_record":  # half of it is padding, in which nothing can be spoilt
        used = len(data[: 1 << 15].rstrip(b"\0"))
        data, rest = data[:used], data[used:]
        edits = [edit for edit in edits if edit[0] in ("flip", "set")] or [("flip", 0.5, 1, b"")]
        spoilt = spoil(data, edits)[:used] + rest
    else:
        spoilt = spoil(data, edits)
    shutil.copytree(folder, folder.parent / "spoilt", dirs_exist_ok=True)
    (folder.parent / "spoilt" / name).write_bytes(spoilt)
    with soon(SECONDS), contextlib.suppress(ValueError):
        found = packed.make(str(folder.parent / "spoilt")).read(range(6), VIEWS)
        for record, right, label in zip(found, IMAGES, LABELS):
            np.testing.assert_array_equal(decoding.decode(record["image"][0]), right)
            assert record["label"] == label


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "whole"
    values = {"representation": np.ones((6, 2, 3), np.float32), "label": LABELS.astype(np.int32)}
    writer = features.Writer(folder, {"of": "nothing"})
    for start in (0, 3):
        part = {name: array[start : start + 3] for name, array in values.items()}
        writer.add(part, 6, ["a", "b", "c"])
    return folder, {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["features.json", "label.npy", "representation.npy"])
@fuzz
@hypothesis.given(edits=EDITS)
def test_spoilt_features_are_the_same_or_refused(name, edits, feature_set):
    folder, content = feature_set
    spoilt = folder.parent / "spoilt"
    shutil.rmtree(spoilt, ignore_errors=True)  # others may have it mapped
    shutil.copytree(folder, spoilt)
    (spoilt / name).write_bytes(spoil(content[name], edits))
    with soon(SECONDS), contextlib.suppress(ValueError):
        source = features.make(str(spoilt))
        found = source.read(range(6), np.ones((6, 1), int))
        assert [record["label"] for record in found] == LABELS.tolist()
        assert all((record["image"][0] == 1).all() for record in found)
        assert len(source.class_names) == 3 or name == "features.json"


PIPES = [
    "decode|random_resized_crop(224, scale=(0.08, 1.0), filter='bicubic')|flip(0.5)",
    "decode|resize((32, 48), fast=False)|center_crop(32)|pad_crop(32, padding=4)",
]


@pytest.mark.parametrize("text", PIPES)
@fuzz
@hypothesis.given(edits=EDITS, more=st.text(max_size=8), times=st.sampled_from([1, 1, 40, 9000]))
def test_a_spoilt_pipe(text, edits, more, times):
    pipe = spoil(text.encode(), edits).decode(errors="surrogateescape") + more * times
    with soon(SECONDS):
        for call in (
            lambda: transforms.make([pipe]),
            lambda: pipes.parse(pipe, recipes.RECIPES, "recipe"),
            lambda: _open.open_source(pipe),
        ):
            with contextlib.suppress(ValueError):
                call()


NO_TORCH = importlib.util.find_spec("torch") is None


@pytest.mark.skipif(NO_TORCH, reason="torch, up to 5 GB, is an extra: pip '.[torch]'")
@pytest.mark.parametrize("zipped", [True, False])
@fuzz
@hypothesis.given(edits=EDITS)
def test_a_spoilt_file_of_torch(zipped, edits, tmp_path_factory):
    import torch

    from jaxequi.interop import files

    tree = {"epoch": 3, "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}}
    data = saved(lambda stream: torch.save(tree, stream, _use_new_zipfile_serialization=zipped))
    file = tmp_path_factory.getbasetemp() / "spoilt.pth"
    file.write_bytes(spoil(data, edits))
    with soon(SECONDS), contextlib.suppress(ValueError):
        assert isinstance(files.read_pth(file), dict)
