"""CRC-32C, the framing of TFRecords, and the Example message."""

import contextlib
import os
import pathlib

import numpy as np
import pytest

from jaxequi.data import crc32c, example, tfrecord_file

FILES = pathlib.Path(__file__).parent / "files"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_of_rfc_3720(data, expected):
    assert crc32c.crc32c(data) == expected


def test_crc32c_of_any_length_equals_the_byte_by_byte_loop():
    table = crc32c._byte_list()
    for length in [*range(70), 255, 256, 257, 1000, 4095, 70_001]:
        data = os.urandom(length)
        register = 0xFFFFFFFF
        for byte in data:
            register = (register >> 8) ^ table[(register ^ byte) & 0xFF]
        assert crc32c.crc32c(data) == register ^ 0xFFFFFFFF


def test_records_round_trip(tmp_path):
    records = [b"", b"a", os.urandom(1000), os.urandom(100_000)]
    tfrecord_file.write(tmp_path / "r", records)
    places = tfrecord_file.scan(tmp_path / "r")
    assert places[:, 1].tolist() == [0, 1, 1000, 100_000]
    with (tmp_path / "r").open("rb") as file:
        assert [tfrecord_file.read(file, *place, check=True) for place in places] == records


def test_an_empty_file_has_no_record(tmp_path):
    (tmp_path / "r").write_bytes(b"")
    assert tfrecord_file.scan(tmp_path / "r").shape == (0, 2)


@pytest.mark.parametrize("name", ["imagenet-train-00000-of-00002", "tensorboardx.tfrecord"])
def test_files_of_other_writers_check(name):
    places = tfrecord_file.scan(FILES / name)
    assert len(places) == 3
    with (FILES / name).open("rb") as file:
        for place in places:
            example.parse(tfrecord_file.read(file, *place, check=True))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d[:-1], r"record 1 at byte 26 is cut off: 1 bytes"),
        (lambda d: d[:30], "ends in the header of record 1"),
        (lambda d: bytes([d[0] ^ 1]) + d[1:], "bad CRC in the header of record 0, byte 0"),
    ],
)
def test_a_broken_frame_is_named(tmp_path, spoil, words):
    tfrecord_file.write(tmp_path / "r", [b"ten bytes!", b"more"])
    (tmp_path / "r").write_bytes(spoil((tmp_path / "r").read_bytes()))
    with pytest.raises(ValueError, match=words):
        tfrecord_file.scan(tmp_path / "r")


def test_a_wrong_payload_is_found(tmp_path):
    tfrecord_file.write(tmp_path / "r", [b"ten bytes!"])
    data = bytearray((tmp_path / "r").read_bytes())
    data[15] ^= 4
    (tmp_path / "r").write_bytes(data)
    with (tmp_path / "r").open("rb") as file, pytest.raises(ValueError, match="bad CRC of the 10"):
        tfrecord_file.read(file, 12, 10, check=True)


def test_a_place_that_is_no_record_is_found(tmp_path):
    tfrecord_file.write(tmp_path / "r", [b"ten bytes!", b"more"])
    with (tmp_path / "r").open("rb") as file:
        assert tfrecord_file.is_header(file, 12, 10)
        assert not tfrecord_file.is_header(file, 12, 9)
        for offset, length in ((12, 9), (13, 10), (12, 26)):
            with pytest.raises(ValueError, match=f"no record of {length} bytes begins at"):
                tfrecord_file.read(file, offset, length, check=True)
        with pytest.raises(ValueError, match="claims 4294967296 bytes"):
            tfrecord_file.read(file, 12, 1 << 32, check=True)


def test_a_length_beyond_any_file_is_named(tmp_path):
    head = tfrecord_file.LENGTH.pack(2**64 - 1)
    crc = tfrecord_file.FOOTER.pack(crc32c.masked(head))
    (tmp_path / "r").write_bytes(head + crc + b"data")
    with pytest.raises(ValueError, match="record 0 at byte 0 is cut off"):
        tfrecord_file.scan(tmp_path / "r")


def test_examples_round_trip():
    features = {
        "image": b"\x00\xff" * 100,
        "names": [b"a", b"", b"long" * 50],
        "label": 7,
        "many": np.array([-1, 0, 300, 2**62, -(2**62)]),
        "latent": np.array([0.5, -1.25, 3e8], np.float32),
    }
    parsed = example.parse(example.build(features))
    assert parsed["image"] == [features["image"]]
    assert parsed["names"] == features["names"]
    assert parsed["label"].tolist() == [7]
    np.testing.assert_array_equal(parsed["many"], features["many"])
    np.testing.assert_array_equal(parsed["latent"], features["latent"])
    assert set(example.parse(example.build(features), ("label",))) == {"label"}


def test_examples_equal_those_of_protobuf():
    tf_example_pb2 = pytest.importorskip(
        "tensorflow_datasets.proto.tf_example_generated_pb2",
        reason="tensorflow-datasets is of the extra tfds",
    )
    message = tf_example_pb2.Example()
    message.features.feature["label"].int64_list.value.extend([-5, 1 << 40])
    message.features.feature["image"].bytes_list.value.append(b"xyz")
    message.features.feature["latent"].float_list.value.extend([1.5, 2.5])
    parsed = example.parse(message.SerializeToString())
    assert parsed["label"].tolist() == [-5, 1 << 40]
    built = example.build({"label": np.array([-5, 1 << 40]), "image": b"xyz", "latent": LATENT})
    assert tf_example_pb2.Example.FromString(built) == message


LATENT = np.array([1.5, 2.5], np.float32)


def nested(value, field):
    """An Example with one feature `x`, whose list of kind `field` has this content."""

    def wrap(number, content):
        return example._number(number << 3 | 2) + example._number(len(content)) + content

    return wrap(1, wrap(1, wrap(1, b"x") + wrap(2, wrap(field, value))))


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\xff\x01",
        b"\x0b",
        b"\xff" * 12,
        b"\x0a\x02\x0a\x09",
        b"\x80" * (1 << 20) + b"\x01",
        nested(b"\x0a\x03abc", 2),
        nested(b"\x08\xff", 3),
    ],
    ids=["length", "type", "number", "nested", "a megabyte of number", "float", "integer"],
)
def test_other_bytes_are_no_example(data):
    with pytest.raises(ValueError, match="no Example message"):
        example.parse(data)


def test_a_number_of_ten_bytes_keeps_64_bits():
    parsed = example.parse(nested(b"\x08" + b"\xff" * 9 + b"\x7f", 3))
    assert parsed["x"].tolist() == [-1]


def test_one_image_and_one_integer_are_asked_for():
    found = example.parse(example.build({"image": [b"a", b"b"], "label": LATENT, "one": b"x"}))
    assert example.image(found, "one") == b"x"
    with pytest.raises(ValueError, match="image has 2 values of bytes, not one string of bytes"):
        example.image(found, "image")
    for name in ("label", "one", "none"):
        with pytest.raises(ValueError, match=rf"{name} has \d values of .*, not one integer"):
            example.integer(found, name)


def test_random_bytes_never_escape_as_another_error():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        with contextlib.suppress(ValueError):
            example.parse(rng.bytes(30))
