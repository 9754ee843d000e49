"""What a run tells: `metrics.jsonl`, TensorBoard events, trackers, and lines or a bar."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import rich.text
import tensorboardX.summary
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxequi.train import trackers
from jaxequi.types import Metrics, PyTree

METRICS_FILE = "metrics.jsonl"


class NonFiniteError(FloatingPointError):
    """A metric of some step is not a finite number."""


class Window:
    """Metrics since the last logged step; fetched from the devices all at once."""

    def __init__(self, fetched: Sequence[dict[str, float]] = ()):
        self.fetched = list(fetched)
        self.pending: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Keep the device scalars of one step."""
        self.pending.append((step, metrics))

    def fetch(self) -> list[dict[str, float]]:
        """Bring what is pending to the host.

        Raises:
          NonFiniteError: names every metric that is not finite, and the steps.
        """
        steps = [step for step, _ in self.pending]
        values = jax.device_get([metrics for _, metrics in self.pending])
        self.pending = []
        rows = [{name: float(value) for name, value in row.items()} for row in values]
        bad: dict[str, list[int]] = {}
        for step, row in zip(steps, rows, strict=True):
            for name, value in row.items():
                if not np.isfinite(value):
                    bad.setdefault(name, []).append(step)
        if bad:
            told = "; ".join(
                f"{name} at step {steps[0]}"
                + (f" and {len(steps) - 1} more up to {steps[-1]}" if len(steps) > 1 else "")
                for name, steps in sorted(bad.items(), key=lambda item: item[1][0])
            )
            raise NonFiniteError(f"not finite: {told}")
        # A new list: a checkpoint may be writing the one that was returned before.
        self.fetched = [*self.fetched, *rows]
        return self.fetched

    def mean(self) -> dict[str, float]:
        """Mean of each metric over the window, to seven digits; empties the window."""
        rows = self.fetch()
        self.fetched = []
        if not rows:
            return {}
        return {name: _digits(float(np.mean([row[name] for row in rows]))) for name in rows[0]}


@jax.jit
def _all_finite(params: PyTree) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]


def check_finite(step: int, params: PyTree) -> None:
    """See that every parameter is finite.

    Raises:
      NonFiniteError: names those that are not, and the step.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    sound = jax.device_get(_all_finite(params))
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, finite in zip(paths, sound, strict=True)
        if not finite
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NonFiniteError(f"not finite after step {step}: {', '.join(bad[:3])}{more}")


def _digits(value: float) -> float:
    return float(f"{value:.7g}")


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`, one dict a logged step; a last line cut off by a crash is left out."""
    file = workdir / METRICS_FILE
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RunLog:
    """Writes the files and the terminal of one run; silent on every host but the first."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        total_steps: int,
        show: Sequence[str] = ("loss",),
        makers: Mapping[str, trackers.Make] = MappingProxyType({}),
        config: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Open the log at `start_step`: what an earlier try wrote beyond it is taken back.

        Args:
          show: patterns of the metrics that the terminal shows (`online/r2/*`).
          makers: of trackers, by name.
          config: of the run, for them.

        Raises:
          ValueError: a tracker that does not open.
        """
        self.show, self.total_steps = tuple(show), total_steps
        self.first = jax.process_index() == 0
        self.console = rich.console.Console(
            quiet=not self.first,
            highlight=False,
            force_jupyter=False,  # plain lines there, too, which a notebook can redirect
        )
        self.started, self.started_step = time.monotonic(), start_step
        self.bar: rich.progress.Progress | None = None
        self.written = -1  # the last step
        if not self.first:
            return
        self.trackers = trackers.Trackers(makers, workdir, config, self.say)
        kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        file = workdir / METRICS_FILE
        part = file.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(file)
        self.file = file.open("a")
        # Written here and now: behind a queue an error would be nobody's, and the queue would fill.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self.events = event_file_writer.EventsWriter(str(workdir / "tensorboard" / "events"))
        if start_step:
            purge = SessionLog(status=SessionLog.START)
            self.events.write_event(self._event(start_step + 1, session_log=purge))
        if sys.stdout.isatty():
            self.bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[metrics]}"),
                rich.progress.TextColumn("ETA"),
                rich.progress.TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self.task = self.bar.add_task(
                "train", total=total_steps, completed=start_step, metrics=""
            )
            self.bar.start()

    def say(self, text: str | rich.text.Text = "") -> None:
        """Print a line, or several; in colour where the terminal has it and NO_COLOR is not set."""
        self.console.print(text, markup=False, soft_wrap=True)

    def step(self, step: int) -> None:
        """Move the progress bar."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log one step: a JSON line, events, and the shown metrics on the terminal."""
        if not self.first:
            return
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            summary = tensorboardX.summary.scalar(name, value)
            self.events.write_event(self._event(step, summary=summary))
        self.events.flush()
        self.trackers.write(step, metrics)
        self.written = step
        shown = "  ".join(
            f"{name} {metrics[name]:.4g}"
            for pattern in (*self.show, "examples_per_second")
            for name in fnmatch.filter(metrics, pattern)
        )
        if self.bar:
            self.bar.update(self.task, completed=step, metrics=shown)
        else:
            rate = (time.monotonic() - self.started) / max(1, step - self.started_step)
            self.say(
                f"step {step}/{self.total_steps}  {shown}  "
                f"ETA {duration(rate * (self.total_steps - step))}"
            )

    @staticmethod
    def _event(step: int, **content: Any) -> Event:
        return Event(wall_time=time.time(), step=step, **content)

    def close(self) -> None:
        """Close files and the progress bar."""
        if self.bar:
            self.bar.stop()
        if self.first:
            try:
                self.file.close()
            finally:
                self.events.close()
                self.trackers.close(finished=self.written == self.total_steps)


def duration(seconds: float) -> str:
    """`83.2` -> `1m23s`."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def size(count: float, digits: int = 1) -> str:
    """`1536` -> `1.5 KiB`, with so many digits behind the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.{digits}f} {unit}"
        count /= 1024
    raise AssertionError


CHANGED = "yellow"  # a colour and nothing else, which NO_COLOR takes away


def config_text(config: Mapping[str, Any], changed: Iterable[str]) -> rich.text.Text:
    """A config, a line a field; coloured are the fields that the command line changed.

    Args:
      changed: dotted names of fields, or of what holds them.
    """
    given = {*changed}
    text = rich.text.Text("config:")

    def add(part: Mapping[str, Any], at: str, depth: int, colour: str) -> None:
        for name, value in part.items():
            here = CHANGED if f"{at}{name}" in given else colour
            nested = isinstance(value, Mapping) and value
            said = f"{name}:" if nested else f"{name}: {json.dumps(value)}"
            text.append(f"\n{'  ' * depth}{said}", here)
            if nested:
                add(value, f"{at}{name}.", depth + 1, here)

    add(config, "", 1, "")
    return text


@dataclasses.dataclass(frozen=True)
class Module:
    """A row of the table of parameters."""

    module: str
    arrays: int
    parameters: int


def parameter_table(params: PyTree) -> str:
    """The parameters of each module, a layer of the backbone or of a head (drawn by clu)."""
    from clu import parameter_overview  # slow to import, and no part of --help

    modules: dict[str, list[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        modules.setdefault("/".join(parts[:-1][:2]), []).append(leaf.size)
    rows = [Module(name, len(sizes), sum(sizes)) for name, sizes in modules.items()]
    rows.append(Module("all", sum(row.arrays for row in rows), sum(row.parameters for row in rows)))
    return parameter_overview.make_table(rows)


def final_table(metrics: dict[str, float], show: Sequence[str]) -> str:
    """The last metrics that `show` names, one a line, sorted; all, if it names none of them."""
    named = {name for pattern in show for name in fnmatch.filter(metrics, pattern)}
    shown = sorted(named or metrics)
    width = max(map(len, shown), default=0)
    lines = [f"  {name:<{width}}  {metrics[name]:.5g}" for name in shown]
    rest = len(metrics) - len(shown)
    return "\n".join([*lines, *([f"  and {rest} more in {METRICS_FILE}"] if rest else [])])
