"""The train step of a method, compiled and timed on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxequi.train.state import TrainState
from jaxequi.train.step import make_train_step
from jaxequi.types import Batch, Method, PyTree


def start(method: Method, batch: Batch) -> tuple[PyTree, PyTree]:
    """Parameters and state to measure with.

    Any small numbers do, and drawing them in a program takes longer to compile than the step.
    """
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    draw = np.random.default_rng(0)

    def small(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(draw.normal(1e-2, 1e-2, leaf.shape), leaf.dtype)

    def ones(leaf: Any) -> Any:  # variances among them
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.full(leaf.shape, 1.0 if floats else 0, leaf.dtype)

    return jax.tree.map(small, shapes[0]), jax.tree.map(ones, shapes[1])


def seconds(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Least time of so many calls, after one that warms up: by the clock and by the processor."""
    clock, processor = [], []
    for _ in range(repeats + 1):
        began, worked = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    return {"seconds": min(clock[1:]), "processor_seconds": min(processor[1:])}


def measure(
    method: Method, optimizer: optax.GradientTransformation, batch: Batch, repeats: int
) -> dict[str, float]:
    """Time steps: seconds by the clock and by the processor (least of `repeats`), bytes, FLOPs."""
    params, extra = start(method, batch)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt_state=optimizer.init(params),
        key=jax.random.key(3),
    )
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=100, steps_per_epoch=10
    )
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    memory: Any = program.memory_analysis()
    cost: Any = program.cost_analysis()
    latest = [state]

    def update() -> Any:
        latest[0], metrics = program(latest[0], batch)
        return latest[0], metrics

    return {
        **seconds(update, repeats),
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "flops": cost.get("flops", float("nan")),
    }
