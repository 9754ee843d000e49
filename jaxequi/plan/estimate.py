"""From what a step costs a device to time, money and advice: a roofline, and what follows from it.

A step takes at least as long as its longest part: arithmetic, memory traffic or communication, were
the other two hidden behind it; and, at peak rates, at most their sum, if nothing is. What really
happens lies between the two where the kernels reach their peaks, and beyond where they do not: the
lower bound ranks machines and settings, and is no promise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxequi.plan.chips import GIB, Slice, weak
from jaxequi.plan.program import Collective, Cost

REPEATED = 1.25  # of its share of the arithmetic, from where on a device repeats others' work
PARTS = {"compute": "arithmetic", "traffic": "memory traffic", "network": "communication"}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step's three parts at peak rates."""

    compute: float
    traffic: float
    network: float

    @property
    def lower(self) -> float:
        """Seconds of a step whose parts overlap."""
        return max(self.compute, self.traffic, self.network)

    @property
    def upper(self) -> float:
        """Seconds of a step whose parts follow each other."""
        return self.compute + self.traffic + self.network

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "traffic" or "network"."""
        return max(PARTS, key=lambda part: getattr(self, part))


def roofline(part: Slice, cost: Cost, share16: float = 1.0) -> Roofline:
    """Set what a step costs a device against what the device can do.

    Args:
      share16: of the arithmetic, what is in bfloat16.
    """
    chip = part.chip
    rate = 1 / (share16 / chip.flops + (1 - share16) / chip.flops32)
    return Roofline(
        compute=cost.flops / rate,
        traffic=cost.traffic / chip.bandwidth,
        network=sum(one.sent for one in cost.collectives) / part.ring,
    )


def data_parallel(parameters: float, fsdp: float, devices: int, split: int) -> list[Collective]:
    """The communication that gradients need, where nothing is compiled.

    Args:
      parameters: bytes of the parameters that every device has.
      fsdp: bytes of those that are split.
      split: devices over which.
    """
    found = []
    if devices > 1 and parameters:
        found.append(Collective("all-reduce", devices, parameters, 1))
    if split > 1 and fsdp:
        # Gathered for the forward pass and again for the backward pass.
        found.append(Collective("all-gather", split, 2 * fsdp, 2))
        found.append(Collective("reduce-scatter", split, fsdp, 1))
        if devices > split:
            found.append(Collective("all-reduce", devices // split, fsdp / split, 1))
    return found


def repeated(cost: Cost, needed: float, devices: int) -> float:
    """How many times its share of the needed arithmetic a device does; 1 where none is repeated."""
    return cost.flops * devices / needed if needed else 1.0


def scaled(cost: Cost, needed: float, here: int, there: int) -> Cost:
    """The same batch per device on another number of devices.

    What a device does alone stays as it is, and so does the size of its gradients. What all devices
    repeat, because it is of the whole batch, grows with the batch, and so does what is gathered.

    Args:
      needed: operations of a whole step on `here` devices, each counted once.
    """
    ratio = there / here
    whole = 0.0  # operations on the whole batch that each device does
    if here > 1 and repeated(cost, needed, here) > REPEATED:
        whole = min((cost.flops - needed / here) / (1 - 1 / here), cost.flops)
    flops = cost.flops - whole + whole * ratio
    part = whole / cost.flops if cost.flops else 0.0
    return dataclasses.replace(
        cost,
        flops=flops,
        traffic=cost.traffic * (1 - part + part * ratio),
        collectives=[_regrouped(one, here, there) for one in cost.collectives if there > 1],
    )


def _regrouped(one: Collective, here: int, there: int) -> Collective:
    if one.group != here:
        return one
    grows = there / here if one.kind == "all-gather" else 1.0
    return dataclasses.replace(one, group=there, bytes=one.bytes * grows)


def largest_batch(memory: float, fixed: float, capacity: float, batch: int, devices: int) -> int:
    """The largest batch that fits, on a straight line through what is fixed and this batch's use.

    Args:
      memory: bytes that the batch takes on a device, what is fixed included.
      fixed: bytes that any batch takes.

    Returns:
      A multiple of the devices, or the batch itself; 0 if none fits.
    """
    if memory <= fixed:  # as measured, and as estimated: this batch is all that is known
        return batch if memory <= capacity else 0
    if fixed >= capacity:
        return 0
    per_device = batch / devices * (capacity - fixed) / (memory - fixed)
    return int(per_device + 1e-9) * devices


def scaling(part: Slice, cost: Cost, needed: float, share16: float) -> list[dict[str, Any]]:
    """Step times of 1 to 256 chips at this batch per device."""
    rows: list[dict[str, Any]] = []
    for one in weak(part.chip):
        times = roofline(one, scaled(cost, needed, part.devices, one.devices), share16)
        rows.append(
            {
                "topology": one.name,
                "chips": one.chips,
                "step_seconds": times.lower,
                "bound": times.bound,
                "efficiency": rows[0]["step_seconds"] / times.lower if rows else 1.0,
            }
        )
    return rows


def advice(plan: dict[str, Any]) -> str:
    """One line: what to change first."""
    config, devices = plan["config"], plan["devices"]
    if not plan["fits"]:
        over = -plan["spare_bytes"] / GIB
        large = plan["state_bytes"] > 0.4 * plan["capacity_bytes"]
        if large and devices > 1 and config["mesh"]["fsdp"] == 1:
            todo = "split the state: --config.mesh.fsdp=N"
        elif not config["remat"]:
            todo = "--config.remat=True"
        elif config["dtype"] != "bfloat16":
            todo = "--config.dtype=bfloat16"
        else:
            todo = "more chips, or chips with more memory"
        largest = plan["largest_batch"]
        batch = f", or a batch of about {largest}" if largest else ""
        return f"it lacks {over:.2f} GiB on each device: {todo}{batch}"
    if plan["repeated"] > REPEATED:
        return (
            f"each device does {plan['repeated']:.1f} times its share of the arithmetic: a part of "
            "the step runs on the whole batch everywhere, and more chips will not make that faster"
        )
    if plan["bound"] == "network":
        return "communication takes longest: a larger batch per chip, or fewer chips"
    if config["dtype"] != "bfloat16":
        return "--config.dtype=bfloat16 halves what moves, and a GPU multiplies it faster"
    if config["remat"] and plan["spare_bytes"] > 0.5 * plan["capacity_bytes"]:
        return "half the memory is free: without --config.remat nothing is computed twice"
    if plan["spare_bytes"] > 0.6 * plan["capacity_bytes"] and devices > 1:
        return (
            f"most of the memory is free: a batch of up to {plan['largest_batch']}, or fewer chips "
            "for this one"
        )
    if plan["bound"] == "traffic":
        return "memory traffic takes longest: chips with more bandwidth gain more than faster ones"
    return "arithmetic takes longest, as it should: more chips make it faster"
