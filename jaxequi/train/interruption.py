"""Signals as clusters and people send them: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

# SIGUSR1 is how SLURM warns of the end of a job (`--signal=USR1@60`).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """Turns a signal into "finish this step, then stop", on all hosts at one step."""

    def __enter__(self) -> Interruption:
        self.asked = threading.Event()
        self.before: dict[int, Any] = {}
        # Once JAX is distributed its own notifier takes SIGTERM and the hosts agree on a step.
        # Python lets only the main thread install handlers; elsewhere (a notebook) nothing is set.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if jax.process_count() == 1:
                    self.before[number] = signal.signal(number, self._stop)
                elif number != signal.SIGTERM:
                    self.before[number] = signal.signal(number, self._terminate)
        return self

    def _stop(self, number: int, frame: Any) -> None:
        del frame
        if self.asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.asked.set()

    def _terminate(self, number: int, frame: Any) -> None:
        """Tell JAX's notifier, which knows SIGTERM alone; it tells the other hosts."""
        del frame
        if self.asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked.set()
        signal.raise_signal(signal.SIGTERM)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether this is the step after which to stop."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked.is_set()
