"""What the environment of a cluster must say, before anybody waits for anybody."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest

from jaxequi.errors import Refusal
from jaxequi.train import mesh

WORDS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*WORDS, *mesh._OF_SLURM, "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mesh, "PATIENCE", 1)
    monkeypatch.setattr("jax.distributed.initialize", lambda *given, **more: joined.append(given))
    joined: list = []
    return joined


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES=None and JAX_PROCESS_ID=None"),
        (dict(zip(WORDS, ("a:1", "2", "2"))), "from 0 to the number of processes less 1"),
        (dict(zip(WORDS, ("a:1", "two", "0"))), "JAX_NUM_PROCESSES='two'"),
        (dict(zip(WORDS, ("a", "2", "1"))), "HOST:PORT"),
        (dict(zip(WORDS, ("localhost:1", "2", "1"))), "has not answered for 1 s"),
        (dict(zip(WORDS, ("not.a.host.invalid:1", "2", "1"))), "has not answered for 1 s"),
        ({"SLURM_NTASKS": "8"}, "no SLURM_PROCID, SLURM_LOCALID, SLURM_JOB_ID, SLURM_STEP_NODE"),
        ({"SLURM_NTASKS": "8", **dict.fromkeys(mesh._OF_SLURM[:3], "1")}, "SLURM_STEP_NODELIST"),
        ({"SLURM_NTASKS": "-1"}, "SLURM_NTASKS='-1'"),
    ],
)
def test_half_an_environment_is_refused_within_seconds(env, message, alone, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(Refusal, match=re.escape(message)):
        mesh.start_distributed()
    assert time.monotonic() - began < 10
    assert not alone


def test_process_1_waits_until_process_0_listens(alone, monkeypatch):
    monkeypatch.setattr(mesh, "PATIENCE", 60)
    with socket.socket() as first:
        first.bind(("localhost", 0))
        address = f"localhost:{first.getsockname()[1]}"
        for name, value in zip(WORDS, (address, "2", "1")):
            monkeypatch.setenv(name, value)
        timer = threading.Timer(0.7, first.listen)
        timer.start()
        mesh.start_distributed()
        timer.join()
    assert alone == [(address, 2, 1)]


def test_mpirun_within_an_allocation_of_slurm(alone, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    mesh.start_distributed()
    assert alone == [()]


def test_one_process_joins_nobody(alone, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    mesh.start_distributed()
    assert not alone
