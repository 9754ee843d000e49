"""What a steerable network takes to begin: its bases, the trace, the program that draws parameters.

In two new processes, one after the other: the first with empty caches, the second with what the
first left on disk, bases and the compiled program. Imports are not counted.

d8resnet101, 44 million numbers, on two quiet CPU cores (2026-11-27): 4.8 s for the first start and
1.6 s for the second (7.4 s and 1.8 s of processor time).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from jaxequi import cli
from jaxequi.models import steerable_resnet
from jaxequi.train import drawing


def run(architecture: str = "d8resnet101") -> dict[str, dict[str, float]]:
    """Time both starts: seconds by the clock, and by the processor over all cores."""
    program = f"from jaxequi.bench import start; start.tell({architecture!r})"
    measured = {}
    with tempfile.TemporaryDirectory() as caches:
        own = {"XDG_CACHE_HOME": caches, "JAX_COMPILATION_CACHE_DIR": f"{caches}/xla"}
        for name in ("first", "second"):
            done = subprocess.run(
                [sys.executable, "-c", program],
                env=os.environ | own,
                check=True,
                stdout=subprocess.PIPE,
            )
            measured[name] = json.loads(done.stdout)
    return measured


def tell(architecture: str) -> None:
    """Print `once` as JSON."""
    print(json.dumps(once(architecture)))


def once(architecture: str) -> dict[str, float]:
    """Time a start in this process."""
    cli.use_compilation_cache()
    network, x, key = (
        steerable_resnet.make(architecture),
        jnp.zeros((1, 65, 65, 3)),
        jax.random.key(0),
    )
    times = [(time.perf_counter(), time.process_time())]

    def tick() -> None:
        times.append((time.perf_counter(), time.process_time()))

    traced = drawing.program(lambda key: network.init(key, x, False), key, jax.default_backend())
    tick()
    program = traced.compile()
    tick()
    jax.block_until_ready(program(key))
    tick()
    seconds = {
        name: after[0] - before[0]
        for name, before, after in zip(("trace", "compile", "draw"), times, times[1:])
    }
    seconds["whole"] = times[-1][0] - times[0][0]
    seconds["processor"] = times[-1][1] - times[0][1]
    return seconds
