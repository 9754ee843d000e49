"""A limit of time on what a hostile input may take."""

from __future__ import annotations

import contextlib
import signal


class Late(BaseException):
    """Nothing of ours may catch it."""


@contextlib.contextmanager
def soon(seconds):
    def stop(*unused):
        raise Late(f"it took over {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
