"""Files of torch: exact, and nothing but weights."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, up to 5 GB, is an extra")

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


def test_what_claims_more_than_it_holds_is_refused(tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, file)
    with pytest.raises(ValueError, match=r"\[1000000, 1000000\] claims 4,000,000,000,000 bytes"):
        files.read_pth(file)
    torch.save({"a": torch.zeros(10**6)}, file)
    with zipfile.ZipFile(file) as stored, zipfile.ZipFile(tmp_path / "small.pth", "w", 8) as packed:
        for member in stored.infolist():
            packed.writestr(member.filename, stored.read(member))
    with pytest.raises(ValueError, match=r"small\.pth is refused: it has .* and claims 4,0"):
        files.read_pth(tmp_path / "small.pth")


def test_containers_that_hold_themselves_or_each_other_end(tmp_path):
    file = tmp_path / "model.pth"
    endless = {"a": torch.zeros(2)}
    endless["again"] = [endless]
    torch.save(endless, file)
    with pytest.raises(ValueError, match="refused: over 20 dicts or lists"):
        files.read_pth(file)
    # a list in a list in ..., so deep that Python itself cannot write it
    file.write_bytes(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".")
    with pytest.raises(ValueError, match=r"model\.pth is no file of torch"):
        files.read_pth(file)
    laughs = ["ha"]
    for _ in range(19):
        laughs = [laughs] * 10
    torch.save({"a": laughs}, file)
    assert len(files.read_pth(file)["a"]) == 10


def test_tensors_that_numpy_does_not_have_are_refused(tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.eye(3).to_sparse()}, file)
    with pytest.raises(ValueError, match=r"model\.pth (holds a tensor that is no|is no file)"):
        files.read_pth(file)
    torch.save({"a": torch.ones(3, dtype=torch.bfloat16)}, file)
    np.testing.assert_array_equal(files.read_pth(file)["a"], np.ones(3, np.float32))


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path, tmp_path / "pipe.pth"):
        with pytest.raises(ValueError, match="is no regular file"):
            files.read_pth(path)


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
