"""Files of torch: exact, and nothing but weights."""

from __future__ import annotations

import argparse
import os
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxequi.interop import files


class Code:
    """Unpickles by running a command."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_round_trip(tmp_path):
    tree = {
        "epoch": 3,
        "model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.zeros((), np.int64)},
    }
    files.write_pth(tmp_path / "model.pth", tree)
    assert isinstance(torch.load(tmp_path / "model.pth")["model"]["a"], torch.Tensor)
    np.testing.assert_equal(files.read_pth(tmp_path / "model.pth"), tree)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pth"]


def test_code_is_refused_and_not_run(tmp_path):
    for name, save in (("new.pth", torch.save), ("old.pth", None)):
        file, mark = tmp_path / name, tmp_path / f"{name}.ran"
        content = {"model": Code(mark)}
        if save:
            save(content, file)
        else:
            file.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="refused"):
            files.read_pth(file)
        assert not mark.exists()


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        files.read_pth(tmp_path / "none.pth")
    file = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    for size in (0, 100, 3000):
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"model\.pth"):
            files.read_pth(file)
    torch.save(torch.zeros(3), file)
    with pytest.raises(ValueError, match="holds a Tensor"):
        files.read_pth(file)


def test_arguments_beside_the_weights_are_read(tmp_path):
    content = {"state_dict": {"a": torch.ones(2)}, "args": argparse.Namespace(width=4)}
    torch.save(content, tmp_path / "model.ckpt")
    state, epoch = files.state_dict(files.read_pth(tmp_path / "model.ckpt"))
    np.testing.assert_equal(state, {"a": np.ones(2, np.float32)})
    assert epoch == 0


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"model\.pth cannot be written: "):
        files.write_pth(tmp_path / "file" / "model.pth", {"a": np.zeros(2)})
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
