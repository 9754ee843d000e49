"""The folder of a run: whose it is, who writes in it, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from jaxequi.errors import Refusal
from jaxequi.train import workdir
from jaxequi.train.workdir import Lock, check, held

CONFIG = {"seed": 0, "mesh": {"data": -1}, "method": {"name": "sie", "equi": 3}}

HOLDER = """
import pathlib, sys, time
from jaxequi.train.workdir import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def begun(folder: pathlib.Path, config=CONFIG) -> None:
    """What a run leaves that reached a checkpoint."""
    with held(folder, config, begun=False):
        (folder / workdir.CHECKPOINTS / "4").mkdir(parents=True)


def test_a_check_writes_nothing(tmp_path):
    assert not check(tmp_path / "a" / "b", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_its_config_and_no_other(tmp_path):
    begun(tmp_path)
    before = (tmp_path / workdir.CONFIG_FILE).read_bytes()
    assert check(tmp_path, CONFIG)
    other = {"seed": 1, "mesh": {"data": 2}, "method": {"name": "sie", "equi": 4, "parts": [1]}}
    with pytest.raises(Refusal) as error:
        check(tmp_path, other, free=["mesh"])
    assert str(error.value).splitlines()[1:-1] == [
        "- method.equi = 3",
        "+ method.equi = 4",
        "+ method.parts = [1]",
        "- seed = 0",
        "+ seed = 1",
    ]
    assert check(tmp_path, {**CONFIG, "mesh": {"data": 2}}, free=["mesh.data"])
    with pytest.raises(Refusal, match="- mesh"):
        check(tmp_path, {name: CONFIG[name] for name in ("seed", "method")})
    assert (tmp_path / workdir.CONFIG_FILE).read_bytes() == before


def test_a_tuple_is_a_list_once_it_is_saved(tmp_path):
    begun(tmp_path, {"views": ("decode", "flip")})
    assert check(tmp_path, {"views": ("decode", "flip")})


def test_a_run_without_a_checkpoint_has_nothing_to_lose(tmp_path):
    """It may be begun anew with another config, of which it shows no trace."""
    with held(tmp_path, CONFIG, begun=False):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard" / "events").write_text("of the run that failed")
        # A writer that was killed leaves a checkpoint under a name that is no number.
        (tmp_path / workdir.CHECKPOINTS / "4.orbax-checkpoint-tmp-0").mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("mine")
    other = {**CONFIG, "seed": 1}
    assert not check(tmp_path, other)
    with held(tmp_path, other, begun=False):
        pass
    assert json.loads((tmp_path / workdir.CONFIG_FILE).read_text()) == other
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_going_on_keeps_what_is_there(tmp_path):
    begun(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    with held(tmp_path, {**CONFIG, "mesh": {"data": 2}}, begun=True):
        pass
    assert json.loads((tmp_path / workdir.CONFIG_FILE).read_text()) == CONFIG
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 4, "loss": 1.0}\n'


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    begun(tmp_path)
    (tmp_path / workdir.CONFIG_FILE).write_text('{"seed": ')
    with pytest.raises(Refusal, match=r"config\.json cannot be read"):
        check(tmp_path, CONFIG)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refusal, match=r"file is no folder\. Give a --workdir"):
            check(folder, CONFIG)


def test_a_failure_inside_is_not_taken_for_the_folders(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="elsewhere"),
        held(tmp_path / "run", CONFIG, begun=False),
    ):
        raise FileNotFoundError(2, "no such file", "/elsewhere")
    assert not (tmp_path / "run" / workdir.LOCK_FILE).exists()


def test_a_second_holder_is_told_who_the_first_is(tmp_path):
    with (
        Lock(tmp_path / "lock"),
        pytest.raises(Refusal, match="in use by process") as error,
        Lock(tmp_path / "lock"),
    ):
        raise AssertionError("held twice")
    here = workdir._this_process()
    assert f"process {os.getpid()} on {here['host']}" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_a_process_that_was_killed_does_not_block(tmp_path):
    file = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refusal, match=f"process {holder.pid} on"), Lock(file):
            pass
        holder.kill()  # SIGKILL: it has no time to let go
        assert file.exists()
        # Dead but not yet waited for, as the child of a scheduler is for a while.
        deadline = time.monotonic() + 30
        while workdir._started(holder.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        with Lock(file):
            assert json.loads(file.read_text())["process"] == os.getpid()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    file = tmp_path / "lock"
    file.write_text(json.dumps({**workdir._this_process(), "started": "0", "id": "x"}))
    with Lock(file):
        assert json.loads(file.read_text())["id"] != "x"


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another"}])
def test_an_owner_on_another_host_counts_as_dead_after_a_silence(tmp_path, change):
    file = tmp_path / "lock"
    file.write_text(json.dumps({**workdir._this_process(), **change, "process": 123, "id": "x"}))
    host = {**workdir._this_process(), **change}["host"]
    now = time.time()
    os.utime(file, (now, now - workdir.SILENCE + 10))
    with pytest.raises(Refusal, match=f"process 123 on {host}"), Lock(file):
        pass
    assert list(tmp_path.iterdir()) == [file]
    os.utime(file, (now, now - workdir.SILENCE - 5))
    with Lock(file):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "HEARTBEAT", 0.02)
    file = tmp_path / "lock"
    with Lock(file):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 30
        while file.stat().st_mtime < 1e9 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 1e9
    assert not [t for t in threading.enumerate() if t.name == "lock"]


@pytest.mark.parametrize("text", ["", "[]", "half a l"])
def test_a_lock_that_says_nothing_counts_as_one_of_another_host(tmp_path, text):
    file = tmp_path / "lock"
    file.write_text(text)
    with pytest.raises(Refusal, match="remove"), Lock(file):
        pass
    os.utime(file, (0, 0))
    with Lock(file):
        pass


def test_who_lost_its_lock_leaves_that_of_another(tmp_path):
    file = tmp_path / "lock"
    with Lock(file):
        file.write_text(json.dumps({"id": "another"}))
    assert json.loads(file.read_text()) == {"id": "another"}


def test_of_many_heirs_one_holds(tmp_path):
    file = tmp_path / "lock"
    for _ in range(10):
        file.write_text(json.dumps({**workdir._this_process(), "started": "0"}))
        inside, refused, most = [], [], []
        gate, done = threading.Barrier(6), threading.Barrier(6)

        def take(inside=inside, refused=refused, most=most, gate=gate, done=done):
            gate.wait()
            try:
                with Lock(file):
                    inside.append(1)
                    most.append(len(inside))
                    done.wait()
            except Refusal:
                refused.append(1)
                done.wait()

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(inside), len(refused)) == (1, 5)
        assert list(tmp_path.iterdir()) == []
