"""The one loop that trains every method: steps, log, evaluation, checkpoints, interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxequi.train import log
from jaxequi.train import mesh as meshes
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.train.state import TrainState, draw_options, initialise
from jaxequi.train.step import Augment, make_eval_step, make_train_step
from jaxequi.types import Batch, Features, Method, PyTree

CONFIG_FILE = "config.json"
EXAMPLES_FILE = "examples.npz"  # the first pictures of the first batch, for the report
FINISHED, INTERRUPTED = 0, 85  # exit codes; 85 asks a scheduler to run the same command again
# Steps that may be under way before the host waits for the oldest: enough to hide the dispatch,
# few enough that their batches fit in memory.
STEPS_AHEAD = 4

Batches = Callable[..., AbstractContextManager[Iterator[Batch]]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A pass over a held-out set.

    Attributes:
      batches: `() -> context of host batches`, each example once, with `mask`.
      batch_size: global size of those batches.
      features: `(encode, batches) -> {name: array[n, ...]}` gathers a set's features.
      evaluate: `features -> metrics`.
    """

    batches: Batches
    batch_size: int
    features: Callable[..., dict[str, np.ndarray]]
    evaluate: Callable[[Mapping[str, np.ndarray]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, as plain objects; `experiment.build` makes one of a config.

    Attributes:
      batches: `(start, stop) -> context of host batches` of the steps start .. stop - 1.
      config: what is saved beside the state, and compared when a run goes on.
      free_fields: dotted config fields that may change between two starts of a run, because the
        result does not depend on them.
      preflight: what is to be said of the first host batch before anything is compiled; it raises
        ValueError to refuse the run.
      initial: values that the state starts with in place of drawn ones, as a tree of part of it:
        {"extra": {"backbone": ...}}; of a checkpoint, for example.
      eval_augment: in place of `augment` where nothing may be drawn.
    """

    method: Method
    optimizer: optax.GradientTransformation
    augment: Augment
    mesh: Mesh
    batches: Batches
    batch_size: int
    examples: int
    steps_per_epoch: int
    total_steps: int
    config: dict[str, Any]
    class_names: Sequence[str] = ()
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    sharding_rules: meshes.Rules = ()
    seed: int = 0
    accumulate: int = 1
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 1000
    keep_checkpoints: int = 2
    best: str | None = None
    best_mode: str = "max"
    show: Sequence[str] = ("loss",)
    profile_steps: tuple[int, int] | None = None
    free_fields: Sequence[str] = ()
    preflight: Callable[[Batch], str] | None = None
    eval_augment: Augment | None = None
    initial: PyTree = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a job, and where its state lives.

    `eval_step` compiles when it is first called, `train_step` by `compiled`.
    """

    initialise: Callable[[], TrainState]
    train_step: Any
    eval_step: Any
    shapes: PyTree
    shardings: PyTree

    def compiled(self) -> Programs:
        """The same with a compiled `train_step`."""
        return dataclasses.replace(self, train_step=self.train_step.compile())


def lower_job(job: Job, batch: Batch, beside: futures.Executor | None = None) -> Programs:
    """Trace a job's programs for the shapes of a host batch.

    Args:
      beside: where the program that makes the first state compiles while the step is traced;
        without, it compiles when `initialise` is called.

    Raises:
      ValueError: the method refuses the shapes of the batch (before the step is compiled).
    """
    key = jax.random.key(job.seed)
    given = meshes.batch_shapes(job.mesh, batch, job.batch_size)

    def init(key: jax.Array) -> TrainState:
        # Parameters depend on shapes alone: XLA drops the zeros and all that is made of them.
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), given)
        return initialise(job.method, job.optimizer, key, job.augment(key, zeros))

    shapes = jax.eval_shape(init, key)
    shardings = meshes.shard_state(job.mesh, shapes, job.sharding_rules)
    options = draw_options(job.mesh.devices.flat[0].platform)
    draw = jax.jit(init, out_shardings=shardings, compiler_options=options).lower(key)
    drawn = beside.submit(draw.compile).result if beside else draw.compile
    state = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings
    )
    whole = meshes.replicated(job.mesh)
    step = make_train_step(
        job.method,
        job.optimizer,
        job.augment,
        total_steps=job.total_steps,
        steps_per_epoch=job.steps_per_epoch,
        accumulate=job.accumulate,
    )
    train_step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))
    return Programs(
        initialise=lambda: _lay(job.initial, drawn()(key)),
        train_step=train_step.lower(state, given),
        eval_step=jax.jit(
            make_eval_step(job.method, job.eval_augment or job.augment), out_shardings=whole
        ),
        shapes=shapes,
        shardings=shardings,
    )


def _lay(initial: PyTree, state: TrainState) -> TrainState:
    """Replace the leaves of a fresh state for which there are given values."""
    given = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree_util.tree_leaves_with_path(initial)
    }

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in given:
            return leaf
        value = given.pop(name)
        if value.shape != leaf.shape:
            raise ValueError(f"{name} is to start with shape {value.shape}, it has {leaf.shape}")
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    state = jax.tree_util.tree_map_with_path(place, state)
    if given:
        raise ValueError(f"the state has no {', '.join(given)}")
    return state


def run(job: Job, workdir: pathlib.Path) -> int:
    """Train a job in a directory, from its newest checkpoint if there is one.

    Returns:
      FINISHED, or INTERRUPTED after SIGTERM or SIGINT (state saved; the same call goes on).

    Raises:
      ValueError: the directory holds another config's run, or a checkpoint that cannot be read.
      NonFiniteError: a metric became NaN or infinite; the last checkpoint is from before.
    """
    prepare_workdir(job, workdir)
    checkpoints = Checkpoints(
        workdir.absolute() / "checkpoints",
        keep=job.keep_checkpoints,
        best=job.best,
        best_mode=job.best_mode,
    )
    with contextlib.closing(checkpoints):
        start = checkpoints.latest_step() or 0
        if start >= job.total_steps:
            print(f"{workdir}: finished, {start} of {job.total_steps} steps done")
            return FINISHED
        told = log.RunLog(workdir, start_step=start, total_steps=job.total_steps, show=job.show)
        with contextlib.closing(told), Interruption() as interruption:
            return _train(job, workdir, checkpoints, told, interruption, start)


def _train(
    job: Job,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    told: log.RunLog,
    interruption: Interruption,
    start: int,
) -> int:
    began = time.monotonic()
    with job.batches(start, job.total_steps) as batches:
        batch = next(batches)
        told.say(_announcement(job, workdir))
        if job.preflight:
            told.say(job.preflight(batch))
        with futures.ThreadPoolExecutor(1) as beside:
            compiled = lower_job(job, batch, None if start else beside).compiled()
        if start:
            state, rows = checkpoints.restore(start, compiled.shapes, compiled.shardings)
            told.say(f"going on from step {start}")
        else:
            state, rows = compiled.initialise(), []
            told.say(_table(state, compiled))
            _save_arrays(
                workdir / EXAMPLES_FILE,
                _about(job) | {k: v[:16] for k, v in batch.items() if isinstance(v, np.ndarray)},
            )
        window, watch = log.Window(rows), Stopwatch(job.batch_size)
        metrics: dict[str, float] = {}
        ahead: list[PyTree] = []
        for step in range(start + 1, job.total_steps + 1):
            if step > start + 1:
                with watch.waiting():
                    batch = next(batches)
            with _profile(job, workdir, step):
                state, scalars = compiled.train_step(
                    state, meshes.to_global(job.mesh, batch, job.batch_size)
                )
            window.add(step, scalars)
            ahead.append(scalars)
            if len(ahead) > STEPS_AHEAD:
                jax.block_until_ready(ahead.pop(0))
            if step == start + 1:
                jax.block_until_ready(scalars)
                told.say(f"first step after {time.monotonic() - began:.1f} s")
                watch = Stopwatch(job.batch_size)  # the first step waited for its compilation
            else:
                watch.steps += 1
            told.step(step)

            last, stop = step == job.total_steps, interruption.reached(step)
            evaluate = bool(job.eval_every) and (step % job.eval_every == 0 or last)
            log_now = step % job.log_every == 0 or evaluate or last
            if log_now:
                metrics = window.mean() | {"epoch": step / job.steps_per_epoch} | watch.read()
                if evaluate:
                    metrics |= run_evaluations(job, compiled, state, workdir if last else None)
                told.write(step, metrics)
                watch = Stopwatch(job.batch_size)
            if last or stop or step % job.save_every == 0:
                # Fetching looks for NaNs, so that what is saved is sound.
                rows = window.fetch()
                checkpoints.save(step, state, job.config, rows, metrics if log_now else None)
            if stop and not last:
                checkpoints.wait()
                told.say(
                    f"interrupted: step {step} is saved. To go on, give the same command with "
                    f"--workdir={workdir}"
                )
                return INTERRUPTED
    checkpoints.wait()
    told.say(f"\nAfter {job.total_steps} steps, {log.duration(time.monotonic() - began)}:")
    told.say(log.final_table(metrics))
    return FINISHED


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


class Interruption:
    """Turns SIGTERM and SIGINT into "finish this step, then stop", on all hosts at one step."""

    def __enter__(self) -> Interruption:
        self.asked = threading.Event()
        self.before = {}
        # Once JAX is distributed its own notifier takes SIGTERM and the hosts agree on a step.
        # Python lets only the main thread install handlers; elsewhere (a notebook) nothing is set.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        if self.asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.asked.set()

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether this is the step after which to stop."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked.is_set()


def prepare_workdir(job: Job, workdir: pathlib.Path) -> None:
    """Make a run directory, or see that an old one is of this config.

    Raises:
      ValueError: it cannot be written, or it belongs to another config (with the difference).
    """
    file = workdir / CONFIG_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        found = json.loads(file.read_text()) if file.exists() else None
        if found is None and jax.process_index() == 0:
            part = file.with_suffix(".part")
            part.write_text(json.dumps(job.config, indent=2) + "\n")
            part.replace(file)
    except OSError as error:
        raise ValueError(
            f"workdir {workdir} cannot be used: {error.strerror}. Give a --workdir that can be "
            "written."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); give another --workdir") from error
    ours = json.loads(json.dumps(job.config))
    different = difference(found, ours, job.free_fields) if found is not None else []
    if different:
        raise ValueError(
            f"workdir {workdir} belongs to a run of another config (- there, + here):\n"
            + "\n".join(different)
            + "\nGive another --workdir, or the config of that run."
        )


def difference(old: Any, new: Any, free: Sequence[str] = (), at: str = "") -> list[str]:
    """Lines `- field = value` and `+ field = value` for each field that differs."""
    if at in free:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        missing = object()
        lines = []
        for name in sorted(old.keys() | new.keys()):
            below = f"{at}.{name}" if at else name
            before, after = old.get(name, missing), new.get(name, missing)
            if before is missing and below not in free:
                lines.append(f"+ {below} = {json.dumps(after)}")
            elif after is missing and below not in free:
                lines.append(f"- {below} = {json.dumps(before)}")
            else:
                lines += difference(before, after, free, below)
        return lines
    if old == new:
        return []
    return [f"- {at} = {json.dumps(old)}", f"+ {at} = {json.dumps(new)}"]


def _announcement(job: Job, workdir: pathlib.Path) -> str:
    lines = [
        f"config:\n{_indented(job.config)}",
        f"devices: {meshes.describe(job.mesh)}",
        f"data: {job.examples} examples, {job.steps_per_epoch} steps of {job.batch_size} an epoch, "
        f"{job.total_steps} steps = {job.total_steps / job.steps_per_epoch:.1f} epochs",
        f"output: {workdir}",
        "compiling ...",
    ]
    return "\n".join(lines)


def _indented(config: dict[str, Any], depth: int = 1) -> str:
    pad = "  " * depth
    return "\n".join(
        f"{pad}{name}:\n{_indented(value, depth + 1)}"
        if isinstance(value, dict) and value
        else f"{pad}{name}: {json.dumps(value)}"
        for name, value in config.items()
    )


def _table(state: TrainState, compiled: Programs) -> str:
    memory = compiled.train_step.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return (
        f"{log.parameter_table(state.params)}\n"
        f"memory of a step, each device: {log.size(needed)} "
        f"(state and batch {log.size(memory.argument_size_in_bytes)}, "
        f"work {log.size(memory.temp_size_in_bytes)})"
    )


def _profile(job: Job, workdir: pathlib.Path, step: int) -> AbstractContextManager[Any]:
    """Around each step of `profile_steps`: trace between the first and the last of them."""
    first, last = job.profile_steps or (-1, -1)
    stack = contextlib.ExitStack()
    if step == first:
        jax.profiler.start_trace(str(workdir / "profile"))
    if step == last:
        stack.callback(jax.profiler.stop_trace)
    if first <= step <= last:
        stack.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))
    return stack


def run_evaluations(
    job: Job, compiled: Programs, state: TrainState, keep_in: pathlib.Path | None
) -> dict[str, float]:
    """Metrics of every evaluation; their features are kept in a directory if one is given."""
    metrics: dict[str, float] = {}
    for name, evaluation in job.evaluations.items():

        def encode(batch: Batch, size: int = evaluation.batch_size) -> Features:
            placed = meshes.to_global(job.mesh, batch, size)
            return compiled.eval_step(state.params, state.extra, placed)

        with evaluation.batches() as batches:
            features = evaluation.features(encode, batches)
        metrics |= {f"{name}/{k}": v for k, v in evaluation.evaluate(features).items()}
        if keep_in:
            _save_arrays(keep_in / f"features_{name}.npz", _about(job) | features)
    return metrics


def _about(job: Job) -> dict[str, np.ndarray]:
    """What a reader of saved arrays needs to know: class names, widths of the features' parts."""
    parts = {f"parts/{name}": np.asarray(widths) for name, widths in job.method.parts.items()}
    return {"class_names": np.asarray(job.class_names), **parts}


def _save_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    if jax.process_index() == 0:
        part = file.with_suffix(".part.npz")
        kept: dict[str, Any] = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
        np.savez(part, **kept)
        part.replace(file)
