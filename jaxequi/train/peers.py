"""Several processes: when one of them is lost, the others leave, with a code that is resubmitted.

A process that is killed hard cannot be waited for. What the others meet first is chance: a
collective that fails, which is an exception here, or JAX's coordination service, which aborts the
process it runs in. An orderly end would wait for the lost one (closing a checkpoint, leaving the
cluster), so there is none: nothing but the last finished checkpoint counts, and all go on from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

import jax

# What XLA says when another process does not answer: Gloo on CPUs, NCCL, JAX's own service.
SIGNS = ("gloo", "nccl", "connection", "unavailable", "deadline_exceeded", "heartbeat", "by peer")
LOST = (
    "another process of this run is lost ({why}). The run goes on from its last checkpoint: start "
    "the same command again, on all of its hosts."
)


@contextlib.contextmanager
def watched(code: int) -> Iterator[None]:
    """Inside, leave with an exit code as soon as another process of the run is lost.

    Alone, nothing is watched.
    """
    if jax.process_count() == 1:
        yield
        return
    aborted = "JAX aborted this one; if it does so again at the same step, see the lines above"
    with on_abort(code, LOST.format(why=aborted)):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if lost(str(error)):
                _leave(code, LOST.format(why=str(error).splitlines()[0]))
            raise


@contextlib.contextmanager
def on_abort(code: int, message: str) -> Iterator[None]:
    """Inside, an abort of this process is a message and an exit code."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        del number
        _leave(code, message)

    # Not by `signal.signal`, whose handlers wait for the main thread, which waits for the lost one.
    install = ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = install(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGABRT, before)


def lost(message: str) -> bool:
    """Whether an error of XLA says that another process is gone."""
    text = message.lower()
    return "out of memory" not in text and any(sign in text for sign in SIGNS)


def _leave(code: int, message: str) -> None:
    print(f"jaxequi: {message}", file=sys.stderr, flush=True)
    os._exit(code)
