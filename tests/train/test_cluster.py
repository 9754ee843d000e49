"""What the environment of a cluster must say, before anybody waits for anybody."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest

from jaxequi.errors import Refusal
from jaxequi.train import mesh, roll_call

WORDS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*WORDS, *mesh._OF_SLURM, "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_PORT"):
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
        (
            {"SLURM_NTASKS": "2", **dict(zip(mesh._OF_SLURM, ("1", "0", "5", "localhost")))},
            "process 0, which should listen at localhost:61445, has not answered for 1 s",
        ),
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


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def held(address, count, present, patience):
    """What becomes of each of the processes that are there."""
    found = {}

    def one(mine):
        try:
            found[mine] = roll_call.hold(address, count, mine, patience)
        except Refusal as error:
            found[mine] = str(error)

    threads = [threading.Thread(target=one, args=(mine,)) for mine in present]
    for thread in threads:  # process 0 is the last to come
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_wait_for_the_last_and_leave_the_address():
    address = f"localhost:{free_port()}"
    for _ in range(2):
        assert held(address, 4, (3, 1, 2, 0), 60) == dict.fromkeys(range(4))


def test_everybody_is_told_who_is_missing():
    found = held(f"localhost:{free_port()}", 5, (3, 1, 0), 1)
    assert found.keys() == {0, 1, 3}
    [message] = set(found.values())
    assert message.startswith("of 5 processes, processes 2, 4 did not come within 1 s")


def test_strangers_at_the_door_are_not_counted():
    port = free_port()
    found = {}
    waits = threading.Thread(target=lambda: found.update(held(f"localhost:{port}", 2, (0,), 2)))
    waits.start()
    time.sleep(0.3)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1")
        waits.join()
    assert found[0].startswith("of 2 processes, process 1 did not come")


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Refusal, match=f"cannot listen at port {port}"):
            roll_call.hold(f"localhost:{port}", 2, 0, 1)


def test_processes_of_an_address_join_when_all_are_there(alone, monkeypatch):
    called = []
    monkeypatch.setattr(roll_call, "hold", lambda *given: called.append(given))
    for name, value in zip(WORDS, ("a:1", "2", "1")):
        monkeypatch.setenv(name, value)
    mesh.start_distributed()
    assert called == [("a:1", 2, 1, 1)]
    assert alone == [("a:1", 2, 1)]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("one", "one"),
        ("gpu-3,gpu-5", "gpu-3"),
        ("node[003-005,007],other", "node003"),
        ("node[12,14-15]", "node12"),
        ("node[7]", "node7"),
    ],
)
def test_tasks_of_slurm_join_when_all_are_there(nodes, host, alone, monkeypatch):
    called = []
    monkeypatch.setattr(roll_call, "hold", lambda *given: called.append(given))
    monkeypatch.setenv("SLURM_NTASKS", "16")
    for name, value in zip(mesh._OF_SLURM, ("9", "1", "4099", nodes)):
        monkeypatch.setenv(name, value)
    mesh.start_distributed()
    assert called == [(f"{host}:61443", 16, 9, 1)]  # 61440 + 4099 modulo 4096, as JAX has it
    assert alone == [(f"{host}:61443", 16, 9)]
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    mesh.start_distributed()
    assert alone[1] == (f"{host}:1234", 16, 9)


def test_mpirun_within_an_allocation_of_slurm(alone, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    mesh.start_distributed()
    assert alone == [()]


def test_one_process_joins_nobody(alone, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    mesh.start_distributed()
    assert not alone
