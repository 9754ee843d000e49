"""Trackers of experiments, beside `metrics.jsonl` and TensorBoard: `config.trackers = ("wandb",)`.

Each file has `make(workdir, config, known) -> Tracker`; its package is an extra of the same name. A
run that goes on writes where it wrote before: a tracker's id stands in the run's folder. One that
fails while the run goes on is told and left, for a training does not depend on it.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxequi import names
from jaxequi.errors import Refusal

IDS = "trackers.json"  # in the run's folder: {tracker: id}


class Tracker(Protocol):
    """Where the numbers of one run go.

    Attributes:
      id: by which its service knows the run.
    """

    id: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""

    def close(self, finished: bool) -> None:
        """Let go; `finished` says that the run is not to go on."""


Make = Callable[[pathlib.Path, Mapping[str, Any], str | None], Tracker]
"""`(folder of the run, its config, the id that it has there or None)`."""


def find(trackers: Sequence[str]) -> dict[str, Make]:
    """Find trackers by their names; of one's own: a module's name with its dots.

    Raises:
      ValueError: there is none of a name, or its package is not installed.
    """
    found = {}
    for name in trackers:
        try:
            found[name] = names.find("train.trackers", name)
        except ImportError as error:
            raise Refusal(
                f'trackers={name!r}: {error}; pip install -e ".[{name}]", or leave it out: '
                "metrics.jsonl and TensorBoard are written always"
            ) from error
    return found


class Trackers:
    """The trackers of a run; silent where there are none."""

    def __init__(
        self,
        makers: Mapping[str, Make],
        workdir: pathlib.Path,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        """Open each, where it was left.

        Raises:
          ValueError: one that does not open, with what it said.
        """
        self.say = say
        self.open: dict[str, Tracker] = {}
        file = workdir / IDS
        ids = json.loads(file.read_text()) if file.exists() else {}
        for name, make in makers.items():
            try:
                self.open[name] = make(workdir, config, ids.get(name))
            except Exception as error:  # each service raises its own kinds
                self.close(finished=False)
                raise Refusal(f"tracker {name} does not open: {_told(error)}") from error
            ids[name] = self.open[name].id
        if self.open:
            part = file.with_suffix(".part")
            part.write_text(json.dumps(ids) + "\n")
            part.replace(file)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step everywhere."""
        self._each(lambda tracker: tracker.write(step, metrics))

    def close(self, finished: bool) -> None:
        """Let go of all."""
        self._each(lambda tracker: tracker.close(finished))
        self.open = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self.open.items()]:
            try:
                do(tracker)
            except Exception as error:  # each service raises its own kinds
                del self.open[name]
                self.say(f"tracker {name} is left: {_told(error)}. metrics.jsonl has all")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
