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
