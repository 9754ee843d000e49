"""A plan: a config's train step on a slice, compiled or estimated, with what follows from it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections

from jaxequi.plan import estimate, inputs, program, trace
from jaxequi.plan.chips import Slice
from jaxequi.plan.program import Cost
from jaxequi.train import mesh as meshes
from jaxequi.train import programs
from jaxequi.train.job import Job

HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Step:
    """A traced train step and what its trace says.

    Attributes:
      job: the run.
      traced: of JAX, ready to be lowered.
      found: what the trace says of the whole batch.
      state: bytes of the state on a device.
      parameters, split: bytes of parameters on every device, and of those that are split.
      batch: bytes of a device's part of the batch.
    """

    job: Job
    traced: Any
    found: trace.Traced
    state: float
    parameters: float
    split: float
    batch: float

    @property
    def needed(self) -> float:
        """Operations of the products of a step."""
        return self.found.flops16 + self.found.flops32

    @property
    def share16(self) -> float:
        """Their share in bfloat16."""
        return self.found.flops16 / self.needed if self.needed else 1.0

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.job.mesh.size


def traced(job: Job) -> Step:
    """Trace a job's train step, and read its costs off the trace.

    Raises:
      ValueError: see `programs.trace_step`.
    """
    step, state = programs.trace_step(job)
    batch = jax.tree.leaves(meshes.placed_shapes(job.mesh, job.shapes()))
    parameters = jax.tree.leaves(state.params)
    own = {leaf.shape for leaf in parameters}
    whole, split = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in parameters if _is_whole(leaf) is kind)
        for kind in (True, False)
    )
    at_once = job.batch_size // job.accumulate
    return Step(
        job=job,
        traced=step,
        found=trace.measure(step.jaxpr, at_once, len(batch), own),
        state=_on_a_device(state),
        parameters=float(whole),
        split=float(split),
        batch=_on_a_device(batch),
    )


def _is_whole(leaf: jax.ShapeDtypeStruct) -> bool:
    return bool(leaf.sharding.is_fully_replicated)


def _on_a_device(tree: Any) -> float:
    """Bytes of a tree on one device: shapes with their shardings."""
    leaves = jax.tree.leaves(tree)
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * getattr(leaf.dtype, "itemsize", 4)
            for leaf in leaves
        )
    )


def estimated(step: Step) -> Cost:
    """What a step costs a device, without compiling it."""
    found, n = step.found, step.devices
    temporary = found.split / n + found.whole
    return Cost(
        flops=step.needed / n,
        traffic=found.traffic_split / n + found.traffic_whole,
        state=step.state + step.batch,
        temporary=temporary,
        memory=step.state + step.batch + temporary,
        collectives=estimate.data_parallel(
            step.parameters, step.split, n, step.job.mesh.shape["fsdp"]
        ),
    )


def compiled(step: Step) -> Cost | program.OutOfMemory:
    """What a step costs a device, as the compiler has it, or the compiler's refusal."""
    try:
        return program.cost(step.traced.lower().compile(), step.needed / step.devices)
    except jax.errors.JaxRuntimeError as error:
        verdict = program.out_of_memory(str(error))
        if verdict is None:
            raise
        return verdict


def plan(
    part: Slice,
    step: Step,
    cost: Cost | program.OutOfMemory,
    how: str,
    price: float | None = None,
) -> dict[str, Any]:
    """Say what a run would do on a slice.

    Args:
      cost: of the step on a device of it.
      how: "compiled" or "estimated".
      price: of a chip-hour.

    Returns:
      Plain numbers and texts, for a table and for JSON: bytes, seconds, operations.
    """
    job, n = step.job, step.devices
    capacity = part.chip.memory
    guess = estimated(step)
    verdict = None
    if isinstance(cost, program.OutOfMemory):
        verdict, capacity = cost, cost.capacity
        # The rest is what the step would cost if it fitted.
        cost = dataclasses.replace(guess, memory=max(cost.used, guess.state))
    # What the TPU's compiler takes fits, though our count, with the program's code, be larger.
    taken = how == "compiled" and part.chip.platform == "tpu"
    fits = verdict is None and (taken or cost.memory <= capacity)
    fixed = step.state + step.found.whole
    largest = estimate.largest_batch(cost.memory, fixed, capacity, job.batch_size, n)
    times = estimate.roofline(part, cost, step.share16)
    hours = times.lower * job.total_steps / HOUR
    found: dict[str, Any] = {
        "topology": part.name,
        "chips": part.chips,
        "devices": n,
        "how": how if verdict is None else f"{how}; times estimated",
        "config": {
            "method": job.config["method"]["name"],
            "batch_size": job.batch_size,
            "dtype": job.config["dtype"],
            "remat": job.config["remat"],
            "mesh": dict(job.mesh.shape),
        },
        "fits": fits,
        "memory_bytes": cost.memory,
        "capacity_bytes": capacity,
        "spare_bytes": capacity - cost.memory,
        "state_bytes": step.state,
        "largest_batch": max(largest, job.batch_size) if fits else largest,
        "flops": cost.flops,
        "flops_needed": step.needed / n,
        "repeated": estimate.repeated(cost, step.needed, n) if how == "compiled" else 1.0,
        "traffic_bytes": cost.traffic,
        "collective_bytes": program.by_kind(cost.collectives),
        "seconds": dataclasses.asdict(times),
        "step_seconds": times.lower,
        "step_seconds_without_overlap": times.upper,
        "bound": times.bound,
        "examples_per_second": job.batch_size / times.lower,
        "steps": job.total_steps,
        "hours": hours,
        "chip_hours": hours * part.chips,
        "cost": None if price is None else price * hours * part.chips,
        "scaling": estimate.scaling(part, cost, step.needed, step.share16),
    }
    found["advice"] = estimate.advice(found)
    return found


def effects(
    config: ml_collections.ConfigDict,
    overridden: Iterable[str],
    part: Slice,
    devices: meshes.Devices | None,
    measure: Callable[[Step], Cost | program.OutOfMemory],
    how: str,
) -> dict[str, dict[str, Any]]:
    """What changes with remat, precision and a split state: a plan of each, cut to its essence."""
    rows = {}
    for name, fields in inputs.alternatives(config, part.devices).items():
        began = time.perf_counter()
        job = inputs.job(inputs.changed(config, fields), overridden, devices)
        step = traced(job)
        one = plan(part, step, measure(step), how)
        keep = ("fits", "memory_bytes", "spare_bytes", "largest_batch", "step_seconds", "bound")
        rows[name] = {key: one[key] for key in keep}
        rows[name]["seconds_to_plan"] = time.perf_counter() - began
    return rows
