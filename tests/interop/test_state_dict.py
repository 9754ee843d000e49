"""The state dict in a file, and files and folders that appear whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.interop import files

STATE = {"conv1.weight": np.ones(2), "layer1.0.bn1.bias": np.zeros(3)}


@pytest.mark.parametrize(
    ("loaded", "epoch"),
    [
        (STATE, 0),
        ({"model": {f"module.{k}": v for k, v in STATE.items()}, "epoch": 3, "optimizer": {}}, 3),
        ({"state_dict": {f"model.{k}": v for k, v in STATE.items()}, "epoch": 7}, 7),
        ({"state_dict": {f"module.{k}": v for k, v in STATE.items()}, "epoch": None}, 0),
    ],
)
def test_where_it_lies(loaded, epoch):
    state, found = files.state_dict(loaded)
    np.testing.assert_equal(state, STATE)
    assert found == epoch


def test_a_prefix_of_some_names_alone_stays():
    mixed = {"module.a": np.zeros(1), "a": np.ones(1)}
    np.testing.assert_equal(files.state_dict(mixed)[0], mixed)


@pytest.mark.parametrize("loaded", [{"epoch": 3, "args": {}}, {}, {"model": {1: np.zeros(2)}}])
def test_what_is_no_state_dict_is_told(loaded):
    with pytest.raises(ValueError, match="the file has no state dict; it has"):
        files.state_dict(loaded)


def test_what_fails_leaves_nothing(tmp_path):
    def write(target, error):
        with files.appearing(target) as part:
            part.mkdir()
            (part / "half").write_text("")
            raise error

    for error in (OSError(28, "No space left on device"), RuntimeError("no"), KeyboardInterrupt()):
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ValueError
        with pytest.raises(expected):
            write(tmp_path / "a" / "b" / "c", error)
        assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_beside(tmp_path):
    (tmp_path / "run.part").mkdir()  # of a process that was killed
    (tmp_path / "run.part" / "half").write_text("")
    with files.appearing(tmp_path / "run" / "checkpoints") as part:
        assert not (tmp_path / "run").exists()
        part.mkdir()
        (part / "whole").write_text("")
    assert (tmp_path / "run" / "checkpoints" / "whole").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    with files.appearing(tmp_path / "run" / "figures") as part:
        part.write_text("")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoints", "figures"]
