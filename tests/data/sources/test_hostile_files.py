"""Files that are broken, hostile or no files: one `DataError` that names them, soon and cheaply."""

from __future__ import annotations

import gzip
import io
import os
import resource
import socket
import struct
import zipfile

import numpy as np
import pytest

from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources import _files, arrays, folder, threedie

ONE = np.zeros((1, 1), int)
IMAGES = np.arange(6 * 25, dtype=np.uint8).reshape(6, 5, 5)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def little_memory():
    """Room for half a gigabyte more than there is: a blow-up is an error, not a dead machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(shape, descr="|u1"):
    """The .npy header that claims a shape."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz(path, *, method=zipfile.ZIP_DEFLATED, images=None, labels=None):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", npy(IMAGES) if images is None else images)
        archive.writestr("labels.npy", npy(LABELS) if labels is None else labels)
    return path


def patched(path, offset_local, offset_central, value):
    """Change two bytes of the first member's local and central header."""
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for at in (offset_local, central + offset_central):
        data[at : at + 2] = struct.pack("<H", value)
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_whole_npz_is_read(tmp_path, method):
    source = arrays.make(str(npz(tmp_path / "a.npz", method=method)))
    np.testing.assert_array_equal(source.images, IMAGES)
    assert source.labels.tolist() == LABELS.tolist()


def test_an_encrypted_npz_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz")
    patched(path, 6, 8, 1)
    with pytest.raises(DataError, match=r"images in .*a\.npz is encrypted"):
        arrays.make(str(path))


def test_an_unknown_compression_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz")
    patched(path, 8, 10, 97)
    with pytest.raises(DataError, match=r"a\.npz is no \.npz of plain arrays: .*compression"):
        arrays.make(str(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_damaged_member_is_refused(tmp_path, method):
    path = npz(tmp_path / "a.npz", method=method)
    data = bytearray(path.read_bytes())
    end = data.index(b"PK\x03\x04", 4)
    data[end - 20 : end] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz"):
        arrays.make(str(path))


def test_a_member_that_ends_early_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", images=npy(IMAGES)[:-7])
    with pytest.raises(DataError, match=r"it holds 143 bytes, not the 150 of uint8\[6, 5, 5\]"):
        arrays.make(str(path))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", [(10**6, 224, 224, 3), (2**62, 2**62, 5), (-1, 5, 5)])
def test_sizes_beyond_memory_are_refused_unread(tmp_path, shape):
    with pytest.raises(DataError, match=r"declares .* max_gigabytes|claims uint8 of shape"):
        arrays.make(str(npz(tmp_path / "a.npz", images=header(shape))))
    (tmp_path / "train_images.npy").write_bytes(header(shape))
    with pytest.raises(DataError, match=r"declares .* max_gigabytes|claims uint8 of shape"):
        arrays.make(str(tmp_path))


@pytest.mark.usefixtures("little_memory")
def test_a_header_that_never_ends_is_not_read_to_its_end(tmp_path):
    """Version 2 of the format has headers of up to 4 GiB."""
    endless = b"\x93NUMPY\x02\x00" + struct.pack("<I", 3 << 30) + bytes(1 << 20)
    with pytest.raises(DataError, match=r"is no plain \.npy array"):
        arrays.make(str(npz(tmp_path / "a.npz", images=endless)))


@pytest.mark.parametrize(
    "text", ["{'descr': " + "(" * 5000, "-" * 9000 + "1", "{[]: 1}", "{'shape': ()}", "\0"]
)
def test_a_header_that_is_no_literal_is_refused(tmp_path, text):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npy is no plain \.npy array") as caught:
        _files.load_array(tmp_path / "a.npy")
    assert len(str(caught.value)) < 1000


def test_more_is_read_where_it_is_asked_for(tmp_path):
    path = str(npz(tmp_path / "a.npz"))
    assert len(arrays.make(path, max_gigabytes=150 / 2**30)) == 6
    with pytest.raises(DataError, match="declares 150 bytes, more than the"):
        arrays.make(path, max_gigabytes=149 / 2**30)


def idx(shape, data=b""):
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + data


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (idx((2**32 - 1, 2**32 - 1)), "declares .* max_gigabytes"),
        (idx((30, 28, 28), bytes(7)), "ends after 7 of 23,520 bytes"),
        (idx((3, 2, 2), bytes(14)), "holds more bytes than"),
        (idx((3, 2, 2))[:9], "ends in its header"),
        (idx(()), "ends in its header"),
        (b"\0\0\x0d\x01", "is no IDX file of bytes"),
    ],
)
def test_idx_files_that_do_not_hold_what_they_promise(tmp_path, pack, content, words):
    (tmp_path / "x").write_bytes(pack(content))
    with pytest.raises(DataError, match=f"x.*{words}"):
        arrays.load_idx(tmp_path / "x")


@pytest.mark.usefixtures("little_memory")
def test_a_gzip_bomb_is_read_no_further_than_it_promises(tmp_path):
    block = gzip.compress(bytes(16 << 20))
    (tmp_path / "x").write_bytes(gzip.compress(idx((3, 2, 2))) + 100 * block)
    with pytest.raises(DataError, match="holds more bytes than"):
        arrays.load_idx(tmp_path / "x")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 10**9], "label 1000000000 asks for 1,000,000,001 classes; there may be 1,000,000"),
        ([0, 2**63], "classes; there may be"),
        ([0, -1], "label -1 of row 1 is negative"),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_labels_that_are_no_classes_are_refused(labels, words):
    labels = np.array(labels, np.uint64 if max(labels) > 2**62 else np.int64)
    with pytest.raises(DataError, match=words):
        arrays.Arrays(IMAGES[:2], labels)


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 5, 5, 2), (2, 5, 5, 0)])
def test_images_that_are_none_are_refused(shape):
    with pytest.raises(DataError, match="images"):
        arrays.Arrays(np.zeros(shape, np.uint8), LABELS[:2])


@pytest.fixture
def classes(tmp_path):
    for name in ("cat", "owl"):
        (tmp_path / "set" / name / "inner").mkdir(parents=True)
        (tmp_path / "set" / name / "inner" / "x.jpg").write_bytes(b"an image")
    return tmp_path / "set"


def test_links_to_files_and_folders_are_followed(classes, tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "y.png").write_bytes(b"another")
    (classes / "cat" / "z.jpg").symlink_to(classes / "owl" / "inner" / "x.jpg")
    (classes / "cat" / "far").symlink_to(tmp_path / "far")
    (classes / "fox").symlink_to(tmp_path / "far")
    source = folder.make(str(classes))
    assert source.paths == [
        "cat/z.jpg",
        "cat/far/deep/y.png",
        "cat/inner/x.jpg",
        "fox/deep/y.png",
        "owl/inner/x.jpg",
    ]
    assert source.read([1], ONE)[0]["image"] == [b"another"]


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.fspath(path))


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("p.jpg", os.mkfifo, r"p\.jpg is a pipe"),
        ("p.jpg", make_socket, r"p\.jpg is a socket"),
        ("p.jpg", lambda path: path.symlink_to("/dev/zero"), r"p\.jpg is a device"),
        ("p.jpg", lambda path: path.symlink_to("gone"), r"p\.jpg is a link to nowhere"),
        ("p.jpg", lambda path: path.symlink_to("p.jpg"), r"p\.jpg is a link to nowhere"),
        ("up", lambda path: path.symlink_to("../.."), "cat is the folder .*cat once more"),
        ("here", lambda path: path.symlink_to("."), "here is the folder .*cat once more"),
        ("twice", lambda path: path.symlink_to("inner"), "twice is the folder .*inner once more"),
    ],
)
def test_what_is_no_image_file_is_refused_by_name(classes, monkeypatch, name, make, words):
    monkeypatch.chdir(classes / "cat")
    make(classes / "cat" / name)
    with pytest.raises(DataError, match=words):
        folder.make(str(classes))


@pytest.mark.parametrize("target", ["gone", "bat"])
def test_a_class_that_is_a_link_to_nowhere_is_not_left_out(classes, target):
    (classes / "bat").symlink_to(target)
    with pytest.raises(DataError, match="bat is a link to nowhere; mend or remove it"):
        folder.make(str(classes))


def test_what_no_image_is_called_is_passed_over(classes):
    os.mkfifo(classes / "cat" / "control")
    (classes / "cat" / "lost.txt").symlink_to("gone")
    assert len(folder.make(str(classes))) == 2


def test_a_pipe_that_came_later_is_not_waited_for(classes):
    source = folder.make(str(classes))
    (classes / "cat" / "inner" / "x.jpg").unlink()
    os.mkfifo(classes / "cat" / "inner" / "x.jpg")
    with pytest.raises(DataError, match=r"x\.jpg is a pipe"):
        source.read([0], ONE)


def test_a_file_larger_than_memory_is_not_read(tmp_path):
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"x\.jpg has 1099511627776 bytes; at most"):
        _files.read_file(tmp_path / "x.jpg")


def test_names_of_any_bytes_become_classes_that_can_be_written(classes):
    for name in (b"caf\xe9", b"two\nlines", b"\x1b[31mred", "größe".encode()):
        os.mkdir(os.path.join(os.fsencode(classes), name))
        with open(os.path.join(os.fsencode(classes), name, b"\n\xff.jpg"), "wb") as file:
            file.write(name)
    source = folder.make(str(classes))
    assert source.class_names == (
        r"'\x1b[31mred'",
        r"'caf\udce9'",
        "cat",
        "größe",
        "owl",
        r"'two\nlines'",
    )
    assert "".join(source.class_names).isprintable()
    rows = range(len(source))
    found = [record["image"][0] for record in source.read(rows, np.zeros((len(source), 1), int))]
    assert found[1] == b"caf\xe9"
    os.unlink(os.path.join(os.fsencode(classes), b"two\nlines", b"\n\xff.jpg"))
    with pytest.raises(DataError, match=r"\\n.udcff\.jpg': No such file") as caught:
        source.read([5], ONE)
    assert str(caught.value).isprintable()


def test_long_names_are_cut():
    assert len(shown("x" * 10**6)) < 250
    assert shown("a\0b") == r"'a\x00b'"


@pytest.mark.parametrize(
    ("objects", "labels", "words"),
    [
        (["a/b"], [10**9], "asks for 1,000,000,001 classes"),
        (["a/b"], [0.5], "not whole numbers"),
        (["a/b"], ["0"], "not whole numbers"),
        ([b"a/b"], [0], "not a list of strings"),
        ([7], [0], "not a list of strings"),
        (["a/\udcff"], [0], "no Unicode text"),
        (["a/b\0c"], [0], "points out of"),
        (["a/\nb"], [0], r"names 'a/.nb'"),
        ([], [], "names no object"),
        (np.zeros(0, "U3"), np.zeros(0, int), "names no object"),
    ],
)
def test_lists_of_something_else_are_refused(tmp_path, objects, labels, words):
    np.save(tmp_path / "i.npy", np.array(objects))
    np.save(tmp_path / "l.npy", np.array(labels))
    files = {"images_file": str(tmp_path / "i.npy"), "labels_file": str(tmp_path / "l.npy")}
    with pytest.raises(DataError, match=words):
        threedie.make(str(tmp_path), **files)


def test_a_code_point_that_does_not_exist_is_refused(tmp_path):
    data = npy(np.array(["a/b"]))
    (tmp_path / "i.npy").write_bytes(data[:-4] + b"\xff" * 4)
    with pytest.raises(DataError, match=r"i\.npy holds a string that is no Unicode text"):
        _files.texts(_files.load_array(tmp_path / "i.npy"), "i.npy")


@pytest.mark.parametrize("latent", [np.full(7, np.nan), np.array(["x"] * 7), np.zeros(7, complex)])
def test_latents_are_finite_numbers(tmp_path, latent):
    for name in "abcde":
        (tmp_path / "01" / name).mkdir(parents=True)
        np.save(tmp_path / "01" / name / "latent_0.npy", latent)
    source = threedie.make(str(tmp_path), num_views=1)
    with pytest.raises(DataError, match=r"latent_0\.npy (has shape|holds a number)"):
        source.read([0], ONE)
