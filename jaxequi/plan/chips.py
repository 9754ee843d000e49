"""Accelerators as their makers describe them, and slices of them.

Numbers are peaks per device, of data sheets; nothing reaches them all at once. Bytes are bytes,
G is 10^9, GiB is 2^30.

TPUs: as docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x} state them. ICI there is in one
direction, all ports of a chip together ("1600 Gbps", v5e; "1200 GBps bidirectional", v5p and 7x).
A link reaches nine tenths of its part (jax-ml.github.io/scaling-book/tpus: 45 GB/s of v5e's 50).
GPUs: NVIDIA's data sheets of A100, H100, H200 and B200, SXM, dense.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxequi import names
from jaxequi.errors import Refusal

G, GIB = 1e9, 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      name: ours.
      flops: bf16 operations a second; a TPU multiplies float32 as bfloat16 as well, unless a
        higher precision is asked for.
      flops32: float32 operations a second at JAX's default precision (TF32 on a GPU).
      memory: bytes that a program can use. Of TPUs what the compiler says in "of 15.75G hbm", of
        GPUs about what the card has, of which JAX takes three quarters unless
        XLA_PYTHON_CLIENT_MEM_FRACTION says more; of those that are here, what JAX has taken.
      bandwidth: bytes a second of this memory.
      link: bytes a second of one link in one direction, as reached.
      axes: dimensions of the torus; 0 is a switch that joins all.
      wraps: a torus closes along an axis of a multiple of this length.
      platform: of JAX.
      libtpu_name: what libtpu calls it.
      devices: devices of JAX in a chip.
      largest: chips in a pod.
    """

    name: str
    flops: float
    flops32: float
    memory: float
    bandwidth: float
    link: float
    axes: int
    wraps: int
    platform: str
    largest: int
    libtpu_name: str = ""
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 197e12, 15.75 * GIB, 819 * G, 45 * G, 2, 16, "tpu", 256, "v5e"),
        Chip("v6e", 918e12, 918e12, 31.25 * GIB, 1638 * G, 90 * G, 2, 16, "tpu", 256, "v6e"),
        Chip("v5p", 459e12, 459e12, 95.74 * GIB, 2765 * G, 90 * G, 3, 4, "tpu", 8960, "v5p"),
        # A chip is two devices; flops, memory and bandwidth are of one of them.
        Chip("v7x", 1153e12, 1153e12, 94.75 * GIB, 3690 * G, 90 * G, 3, 4, "tpu", 9216, "tpu7x", 2),
        # 300, 450, 450 and 900 GB/s of NVLink each way, through a switch.
        Chip("a100", 312e12, 156e12, 79 * GIB, 2039 * G, 300 * G, 0, 1, "gpu", 8),
        Chip("h100", 989e12, 494e12, 79 * GIB, 3350 * G, 450 * G, 0, 1, "gpu", 8),
        Chip("h200", 989e12, 494e12, 140 * GIB, 4800 * G, 450 * G, 0, 1, "gpu", 8),
        Chip("b200", 2250e12, 1125e12, 178 * GIB, 7700 * G, 900 * G, 0, 1, "gpu", 8),
    )
}
ALIASES = {"tpu7x": "v7x", "ironwood": "v7x", "trillium": "v6e", "v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """So many chips, and how they are joined.

    Attributes:
      chip: what they are.
      shape: chips along each axis; of GPUs their number.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is asked for: `v5e:4x4`, `h100:8`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """How many devices of JAX."""
        return self.chips * self.chip.devices

    @property
    def ring(self) -> float:
        """Bytes a second that a device can send into a collective of the whole slice.

        Each axis of the torus carries a share, both ways round where it closes.
        """
        if not self.chip.axes:
            return self.chip.link
        links = sum(1 + (size % self.chip.wraps == 0) for size in self.shape if size > 1)
        return max(links, 1) * self.chip.link / self.chip.devices


def parse(text: str) -> Slice:
    """Read `v5e:16x16` or `h100:8`.

    Raises:
      ValueError: a chip that is not known, a shape that is none, that the chip's network cannot
        have, or that is larger than a pod.
    """
    name, _, shape = text.strip().lower().partition(":")
    name = ALIASES.get(name, name)
    if name not in CHIPS:
        raise names.unknown("chip of --topology", name, CHIPS)
    chip = CHIPS[name]
    example = {0: "8", 2: "4x4", 3: "4x4x4"}[chip.axes]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise Refusal(f"--topology={text}: write CHIP:SHAPE, such as {name}:{example}")
    sizes = tuple(map(int, shape.split("x")))
    if len(sizes) != max(chip.axes, 1):
        kind = f"a torus of {chip.axes} axes" if chip.axes else "a number of chips, with one switch"
        raise Refusal(
            f"--topology={text}: {name} is {kind}; write a shape such as {name}:{example}"
        )
    if math.prod(sizes) > chip.largest:
        raise Refusal(
            f"--topology={text}: {math.prod(sizes)} chips; {name} has at most {chip.largest} "
            f"{'in a pod' if chip.axes else 'behind one switch'}"
        )
    return Slice(chip, sizes)


def weak(chip: Chip) -> list[Slice]:
    """Slices of 1 to 256 chips, each as square as its network allows, for a table of scaling."""
    shapes: dict[int, list[tuple[int, ...]]] = {
        0: [(1,), (2,), (4,), (8,)],
        2: [(1, 1), (2, 2), (2, 4), (4, 4), (8, 8), (16, 16)],
        3: [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (4, 4, 4), (4, 8, 8)],
    }
    return [Slice(chip, shape) for shape in shapes[chip.axes]]


# Told to libtpu, which compiles only: it neither asks for a cloud's metadata nor warns.
_COMPILES_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(part: Slice) -> Sequence[Any]:
    """Devices to compile for that are not here.

    Raises:
      ValueError: libtpu does not know the chip, or the shape is no slice of it.
      ImportError: libtpu is not installed.
    """
    import libtpu  # noqa: F401  # of the `tpu` extra: asked for before JAX looks for it
    from jax.experimental import topologies

    options = {}
    if part.chips == 1 or (min(part.shape) == 1 and part.chip.axes == 2):
        options["chips_per_host_bounds"] = (*part.shape, 1, 1)[:3]
    name = f"{part.chip.libtpu_name}:{'x'.join(map(str, part.shape))}"
    for variable, value in _COMPILES_ONLY.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(name, "tpu", **options)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        nearest = ", ".join(one.name for one in weak(part.chip))
        raise Refusal(
            f"--topology={part.name}: the compiler knows no such slice "
            f"({str(error).splitlines()[0]}). Slices are such as {nearest}"
        ) from error
    return found.devices


def _is(chip: Chip, device: Any) -> bool:
    return re.search(rf"\b{chip.name}\b", device.device_kind.lower()) is not None


def local(part: Slice) -> Sequence[Any] | None:
    """Devices of this machine, where it has as many of this chip; else None."""
    found = [one for one in jax.devices() if _is(part.chip, one)]
    return found[: part.devices] if len(found) >= part.devices else None


def here() -> Slice:
    """The devices of this machine as a slice.

    Raises:
      ValueError: they are none of the chips that are known.
    """
    first, *_ = devices = jax.devices()
    for chip in CHIPS.values():
        if chip.platform == "gpu" and _is(chip, first):
            limit = (first.memory_stats() or {}).get("bytes_limit", chip.memory)
            return Slice(dataclasses.replace(chip, memory=float(limit)), (len(devices),))
    kinds = {one.device_kind for one in devices}
    raise Refusal(
        f"say what to plan for, such as --topology=v5e:4x4: this machine has {', '.join(kinds)}. "
        f"There is: {', '.join(CHIPS)}."
    )
