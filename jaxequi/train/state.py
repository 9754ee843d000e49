"""Everything a run is, as one tree."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxequi.types import Array, Batch, Method, PyTree


class TrainState(flax.struct.PyTreeNode):
    """Everything a run is: what is saved, restored, sharded and donated."""

    step: Array  # i32[], updates done
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    key: Array  # the run's key; a step draws from fold_in(key, step)


def draw_options(platform: str) -> dict[str, int] | None:
    """Compiler options for a program that draws parameters.

    It runs once and is long to compile, a random generator for each of them: on a CPU LLVM's
    optimizer would take four times as long as it could ever save.
    """
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else None


def initialise(
    method: Method, optimizer: optax.GradientTransformation, key: Array, batch: Batch
) -> TrainState:
    """Make the state before the first step; `batch` gives shapes only."""
    init_key, run_key = jax.random.split(key)
    params, extra = method.init(init_key, batch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt_state=optimizer.init(params),
        key=run_key,
    )
