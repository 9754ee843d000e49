"""A disk that is full or gone under a run: one message, exit code 1, and the run can go on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import os
import pathlib
import shutil
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import cli
from jaxequi.data.sources import features
from jaxequi.errors import Refusal, Unwritable
from jaxequi.runs import report
from jaxequi.train import checkpoint, log, loop, workdir
from jaxequi.train import mesh as meshes
from jaxequi.train.job import Evaluation, Pass
from jaxequi.types import OWN
from tests.train import test_loop as least_squares

PAD = 100_000  # numbers beside the parameters: 0.4 MB a checkpoint


@pytest.fixture
def small(tmp_path):
    """Mount a small file system; a function of its options."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if os.name != "posix" or shutil.which("mount") is None:
            pytest.skip("a full disk is a small file system, and there is no program `mount`")
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a full disk is a small file system, which only root may mount")
        return folder

    yield mount
    gc.collect()
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def padded():
    plain = least_squares.method()
    pad = np.random.default_rng(0).normal(size=PAD).astype(np.float32)  # cannot be compressed

    def init(key, batch):
        params, extra = plain.init(key, batch)
        return params, {OWN: {**extra[OWN], "pad": jnp.asarray(pad)}}

    def loss(params, extra, *rest):
        value, output = plain.loss(params, extra, *rest)
        return value, output._replace(extra={OWN: {**output.extra[OWN], "pad": extra[OWN]["pad"]}})

    return dataclasses.replace(plain, init=init, loss=loss)


def batches(act):
    """Batches that call `act` before that of step 5, once the checkpoint of step 4 is begun."""

    @contextlib.contextmanager
    def opened(start, stop):
        def produce():
            for step in range(start, stop):
                if step == 5:
                    act()
                yield least_squares.host_batch(step)

        yield produce()

    return opened


def run(folder, act=lambda: None, **changes):
    job = least_squares.job(log_every=1, batches=batches(act), **changes)
    return cli.program(lambda argv: loop.run(job, folder))([])


def test_size_of_a_state():
    state = {"w": jnp.zeros((3, 4)), "step": jnp.zeros((), jnp.int32), "key": jax.random.key(0)}
    assert checkpoint.size(state) == 48 + 4 + 8
    assert checkpoint.size(jax.eval_shape(lambda: state)) == 60


def test_no_room_for_a_first_checkpoint(small, capfd):
    disk = small("size=300k")
    assert run(disk / "run", method=padded()) == cli.FAILED
    [told] = capfd.readouterr().err.splitlines()
    assert f"{disk / 'run'} cannot be written: No space left on device" in told
    assert "a checkpoint needs 390.7 KiB; 300.0 KiB are free" in told
    assert list(disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=9m", "none", str(disk)], check=True)
    assert run(disk / "run", method=padded()) == loop.FINISHED


def test_no_room_for_a_second_checkpoint(small, capfd, tmp_path):
    disk = small("size=900k")
    assert run(disk / "run", method=padded()) == cli.FAILED
    [told] = capfd.readouterr().err.splitlines()
    assert "a checkpoint needs 390.7 KiB" in told
    assert [child.name for child in (disk / "run" / "checkpoints").iterdir()] == ["4"]
    subprocess.run(["mount", "-o", "remount,size=9m", "none", str(disk)], check=True)
    assert run(disk / "run", method=padded()) == loop.FINISHED
    assert "going on from step 4" in capfd.readouterr().out
    assert run(tmp_path / "whole", method=padded()) == loop.FINISHED
    assert least_squares.logged(disk / "run") == least_squares.logged(tmp_path / "whole")


@pytest.mark.parametrize("options", ["size=9m", "size=9m,nr_inodes=200"])
def test_a_disk_that_others_fill(small, capfd, options):
    disk = small(options)

    def fill():
        with contextlib.suppress(OSError), (disk / "fill").open("wb") as file:
            while "nr" not in options:
                file.write(b"\0" * 4096)
                file.flush()
        with contextlib.suppress(OSError):
            for number in range(200 if "nr" in options else 0):
                (disk / str(number)).touch()

    assert run(disk / "run", fill) == cli.FAILED
    [told] = capfd.readouterr().err.splitlines()
    assert "cannot be written: No space left on device" in told
    assert "more files" in told
    for file in disk.iterdir():
        if file.is_file():
            file.unlink()
    assert run(disk / "run") == loop.FINISHED


def test_a_folder_that_is_deleted(tmp_path, capfd):
    folder = tmp_path / "run"

    def delete():
        while folder.exists():  # the checkpoint being written may put files back meanwhile
            shutil.rmtree(folder, ignore_errors=True)

    assert run(folder, delete) == cli.FAILED
    [told] = capfd.readouterr().err.splitlines()
    assert f"jaxequi: {folder} cannot be written: No such file or directory" in told
    assert run(folder) == loop.FINISHED


def test_no_room_for_features(small):
    disk = small("size=64k")
    writer = features.Writer(disk / "features", {})
    values = {"image": np.zeros((4, 1, 8), np.float32), "label": np.zeros(4, np.int32)}
    with pytest.raises(Refusal, match="No space left on device; they are 1440000 bytes"):
        writer.add(values, 40_000, ["a"])
    assert list(disk.iterdir()) == []


def test_arrays_that_did_not_fit_leave_no_half(small):
    disk = small("size=64k")
    (disk / "rest").write_bytes(b"\0" * 20_000)
    with pytest.raises(Unwritable), workdir.writing(disk):
        workdir.save_arrays(disk / "examples.npz", {"views": np.ones(10_000)})
    assert [file.name for file in disk.iterdir()] == ["rest"]


def test_a_report_that_does_not_fit(small, tmp_path):
    disk = small("size=64k")
    (disk / "run").mkdir()
    (disk / "run" / "config.json").write_text("{}")
    (disk / "run" / log.METRICS_FILE).write_text('{"step": 1, "loss": 1.0}\n')
    (disk / "rest").write_bytes(b"\0" * 50_000)
    with pytest.raises(Unwritable, match="No space left"), workdir.writing(disk / "run"):
        report.write(disk / "run")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_says_of_a_file_of_the_run(tmp_path, number):
    with pytest.raises(Unwritable, match=os.strerror(number)), workdir.writing(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "metrics.jsonl"))


def test_a_folder_that_its_writer_made_again(tmp_path):
    with pytest.raises(Unwritable, match="No such file"), workdir.writing(tmp_path):
        raise ValueError(f'NOT_FOUND: Error writing "params.w/0" at local file "{tmp_path}/d"')


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file"),
        OSError(errno.ENOSPC, "No space left on device"),  # the run's own disk has room
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/images"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        ValueError("a fault"),
    ],
    ids=repr,
)
def test_what_is_not_of_the_run_stays_a_fault(tmp_path, error):
    with pytest.raises(type(error)) as raised, workdir.writing(tmp_path):
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


NO_PROC = not pathlib.Path("/proc/self/fd").exists()


@pytest.mark.skipif(NO_PROC, reason="only Linux counts open files and memory in /proc")
def test_a_run_does_not_grow(tmp_path):
    """Open files, threads and memory while steps and evaluations go on."""
    steps, every = 300, 10
    seen = []

    @contextlib.contextmanager
    def held_out():
        yield iter([least_squares.host_batch(1)])

    def opened():
        return len(list(pathlib.Path("/proc/self/fd").iterdir())), threading.active_count()

    def evaluate(sets, params, extra):
        if len(seen) == steps // every - 1:  # a checkpoint in the making has files of its own
            least = [min(column) for column in zip(*seen[len(seen) // 3 :], strict=True)][:2]
            until = time.monotonic() + 20
            while time.monotonic() < until and np.any(np.subtract(opened(), least) > 0):
                time.sleep(0.05)
        seen.append((*opened(), resident()))
        return {"w": float(jnp.linalg.norm(params["w"]))}

    job = least_squares.job(
        sets={"val": Pass(held_out, 16, 16, least_squares.shapes, least_squares.as_it_is)},
        evaluations=[Evaluation("w", ("val",), ("representation",), evaluate)],
        total_steps=steps,
        eval_every=every,
        log_every=every,
        save_every=100,
        mesh=meshes.make_mesh(1, 1),
    )
    with jax.debug_nans(False):  # it waits for every step
        assert loop.run(job, tmp_path) == loop.FINISHED
    assert len(seen) == steps // every
    files, threads, memory = (list(column) for column in zip(*seen, strict=True))
    third = len(seen) // 3  # the first of them starts what stays
    assert files[-1] <= min(files[third:-third])
    assert threads[-1] <= min(threads[third:-third])
    # One batch a step would be 1 MB and more; the allocator alone moves by tens of kilobytes.
    assert memory[-1] - memory[third] < 2**23
