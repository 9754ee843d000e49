"""Runs that come before a run: a pipeline of one command.

    config.before = {"stage1": CONFIG, "scratch": CONFIG}    configs of runs, by name
    config.init_from = "before:stage1"                       start with one of them
    config.compare = ("scratch",)                            show others beside this run

A run that something starts with, or that is compared, is trained in `WORKDIR/NAME` before the run
itself in WORKDIR; one that nothing asks for is left out. Each is a run like any other, with its own
checkpoints and report, and finished ones are not repeated: the same command goes on in whichever
was interrupted.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import ml_collections

from jaxequi import arguments, names
from jaxequi.errors import Refusal
from jaxequi.experiment import job as jobs
from jaxequi.experiment import trained
from jaxequi.train import mesh as meshes
from jaxequi.train import programs
from jaxequi.train import workdir as folders
from jaxequi.train.state import TrainState

PREFIX = "before:"


class Planned(NamedTuple):
    """A run of a plan: its folder, its config, and the fields that the command line set."""

    folder: pathlib.Path
    config: ml_collections.ConfigDict
    overridden: Sequence[str]


def plan(
    config: ml_collections.ConfigDict, overridden: Iterable[str], workdir: pathlib.Path
) -> list[Planned]:
    """List the runs that a config asks for, in their order; the last one is its own.

    Raises:
      ValueError: a run that does not exist, or runs that start with each other.
    """
    config, overridden = config.copy_and_resolve_references(), list(overridden)
    given, compared = config.get("before", {}), config.get("compare", ())
    arguments.check("before", given, Mapping[str, Mapping])
    arguments.check("compare", compared, Sequence[str])
    for name in given:
        if not name.isidentifier():
            raise Refusal(f"before.{name}: a run is called by a word, which names its folder")
    order: list[str] = []

    def add(name: str, behind: tuple[str, ...] = ()) -> None:
        if name not in given:
            raise names.unknown("run of `before`", name, given)
        if name in behind:
            raise Refusal(f"runs start with each other: {' -> '.join((*behind, name))}")
        start = _start(given[name])
        if start is not None:
            add(start, (*behind, name))
        if name not in order:
            order.append(name)

    for name in (_start(config), *compared):
        if name is not None:
            add(name)
    runs = []
    for name in order:
        at = f"before.{name}."
        said = [field.removeprefix(at) for field in overridden if field.startswith(at)]
        runs.append(Planned(workdir / name, _started(given[name], workdir), said))
    return [*runs, Planned(workdir, _started(config, workdir), overridden)]


def rehearse(planned: Sequence[Planned], devices: meshes.Devices | None = None) -> jobs.Job | None:
    """Refuse what is wrong with any run of a plan before the first one begins.

    A run whose start is still to be trained is built on the shapes of that one; one that has a
    checkpoint of its own was rehearsed before.

    Args:
      devices: of a machine that is only planned, or their number, in place of those here.

    Returns:
      The job of the last run that was rehearsed; None if all have checkpoints.

    Raises:
      ValueError: see `job.build` and `train.programs.lower_job`.
    """
    to_come: dict[str, tuple[jobs.Job, TrainState]] = {}
    job = None
    for one in planned:
        if _saved(one.folder):
            continue
        start, from_shapes = one.config.init_from, None
        if start in to_come:
            earlier, state = to_come[start]
            from_shapes = trained.describe(
                pathlib.Path(start),
                one.config.init_step or earlier.total_steps,
                ml_collections.ConfigDict(earlier.config),
                state.params,
                state.extra,
                one.config.init_encoder,
            )
        job = jobs.build(one.config, one.overridden, from_shapes, devices)
        # What cannot run here cannot be lowered in full either.
        here = devices is None
        shapes = programs.lower_job(job).shapes if here else programs.trace_step(job)[1]
        to_come[str(one.folder)] = job, shapes
    return job


def _saved(folder: pathlib.Path) -> bool:
    return (folder / folders.CHECKPOINTS).is_dir()


def _start(config: Mapping) -> str | None:
    start = config.get("init_from") or ""
    named = isinstance(start, str) and start.startswith(PREFIX)
    return start.removeprefix(PREFIX) if named else None


def _started(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    start = _start(config)
    if start is not None:
        with config.unlocked():
            config.init_from = str(workdir / start)
    return config
