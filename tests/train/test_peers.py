"""What a process does when another one of its run is lost."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxequi.train import peers

CHILD = """
import ctypes, threading, jax
from jaxequi.train import peers
jax.process_count = lambda: 2
with peers.watched(85):
    {body}
print("went on")
"""
ABORT = "threading.Thread(target=ctypes.CDLL(None).abort).start(); threading.Event().wait(60)"
GLOO = "raise jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllReduce failed: Connection closed')"


PROGRAM = """
import ctypes, threading, jax
from jaxequi import main
jax.process_count = lambda: 2
def train(*given):
    {body}
main.train, main.mesh.start_distributed = train, lambda: None
main.main(["main", "--config=configs/mae.py:smoke", "--workdir=none"])
print("went on")
"""
ROOT = pathlib.Path(__file__).parents[2]


def child(body, program=CHILD):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", program.format(body=body)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("body", "program"),
    [(ABORT, CHILD), (GLOO, CHILD), (ABORT, PROGRAM), (GLOO, PROGRAM)],
    ids=["JAX aborts", "a collective fails", "it aborts before the loop", "one fails before it"],
)
def test_it_leaves_at_once_with_the_code_that_is_resubmitted(body, program):
    done = child(body, program)
    assert done.returncode == 85, done.stderr
    assert "another process of this run is lost" in done.stderr
    assert "start the same command again" in done.stderr
    assert "went on" not in done.stdout


def test_other_errors_and_other_aborts_are_what_they_are(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    done = child("pass\nctypes.CDLL(None).abort()")
    assert done.returncode == -6, done.stderr
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: NCCL: Out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError, match="memory"), peers.watched(85):
        raise error
    assert not peers.lost(str(error))
    assert peers.lost("UNAVAILABLE: Socket closed")
