"""SIE's published step, and all of it that is above the backbone.

`heads`: features of ResNet-18 instead of pictures, projectors 2048-2048-2048, hypernetwork, losses,
online evaluator and Adam, batch 256. `step`: the same from pictures of 64 pixels, batch 32.
"""

from __future__ import annotations

import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.methods import sie, with_online_heads
from jaxequi.models import resnet
from jaxequi.nn.stored import Stored
from jaxequi.train import optim
from jaxequi.train.state import TrainState
from jaxequi.train.step import make_train_step
from jaxequi.types import Batch

CLASSES, FEATURES = 55, 512


def run(repeats: int = 5) -> dict[str, Any]:
    """Time both; seconds by the clock and by the processor (least of `repeats`), bytes."""
    return {
        "heads": _measure(Stored(FEATURES), (256, 2, FEATURES), repeats),
        "step": _measure(resnet.make("resnet18"), (32, 2, 64, 64, 3), repeats),
    }


def _measure(backbone: nn.Module, shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    method = with_online_heads(
        sie.make(backbone=backbone, batch_size=shape[0]),
        num_classes=CLASSES,
        features=("representation", "embedding"),
        relation="rotation",
    )
    optimizer = optim.make(
        "adam", learning_rate=1e-3, weight_decay=1e-6, batch_size=shape[0], total_steps=100
    )
    batch: Batch = {
        "views": jax.random.normal(jax.random.key(1), shape),
        "latent": jax.random.uniform(jax.random.key(2), (shape[0], 2, 7)),
        "label": jnp.arange(shape[0]) % CLASSES,
    }
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    # Any small numbers do, and drawing them in a program takes longer to compile than the step.
    draw = np.random.default_rng(0)
    params, extra = jax.tree.map(
        lambda a: jnp.asarray(draw.normal(1e-2, 1e-2, a.shape), a.dtype), shapes
    )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=jax.tree.map(jnp.ones_like, extra),
        opt_state=optimizer.init(params),
        key=jax.random.key(3),
    )
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=100, steps_per_epoch=10
    )
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    memory: Any = program.memory_analysis()
    clock, processor = [], []
    for _ in range(repeats + 1):
        began, worked = time.perf_counter(), time.process_time()
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    return {
        "seconds": min(clock[1:]),  # the first warms up
        "processor_seconds": min(processor[1:]),
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }
