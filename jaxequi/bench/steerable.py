"""Steerable ResNets against plain ones of the same expanded width: what the basis costs.

The filters are made of their coefficients once a step. For each network: the train step beside that
of a plain ResNet-18 with all its channels written out, and the share of it that making the filters
and their gradient takes. How long a network takes to begin is in `bench/start.py`.

Two CPU cores that other programs share, 2026-11-27, fast widths (64 channels), batch 16, 65 pixels,
by the processor's time: the steerable step takes 1.12 (C4), 1.13 (D4) and 1.12 times (C8) what the
plain one takes, of which filters and their gradient are 5, 7 and 8 %. They do not grow with batch
and image, which the rest of the step does.

Beside escnn 1.0.11 on torch 2.13, the widths of equal parameters (39, 28 and 28 fields), batch 8,
97 pixels, two quiet cores, 2026-11-28, the best of 5 steps by the clock and by the processor, for
C4, D4 and C8: escnn 0.99, 2.22 and 1.87 s (1.97, 4.42 and 3.71 s); here 1.16, 2.31 and 1.97 s
(2.27, 4.31 and 3.79 s); here with domain="fourier" 0.85, 1.58 and 1.35 s (1.49, 2.99 and 2.54 s),
0.86, 0.71 and 0.72 of what escnn takes. To make the network escnn takes 52, 72 and 54 s; here
tracing takes 0.4, 0.3 and 0.3 s, and compiling 5 to 6 s, with irreps 15, 35 and 15 s.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxequi.bench.groups import alternate, compiled_step
from jaxequi.groups import kernels
from jaxequi.models import steerable_resnet
from jaxequi.nn import expansion

NETWORKS = ("c4resnet18", "d4resnet18", "c8resnet18")


def run(
    batch_size: int = 16,
    size: int = 65,
    repeats: int = 3,
    fast: bool = True,
    domain: str = "regular",
) -> dict[str, Any]:
    """Time train steps in turn, the steerable network and the plain one; minima of `repeats`.

    Args:
      batch_size, size: of the images.
      repeats: of each step, after one that warms up.
      fast: the reference's narrow widths, which give 64 channels in the first stage.
      domain: of the steerable network, as in `steerable_resnet.make`.

    Returns:
      For each network: seconds of a step of both and their ratio, by the clock and by the
      processor, seconds of making the filters and their gradient, seconds to build the bases and to
      compile.
    """
    measured = {}
    for name in NETWORKS:
        network = steerable_resnet.make(name, fast=fast, domain=domain)
        kernels.basis.cache_clear()
        began = time.perf_counter()
        x = jnp.zeros((1, size, size, 3))
        shapes = jax.eval_shape(
            lambda key, n=network, x=x: n.init(key, x, False), jax.random.key(0)
        )
        traced = time.perf_counter() - began
        plain = steerable_resnet.plain(network)
        template = jax.eval_shape(
            lambda key, n=plain, x=x: n.init(key, x, False), jax.random.key(0)
        )
        steps, compiled = zip(
            *(compiled_step(n, batch_size, size) for n in (network, plain)), strict=True
        )
        seconds = alternate((*steps, _filters(shapes, template, network.group)), repeats)
        measured[name] = {
            "steerable_seconds": seconds[0][0],
            "plain_seconds": seconds[1][0],
            "ratio": seconds[0][0] / seconds[1][0],
            "processor_ratio": seconds[0][1] / seconds[1][1],
            "filters_seconds": seconds[2][0],
            "filters_share": seconds[2][1] / seconds[0][1],
            "trace_seconds": traced,
            "compile_seconds": compiled[0],
            "plain_compile_seconds": compiled[1],
        }
    return measured


def _filters(shapes: Any, template: Any, group: Any) -> Any:
    """Making all filters and their gradient, as a call without arguments."""

    def filters(params: Any) -> Any:
        return expansion.expand({"params": params}, {"params": template["params"]}, group)

    @jax.jit
    def both(params: Any) -> Any:
        made, pull = jax.vjp(filters, params)
        return pull(made)

    params = jax.tree.map(lambda a: jnp.full(a.shape, 0.01, a.dtype), shapes["params"])
    return lambda: jax.block_until_ready(both(params))
