"""The train step of a config: compilation, time, memory, arithmetic."""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import jax

from jaxequi.train import mesh as meshes
from jaxequi.train import programs
from jaxequi.train.job import Job


def measure(job: Job, steps: int = 20) -> dict[str, Any]:
    """Compile a job's step and run it `steps` times after two that warm up.

    The batches are loaded first and timed alone, then the steps are timed alone: the two times
    add up only where input and step share the processor.

    Returns:
      Seconds, bytes, operations; `peak_bytes` is the process's, on the host.
    """
    began = time.perf_counter()
    with job.batches(0, steps + 2) as batches:
        host = [next(batches)]
        first_batch = time.perf_counter() - began
        began = time.perf_counter()
        host += list(batches)
        input_seconds = (time.perf_counter() - began) / (len(host) - 1)
    placed = [meshes.to_global(job.mesh, batch, job.batch_size) for batch in host]

    began = time.perf_counter()
    compiled = programs.lower_job(job).compiled()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    state = jax.block_until_ready(compiled.initialise())
    initialise_seconds = time.perf_counter() - began

    seconds = []
    for batch in placed:
        began = time.perf_counter()
        state, scalars = compiled.train_step(state, batch)
        jax.block_until_ready((state, scalars))
        seconds.append(time.perf_counter() - began)
    seconds = seconds[2:]
    step = statistics.median(seconds)
    cost = compiled.train_step.cost_analysis() or {}
    memory = compiled.train_step.memory_analysis()
    return {
        "devices": meshes.describe(job.mesh),
        "batch_size": job.batch_size,
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "compile_seconds": compile_seconds,
        "initialise_seconds": initialise_seconds,
        "first_batch_seconds": first_batch,
        "step_seconds": {"median": step, "min": min(seconds), "max": max(seconds)},
        "input_seconds": input_seconds,
        "input_share": input_seconds / (input_seconds + step),
        "examples_per_second": job.batch_size / step,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "flops_per_second": cost["flops"] / step if "flops" in cost else None,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
