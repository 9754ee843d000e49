"""Group networks against plain ones of the same expanded width: what lifting itself costs.

A filter bank is the gather of a parameter, made once a step, so that a step of P4- or P4M-ResNet-44
should cost what a plain ResNet-44 with all its channels written out does.

Two CPU cores, 2026-11-22, default widths, batch 64: 15.2 s against 14.3 s for P4 (1.06 times; by
the processor's time 1.01), 23.9 s against 25.1 s for P4M (0.95; 1.01); compiled in 5.0 s and 4.7 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.groups.planar import cyclic
from jaxequi.methods import supervised
from jaxequi.models import gresnet
from jaxequi.train import optim
from jaxequi.types import Progress

NETWORKS = ("p4resnet44", "p4mresnet44")


def run(batch_size: int = 64, size: int = 32, repeats: int = 3) -> dict[str, Any]:
    """Time train steps in turn, the group network and the plain one; minima of `repeats`.

    Returns:
      For each network: seconds of a step of both and their ratio, by the clock and by the
      processor (which other programs disturb less), and seconds to compile.
    """
    measured = {}
    for name in NETWORKS:
        network = gresnet.make(name, head="coset_first")
        widths = tuple(width * network.group.order for width in network.widths)
        plain = gresnet.GResNet(cyclic(1), widths, network.blocks)
        steps, compiled = zip(
            *(compiled_step(n, batch_size, size) for n in (network, plain)), strict=True
        )
        seconds = alternate(steps, repeats)
        measured[name] = {
            "group_seconds": seconds[0][0],
            "plain_seconds": seconds[1][0],
            "ratio": seconds[0][0] / seconds[1][0],
            "processor_ratio": seconds[0][1] / seconds[1][1],
            "compile_seconds": compiled[0],
            "plain_compile_seconds": compiled[1],
        }
    return measured


def compiled_step(
    network: nn.Module, batch_size: int, size: int
) -> tuple[Callable[[], None], float]:
    """One train step as a call without arguments, and the seconds its compilation took."""
    method = supervised.make(network, 10)
    optimizer = optim.make(
        "sgd", learning_rate=0.01, momentum=0.9, batch_size=batch_size, total_steps=1000
    )
    batch = {
        "views": jax.random.normal(jax.random.key(1), (batch_size, 1, size, size, 3)),
        "label": jnp.arange(batch_size) % 10,
    }
    start = Progress(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def step(params: Any, extra: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        gradient = jax.value_and_grad(method.loss, has_aux=True)
        (_, output), grads = gradient(params, extra, batch, jax.random.key(0), start)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), output.extra, state

    # any numbers do, and drawing them takes longer to compile than the step
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    params, extra = jax.tree.map(lambda a: jnp.full(a.shape, 0.01, a.dtype), shapes)
    arguments = params, extra, optimizer.init(params), batch
    began = time.perf_counter()
    program = jax.jit(step).lower(*arguments).compile()
    seconds = time.perf_counter() - began

    def call() -> None:
        jax.block_until_ready(program(*arguments))

    return call, seconds


def alternate(
    steps: Sequence[Callable[[], None]],
    repeats: int,
    statistic: Callable[[list[float]], float] = min,
) -> list[tuple[float, float]]:
    """Least seconds of each step by the clock and by the processor, or their median, in turn."""
    clock: list[list[float]] = [[] for _ in steps]
    processor: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        for i, step in enumerate(steps):
            began, worked = time.perf_counter(), time.process_time()
            step()
            if turn:  # the first warms up
                clock[i].append(time.perf_counter() - began)
                processor[i].append(time.process_time() - worked)
    return [(statistic(c), statistic(p)) for c, p in zip(clock, processor, strict=True)]
