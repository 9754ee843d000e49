"""The one loop that trains every method: steps, log, evaluation, checkpoints, interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.train import checkpoint, evaluate, log, peers, profiling
from jaxequi.train import mesh as meshes
from jaxequi.train import workdir as folders
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.train.interruption import Interruption
from jaxequi.train.job import Job
from jaxequi.train.programs import Programs, lower_job
from jaxequi.train.state import TrainState
from jaxequi.types import Batch, PyTree

FINISHED, INTERRUPTED = 0, 85  # exit codes; 85 asks a scheduler to run the same command again
# Steps that may be under way before the host waits for the oldest: enough to hide the dispatch,
# few enough that their batches fit in memory.
STEPS_AHEAD = 4
KEPT_EXAMPLES = 5000  # of each set whose features are kept for the report


def run(job: Job, workdir: pathlib.Path) -> int:
    """Train a job in a directory, from its newest checkpoint if there is one.

    Whatever can be refused is refused before the directory is made or anything is compiled.

    Returns:
      FINISHED, or INTERRUPTED after SIGTERM, SIGINT or SIGUSR1 (state saved; the same call goes
      on).

    Raises:
      ValueError: bad input, a directory that holds another config's run or is in use, or a
        checkpoint that cannot be read.
      NonFiniteError: a metric or a parameter became NaN or infinite; the last checkpoint is from
        before.
      Unwritable: the disk has no room for a checkpoint, or the directory was taken away.
    """
    began = time.monotonic()
    checkpoint.check(job.keep_checkpoints, job.best_mode)
    begun = folders.check(workdir, job.config, job.free_fields)
    start = _latest(job, workdir) if begun else None
    if start is not None and start >= job.total_steps:
        print(f"{workdir}: finished, {start} of {job.total_steps} steps done")
        return FINISHED
    said = job.preflight(job.shapes()) if job.preflight else None
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(job.batches(start or 0, job.total_steps))
        batches = _ahead(opened)
        beside = stack.enter_context(futures.ThreadPoolExecutor(1))
        programs = lower_job(job, None if begun else beside)
        stack.enter_context(folders.writing(workdir))
        folders.check_room(workdir, checkpoint.size(programs.shapes))
        stack.enter_context(folders.held(workdir, job.config, begun))
        checkpoints = stack.enter_context(contextlib.closing(_checkpoints(job, workdir)))
        told = stack.enter_context(
            contextlib.closing(
                log.RunLog(
                    workdir,
                    start_step=start or 0,
                    total_steps=job.total_steps,
                    show=job.show,
                    makers=job.trackers,
                    config=job.config,
                )
            )
        )
        interruption = stack.enter_context(Interruption())
        told.say(log.config_text(job.config, job.changed))
        told.say(_announcement(job, workdir))
        if said:
            told.say(said)
        programs = programs.compiled()
        if start is not None:
            state, rows = checkpoints.restore(start, programs.shapes, programs.shardings)
            told.say(f"going on from step {start}")
        else:
            state, rows = programs.initialise(), []
            told.say(_table(job, state, programs))
        stack.enter_context(peers.watched(INTERRUPTED))  # innermost: all ends wait for the lost
        stack.callback(profiling.end)
        loop = _Loop(job, workdir, programs, checkpoints, told, interruption, began)
        if not job.total_steps:
            return loop.evaluate_only(state)
        return loop.train(state, log.Window(rows), start or 0, batches)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first one read now: what cannot be read is told before all else."""
    first = list(itertools.islice(batches, 1))
    return itertools.chain(first, batches)


def _checkpoints(job: Job, workdir: pathlib.Path) -> Checkpoints:
    return Checkpoints(
        workdir.absolute() / folders.CHECKPOINTS,
        keep=job.keep_checkpoints,
        best=job.best,
        best_mode=job.best_mode,
    )


def _latest(job: Job, workdir: pathlib.Path) -> int | None:
    with contextlib.closing(_checkpoints(job, workdir)) as checkpoints:
        return checkpoints.latest_step()


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What every step of a run has at hand."""

    job: Job
    workdir: pathlib.Path
    programs: Programs
    checkpoints: Checkpoints
    told: log.RunLog
    interruption: Interruption
    began: float

    def train(self, state: TrainState, window: log.Window, start: int, batches: Any) -> int:
        """Do the steps after `start`, with what goes between them."""
        job, told, watch = self.job, self.told, Stopwatch(self.job.batch_size)
        metrics: dict[str, float] = {}
        ahead: list[PyTree] = []
        for step in range(start + 1, job.total_steps + 1):
            if evaluate.refit_is_due(job, step - 1):
                state = evaluate.refit(job, self.programs, state, step - 1, told.say)
            with watch.waiting():
                batch = next(batches)
            if step == 1:
                kept = {k: v[:16] for k, v in batch.items() if isinstance(v, np.ndarray)}
                file = self.workdir / folders.EXAMPLES_FILE
                folders.save_arrays(file, {**evaluate.about(job), **kept})
            with self.profile(step, start, ahead):
                state, scalars = self.programs.train_step(
                    state, meshes.to_global(job.mesh, batch, job.batch_size)
                )
                ahead.append(scalars)
            window.add(step, scalars)
            if len(ahead) > STEPS_AHEAD:
                jax.block_until_ready(ahead.pop(0))
            if step == start + 1:
                jax.block_until_ready(scalars)
                told.say(f"first step after {time.monotonic() - self.began:.1f} s")
                watch = Stopwatch(job.batch_size)  # the first step waited for its compilation
            else:
                watch.steps += 1
            told.step(step)

            last, stop = step == job.total_steps, self.interruption.reached(step)
            evaluated = bool(job.eval_every) and (step % job.eval_every == 0 or last)
            log_now = step % job.log_every == 0 or evaluated or last
            if log_now:
                metrics = window.mean() | {"epoch": step / job.steps_per_epoch} | watch.read()
                if evaluated:
                    metrics |= self.evaluate(state, keep=last)
                told.write(step, metrics)
                watch = Stopwatch(job.batch_size)
            # A score by which the best checkpoint is kept is of this very step, or of none.
            if last or stop or step % job.save_every == 0 or (evaluated and job.best):
                rows = (
                    window.fetch()
                )  # looks for NaNs, as does the next line: what is saved is sound
                log.check_finite(step, state.params)
                self.save(step, state, rows, metrics if log_now else None)
            if stop and not last:
                self.checkpoints.wait()
                told.say(
                    f"interrupted: step {step} is saved. To go on, give the same command with "
                    f"--workdir={self.workdir}"
                )
                return INTERRUPTED
        self.checkpoints.wait()
        took = log.duration(time.monotonic() - self.began)
        told.say(f"\nAfter {job.total_steps} steps, {took}:")
        told.say(log.final_table(metrics, job.show))
        return FINISHED

    @contextlib.contextmanager
    def profile(self, step: int, start: int, ahead: list[PyTree]) -> Iterator[None]:
        """Around each step of `profile_steps`: trace them, and say what the trace shows.

        Args:
          start: the step that the run goes on from; of steps before it there is no trace.
          ahead: what steps under way will give; waited for, so that the trace has whole steps.
        """
        first, last = self.job.profile_steps or (-1, -1)
        first = max(first, start + 1)
        if not first <= step <= last:
            yield
            return
        folder = self.workdir / "profile"
        if step == first:
            jax.block_until_ready(ahead)
            jax.profiler.start_trace(str(folder))
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step == last:
            jax.block_until_ready(ahead)
            jax.profiler.stop_trace()
            if jax.process_index() == 0:
                where = profiling.scopes(self.programs.train_step.as_text())
                ran = profiling.events(profiling.newest(folder), where)
                said = profiling.summary(ran, where, last - first + 1)
                (folder / profiling.SUMMARY).write_text(f"{said}\n")
                self.told.say(said)

    def save(
        self, step: int, state: TrainState, rows: Any, metrics: dict[str, float] | None
    ) -> None:
        """Begin a checkpoint, where there is room for one."""
        self.checkpoints.wait()
        folders.check_room(self.workdir, checkpoint.size(state))
        self.checkpoints.save(step, state, self.job.config, rows, metrics)

    def evaluate_only(self, state: TrainState) -> int:
        """A run without a step: what the evaluations say of the network that it starts with."""
        metrics = self.evaluate(state, keep=True)
        self.told.write(0, metrics)
        self.save(0, state, [], metrics)
        self.checkpoints.wait()
        self.told.say(log.final_table(metrics, self.job.show))
        return FINISHED

    def evaluate(self, state: TrainState, keep: bool) -> dict[str, float]:
        """Metrics of every evaluation; the features are kept for the report if asked for."""
        job = self.job
        metrics, features = evaluate.run_evaluations(job, self.programs, state, self.told.say)
        if job.best and job.best not in metrics and job.best.partition("/")[0] in job.sets:
            raise Refusal(
                f"best={job.best!r} is measured by no evaluation; there is {', '.join(metrics)}"
            )
        for name, arrays in features.items() if keep else ():
            told = {f"heads/{k}": v for k, v in arrays.get("heads", {}).items()}
            flat = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)} | told
            some = {k: v[:KEPT_EXAMPLES] for k, v in flat.items()}
            file = self.workdir / f"features_{name}.npz"
            folders.save_arrays(file, {**evaluate.about(job), **some})
        return metrics


class Stopwatch:
    """Time, steps and waiting for input since it was made."""

    def __init__(self, batch_size: int):
        self.batch_size, self.began, self.steps, self.waited = batch_size, time.monotonic(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for input."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def read(self) -> dict[str, float]:
        """Examples a second, and the share of time that the host waited for input."""
        seconds = time.monotonic() - self.began
        if not self.steps:
            return {}
        return {
            "examples_per_second": self.steps * self.batch_size / seconds,
            "input_wait": self.waited / seconds,
        }


def _announcement(job: Job, workdir: pathlib.Path) -> str:
    lines = [
        f"devices: {meshes.describe(job.mesh)}",
        f"data: {job.examples} examples, {job.steps_per_epoch} steps of {job.batch_size} an epoch, "
        f"{job.total_steps} steps = {job.total_steps / job.steps_per_epoch:.1f} epochs",
        *([f"starts with {job.start.origin}"] if job.start else []),
        f"output: {workdir}",
        "compiling ...",
    ]
    return "\n".join(lines)


def _table(job: Job, state: TrainState, programs: Programs) -> str:
    table = log.parameter_table(state.params) if jax.tree.leaves(state.params) else "no parameters"
    groups = jax.tree.leaves(job.optimizer.groups(state.params))
    if len(set(groups)) > 1:
        members: dict[str, list[Any]] = {group: [] for group in sorted(set(groups))}
        for (path, leaf), group in zip(
            jax.tree_util.tree_leaves_with_path(state.params), groups, strict=True
        ):
            members[group].append((jax.tree_util.keystr(path, simple=True, separator="/"), leaf))
        for group, leaves in members.items():
            count = sum(leaf.size for _, leaf in leaves)
            modules = ", ".join(dict.fromkeys(name.partition("/")[0] for name, _ in leaves))
            table += f"\ngroup {group}: {len(leaves)} arrays, {count:,} parameters of {modules}"
    if programs.train_step is None:
        return table
    memory = programs.train_step.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return (
        f"{table}\n"
        f"memory of a step, each device: {log.size(needed)} "
        f"(state and batch {log.size(memory.argument_size_in_bytes)}, "
        f"work {log.size(memory.temp_size_in_bytes)})"
    )
