"""Features on disk: written in chunks, taken up again, and never read where they were changed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from jaxequi.data.sources import features
from jaxequi.data.sources.features import STATE, Writer
from jaxequi.errors import Refusal

EXAMPLES, VIEWS, CHUNK = 10, 3, 4
WHAT = {"set": "val", "weights": "abc", "views": ("decode",)}
NAMES = ["a", "b"]


def arrays(seed=0):
    random = np.random.default_rng(seed)
    return {
        "representation": random.normal(size=(EXAMPLES, VIEWS, 5)).astype(np.float32),
        "latent": random.normal(size=(EXAMPLES, VIEWS, 7)).astype(np.float32),
        "label": random.integers(0, 2, EXAMPLES).astype(np.int32),
    }


def write(folder, what=WHAT, seed=0, stop=EXAMPLES):
    """Write what is missing, in chunks, up to an example."""
    writer, given = Writer(folder, what), arrays(seed)
    while writer.done < stop:
        at = slice(writer.done, min(writer.done + CHUNK, stop))
        writer.add({name: array[at] for name, array in given.items()}, EXAMPLES, NAMES)
    return writer


def test_what_is_written_is_read(tmp_path):
    assert write(tmp_path / "f").complete
    source, given = features.make(str(tmp_path / "f")), arrays()
    assert (len(source), source.num_views, source.class_names) == (EXAMPLES, VIEWS, NAMES)
    rows, views = [7, 0, 7], np.array([[2, 0], [1, 1], [0, 2]])
    for record, row, drawn in zip(source.read(rows, views), rows, views):
        np.testing.assert_array_equal(record["image"], given["representation"][row, drawn])
        np.testing.assert_array_equal(record["latent"], given["latent"][row, drawn])
        assert record["label"] == given["label"][row]
        assert set(record) == {"image", "latent", "label"}


def test_an_interrupted_folder_goes_on_where_it_stopped(tmp_path):
    write(tmp_path / "f", stop=8)
    with pytest.raises(Refusal, match="8 of 10 examples; run again"):
        features.make(str(tmp_path / "f"))
    # What was being written when it stopped is not counted, and written again.
    torn = np.lib.format.open_memmap(tmp_path / "f" / "latent.npy", mode="r+")
    torn[8:] = 99
    torn.flush()
    writer = Writer(tmp_path / "f", WHAT)
    assert (writer.done, writer.total, writer.complete) == (8, EXAMPLES, False)
    assert write(tmp_path / "f").complete
    write(tmp_path / "whole")
    for name, array in features.make(str(tmp_path / "f")).arrays.items():
        np.testing.assert_array_equal(array, arrays()[name])


def test_a_finished_folder_is_not_computed_again(tmp_path):
    write(tmp_path / "f")
    writer = Writer(tmp_path / "f", WHAT)
    assert writer.complete
    np.testing.assert_array_equal(writer.open().arrays["label"], arrays()["label"])


def flip(folder):
    file = folder / "representation.npy"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def cut(folder):
    file = folder / "representation.npy"
    file.write_bytes(file.read_bytes()[:-8])


def delete(folder):
    (folder / "latent.npy").unlink()


def swap(folder):
    write(folder.parent / "other", seed=1)
    shutil.copy(folder.parent / "other" / "label.npy", folder / "label.npy")


def shorten(folder):
    np.save(folder / "label.npy", arrays()["label"][:8])


def empty(folder):
    (folder / STATE).write_text("")


def another(folder):
    (folder / STATE).write_text(json.dumps({"what": WHAT, "chunks": []}))


def none(folder):
    (folder / STATE).unlink()


@pytest.mark.parametrize("damage", [flip, cut, delete, swap, shorten, empty, another, none])
def test_a_damaged_folder_is_refused_and_begun_anew(tmp_path, damage):
    folder = tmp_path / "f"
    write(folder)
    damage(folder)
    with pytest.raises(Refusal, match="cannot be used"):
        features.make(str(folder))
    assert folder.exists()  # who only reads takes nothing away
    writer = Writer(folder, WHAT)
    assert (writer.done, writer.complete) == (0, False)
    assert not folder.exists()
    assert write(folder).complete
    np.testing.assert_array_equal(
        features.make(str(folder)).arrays["representation"], arrays()["representation"]
    )


def test_features_of_something_else_are_not_taken_for_these(tmp_path):
    write(tmp_path / "f")
    for other in ({**WHAT, "weights": "abd"}, {**WHAT, "dtype": "bfloat16"}, {}):
        shutil.copytree(tmp_path / "f", tmp_path / "copy")
        assert Writer(tmp_path / "copy", other).done == 0
        assert not (tmp_path / "copy").exists()
    assert Writer(tmp_path / "f", None).what_was == json.loads(json.dumps(WHAT))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(Refusal, match=f"there is no {STATE}"):
        features.make(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="cannot be written"):
        write(tmp_path / "file" / "below")
