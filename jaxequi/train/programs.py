"""The programs of a job: traced and checked before anything is compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.train import drawing
from jaxequi.train import mesh as meshes
from jaxequi.train.job import Job, Pass
from jaxequi.train.state import TrainState, initialise, lay, placed
from jaxequi.train.step import make_eval_step, make_train_step
from jaxequi.types import Array, Batch, Features, PyTree

# What a refit reads beside the features that it names.
REFIT_READS = ("label", "index")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The program that encodes a batch of some sets; compiled when it is first called.

    Attributes:
      lowered: `(params, extra, batch, key) -> features`.
    """

    lowered: Any

    @functools.cached_property
    def compiled(self) -> Any:
        """The program."""
        return self.lowered.compile()

    def __call__(self, params: PyTree, extra: PyTree, batch: Batch, key: Array) -> Features:
        """Encode a global batch."""
        return self.compiled(params, extra, batch, key)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a job, and where its state lives.

    Attributes:
      initialise: makes the first state.
      train_step: lowered; `compiled` compiles it; None in a run without a step.
      encoders: of each set that an evaluation reads, by its name.
      refit: of the pass of a refit, if the method has one.
      shapes, shardings: of the state.
    """

    initialise: Callable[[], TrainState]
    train_step: Any
    encoders: Mapping[str, Encoder]
    refit: Encoder | None
    shapes: PyTree
    shardings: PyTree

    def compiled(self) -> Programs:
        """The same with a compiled `train_step`."""
        return dataclasses.replace(self, train_step=self.train_step and self.train_step.compile())


def lower_job(job: Job, beside: futures.Executor | None = None) -> Programs:
    """Trace a job's programs.

    Args:
      beside: where the program that makes the first state compiles while the others are traced;
        without, it compiles when `initialise` is called.

    Raises:
      ValueError: the method refuses the shapes of its batches, an evaluation reads what is not
        there, or the network that the run starts with does not fit; nothing has been compiled.
    """
    key = jax.random.key(job.seed)
    init, state = _first_state(job)
    values = lay(job.start, state) if job.start else {}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    platform = job.mesh.devices.flat[0].platform
    draw = drawing.program(init, key, platform, out_shardings=shardings)
    # Shapes first: what is refused is refused before the first state's program compiles.
    traced = _trace(job, state) if job.total_steps else None
    encoders, refit = _encoders(job, state), None
    if job.method.refit:
        assert job.refit_pass is not None
        keep = (*job.method.refit.features, *REFIT_READS)
        refit = _encoder(job, job.refit_pass, keep, state)
    drawn = beside.submit(draw.compile).result if beside else draw.compile
    return Programs(
        initialise=lambda: placed(values, drawn()(key)),
        train_step=traced and traced.lower(),
        encoders=encoders,
        refit=refit,
        shapes=state,
        shardings=shardings,
    )


def trace_step(job: Job) -> tuple[Any, TrainState]:
    """Trace a job's train step alone; `lower().compile()` makes a program of it.

    Returns:
      The step, and the shapes of the state with their shardings.

    Raises:
      ValueError: the method refuses the shapes of its batches, or the run has no step.
    """
    if not job.total_steps:
        raise Refusal("this run has no training step: it evaluates a checkpoint")
    _, state = _first_state(job)
    return _trace(job, state), state


def _first_state(job: Job) -> tuple[Callable[[Array], TrainState], TrainState]:
    """What draws the first state from a key, and its shapes, each with its sharding."""
    given = meshes.placed_shapes(job.mesh, job.shapes())

    def init(key: Array) -> TrainState:
        # Parameters depend on shapes alone: XLA drops the zeros and all that is made of them.
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), given)
        return initialise(job.method, job.optimizer, key, job.augment(key, zeros))

    shapes = jax.eval_shape(init, jax.random.key(job.seed))
    shardings = meshes.shard_state(job.mesh, shapes, job.sharding_rules)
    state = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings
    )
    return init, state


def _trace(job: Job, state: PyTree) -> Any:
    step = make_train_step(
        job.method,
        job.optimizer,
        job.augment,
        total_steps=job.total_steps,
        steps_per_epoch=job.steps_per_epoch,
        accumulate=job.accumulate,
    )
    shardings = jax.tree.map(lambda s: s.sharding, state)
    program = jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(job.mesh))
    )
    with meshes.known(job.mesh):
        return program.trace(state, meshes.placed_shapes(job.mesh, job.shapes()))


def reads(job: Job) -> dict[str, tuple[str, ...]]:
    """Of each set that an evaluation reads, the features that some evaluation does."""
    wanted: dict[str, dict[str, None]] = {}
    for evaluation in job.evaluations:
        for name in evaluation.sets:
            wanted.setdefault(name, {}).update(dict.fromkeys(evaluation.features))
    return {name: tuple(features) for name, features in wanted.items()}


def _encoders(job: Job, state: PyTree) -> dict[str, Encoder]:
    """One program for all sets whose batches are alike: it gives what any of them is asked for."""
    groups: dict[Any, list[str]] = {}
    for name in reads(job):
        a_pass = job.sets[name]
        shapes = [
            (jax.tree_util.keystr(path), leaf.shape, np.dtype(leaf.dtype).name)
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(a_pass.shapes()))
        ]
        groups.setdefault((id(a_pass.augment), tuple(shapes)), []).append(name)
    encoders: dict[str, Encoder] = {}
    for names in groups.values():
        keep = tuple(dict.fromkeys(f for name in names for f in reads(job)[name]))
        encoder = _encoder(job, job.sets[names[0]], keep, state)
        encoders |= dict.fromkeys(names, encoder)
    return encoders


def _encoder(job: Job, a_pass: Pass, keep: Sequence[str], state: PyTree) -> Encoder:
    step = make_eval_step(job.method, a_pass.augment, keep)
    program = jax.jit(step, out_shardings=meshes.replicated(job.mesh))
    batch = meshes.placed_shapes(job.mesh, a_pass.shapes())
    key = jax.eval_shape(lambda: jax.random.key(0))
    with meshes.known(job.mesh):
        return Encoder(program.lower(state.params, state.extra, batch, key))
