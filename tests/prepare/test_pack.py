"""Packing: the same examples come back, a stopped run goes on, damage is found."""

import json

import numpy as np
import pytest

from jaxequi.data import decoding, example
from jaxequi.data.errors import DataError
from jaxequi.data.sources import packed
from jaxequi.prepare import pack


class Toy:
    """Seven examples of three views with latents; row `broken` cannot be read."""

    class_names = ("even", "odd")
    num_views = 3

    def __init__(self, broken=None):
        self.broken = broken
        self.seen = []

    def __len__(self):
        return 7

    def __str__(self):
        return "the toy set"

    def read(self, rows, views):
        return [self._read(row, mine) for row, mine in zip(rows, views)]

    def _read(self, row, views):
        if row == self.broken:
            raise ValueError(f"row {row} is broken")
        self.seen.append(row)
        images = [np.full((4, 5, 3), 30 * row + view, np.uint8) for view in views]
        latent = np.stack([np.full(7, row + view / 10) for view in views])
        return {"image": images, "label": row % 2, "latent": latent}


def read(source, rows, views):
    records = source.read(rows, np.array(views))
    images = [[int(decoding.decode(x).getpixel((0, 0))[0]) for x in r["image"]] for r in records]
    return images, [r["label"] for r in records], np.stack([r["latent"][:, 0] for r in records])


def test_packed_examples_equal_the_source(tmp_path):
    pack.pack(Toy(), tmp_path, shard_examples=3)
    source = packed.make(str(tmp_path))
    assert (len(source), source.num_views, source.class_names) == (7, 3, ("even", "odd"))
    assert len(list(tmp_path.glob("*.array_record"))) == 3
    images, labels, latents = read(source, [6, 0, 3], [[2, 0], [1, 2], [0, 1]])
    assert images == [[182, 180], [1, 2], [90, 91]]
    assert labels == [0, 0, 1]
    np.testing.assert_allclose(latents, [[6.2, 6.0], [0.1, 0.2], [3.0, 3.1]], rtol=1e-6)
    assert pack.verify(tmp_path) == []


def test_encoded_images_are_copied_byte_by_byte(tmp_path):
    class Encoded(Toy):
        def _read(self, row, views):
            return {"image": [b"not decoded"] * len(views), "label": 0}

    pack.pack(Encoded(), tmp_path)
    [record] = packed.make(str(tmp_path)).read([2], np.array([[1]]))
    assert record == {"image": [b"not decoded"], "label": 0}


def test_a_stopped_run_goes_on_with_the_missing_shards(tmp_path):
    with pytest.raises(ValueError, match="row 4 is broken"):
        pack.pack(Toy(broken=4), tmp_path, shard_examples=2, threads=1)
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ValueError, match="was not packed, or not to the end"):
        packed.make(str(tmp_path))
    source = Toy()
    pack.pack(source, tmp_path, shard_examples=2, threads=1)
    assert {4, 5} <= set(source.seen) <= {4, 5, 6}  # 6 may have been written before the stop
    assert read(packed.make(str(tmp_path)), [1], [[1]])[0] == [[31]]


def test_another_source_is_not_mixed_in(tmp_path):
    pack.pack(Toy(), tmp_path, shard_examples=2)
    with pytest.raises(ValueError, match="another source or size"):
        pack.pack(Toy(), tmp_path, shard_examples=3)


def test_damage_is_found(tmp_path, capsys):
    pack.pack(Toy(), tmp_path, shard_examples=4)
    first, second = sorted(tmp_path.glob("*.array_record"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    assert pack.verify(tmp_path) == [f"{first} differs from its checksum"]
    assert pack.main(["pack", "", str(tmp_path), "--verify"]) == 1
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"has \d+ bytes, not"):
        packed.make(str(tmp_path))
    second.unlink()
    with pytest.raises(ValueError, match="is missing"):
        packed.make(str(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({"examples": 7}))
    with pytest.raises(ValueError, match="is damaged"):
        packed.make(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"num_views": 0},
        {"num_views": "many"},
        {"examples": 10**12},
        {"class_names": 3},
        {"shards": [{"file": "../../etc/passwd", "records": 21, "bytes": 1}]},
        {"shards": [{"file": "x", "records": -21, "bytes": 1}]},
        {"shards": "x"},
        [],
    ],
    ids=str,
)
def test_a_manifest_of_something_else_is_refused(tmp_path, change):
    pack.pack(Toy(), tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | change if change else change))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        packed.make(str(tmp_path))
    file.write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        packed.make(str(tmp_path))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"label": 1}, "image has 0 values of bytes, not one string"),
        ({"image": b"x"}, "label has 0 values of bytes, not one integer"),
        ({"image": b"x", "label": 1 << 40}, "label 1099511627776 is not in -1 to 1"),
        ({"image": b"x", "label": 1, "latent": b"x"}, "the latents are bytes"),
        (None, "no Example message"),
    ],
)
def test_a_record_of_something_else_is_named(tmp_path, monkeypatch, features, words):
    data = b"\xff" * 20 if features is None else example.build(features)
    monkeypatch.setattr(pack, "_records", lambda record: [data] * 3)
    pack.pack(Toy(), tmp_path)
    source = packed.make(str(tmp_path))
    with pytest.raises(ValueError, match=rf"array_record, record 4: {words}"):
        source.read([1], np.array([[1]]))


def test_a_flipped_bit_is_found_by_reading(tmp_path):
    pack.pack(Toy(), tmp_path)
    [shard] = tmp_path.glob("*.array_record")
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    full = np.flatnonzero(np.frombuffer(whole, np.uint8))
    good = str(packed.make(str(tmp_path)).read(range(7), np.tile(np.arange(3), (7, 1))))
    found = 0
    for at in rng.choice(full, 60, replace=False):
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        shard.write_bytes(data)
        try:
            records = packed.make(str(tmp_path)).read(range(7), np.tile(np.arange(3), (7, 1)))
            assert str(records) == good
        except ValueError as error:
            found += "array_record, record " in str(error)
    assert found > 50


def test_a_source_that_is_refused_at_once_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="row 0 is broken"):
        pack.pack(Toy(broken=0), tmp_path / "out", shard_examples=7)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="row 0 is broken"):
        pack.pack(Toy(broken=0), tmp_path / "mine", shard_examples=7)
    assert (tmp_path / "mine").exists()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *unused):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(pack.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(DataError, match=r"partial cannot be written: .*No space left"):
        pack.pack(Toy(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_notes_are_refused_or_made_again(tmp_path):
    pack.pack(Toy(), tmp_path)
    for file in tmp_path.glob("*.json"):
        whole = file.read_bytes()
        for content in (b"", b"{", b"[]", b"{}", b"\xff", b"[" * 10**5):
            file.write_bytes(content)
            if file.name == "plan.json":
                with pytest.raises(ValueError, match=r"plan\.json"):
                    pack.pack(Toy(), tmp_path)
            elif file.name == "manifest.json":
                with pytest.raises(ValueError, match=r"manifest\.json is (missing or )?damaged"):
                    pack.verify(tmp_path)
            else:
                pack.pack(Toy(), tmp_path)
                assert file.read_bytes() == whole
        file.write_bytes(whole)


def test_the_program_packs_any_source(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3))
    assert pack.main(["pack", f"arrays(path='{tmp_path / 'a.npz'}')", str(tmp_path / "out")]) == 0
    assert len(packed.make(str(tmp_path / "out"))) == 3
    assert pack.main(["pack", "arays(path='x')", str(tmp_path / "no")]) == 2
    assert "Did you mean 'arrays'" in capsys.readouterr().err
    assert pack.main(["pack", "arrays(path='/none/x.npz')", str(tmp_path / "no")]) == 2
    assert "cannot read /none/x.npz" in capsys.readouterr().err
