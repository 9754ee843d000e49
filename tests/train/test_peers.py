"""What a process does when another one of its run is lost."""

from __future__ import annotations

import os
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


def child(body):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(body=body)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("body", [ABORT, GLOO], ids=["JAX aborts", "a collective fails"])
def test_it_leaves_at_once_with_the_code_that_is_resubmitted(body):
    done = child(body)
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
