"""The machine: devices as a mesh, who holds which part of a batch and of the state.

This is the only file that knows how many devices and hosts there are. Everything else is written
for the global batch; XLA inserts the communication that these shardings imply. (This is the
successor of `pmap`, which JAX keeps in maintenance only.)
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxequi.errors import Refusal
from jaxequi.train import peers, roll_call
from jaxequi.types import Batch, PyTree

AXES = ("data", "fsdp")
SMALL = 4096  # numbers: a smaller leaf costs more to gather than it saves
Rules = Sequence[tuple[str, str]]
Devices = Sequence[jax.Device] | int
PATIENCE = 300  # seconds that the processes of a cluster have to find each other
_ALONE = 1  # exit code of a process whose others did not come
_WAITED = (
    f"has waited {PATIENCE} s for the others of its run. Those that are missing did not say this: "
    "look why they did not start, and start all of them again."
)
_PORTS = 2**16 - 2**12  # from here on: of one of them process 0 of a job of Slurm answers
# What srun tells each of its tasks, and JAX reads.
_OF_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")


def _device_count() -> int:
    """Devices of all processes; the first use of JAX, which looks for them then."""
    try:
        return jax.device_count()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS")
        raise Refusal(
            f"JAX has no device, with JAX_PLATFORMS={asked!r}: {str(error).splitlines()[0]} Ask "
            "for another platform there (cpu, cuda, tpu), or for none"
        ) from error


def make_mesh(data: int = -1, fsdp: int = 1, devices: Devices | None = None) -> Mesh:
    """Arrange the devices as a `data x fsdp` mesh; one of the two may be -1, "what is left".

    The batch is split over both axes; parameters are split over `fsdp` where a rule says so. With
    both fixed, a single process may use fewer devices than it has: the first ones.

    Args:
      devices: those of a machine that is only planned, or their number, to trace for them; by
        default all that are here.

    Raises:
      ValueError: the product does not fit the number of devices.
    """
    if devices is None:
        count = _device_count()
    else:
        count = devices if isinstance(devices, int) else len(devices)
    sizes = {"data": data, "fsdp": fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and count % fixed == 0:
        sizes[free[0]] = count // fixed
    used = math.prod(sizes.values())
    whole = used == count or (jax.process_count() == 1 and 0 < used < count)
    if min(sizes.values()) < 1 or not whole:
        raise Refusal(
            f"mesh data={data}, fsdp={fsdp} does not fit {count} device(s). Their product must be "
            f"{count}, or less in a single process; one of them may be -1 and takes what is left."
        )
    # Auto, not make_mesh's default Explicit: under explicit axes a product of two embeddings of a
    # sharded batch is a type error, because the result would be sharded twice over one axis.
    auto = (AxisType.Auto,) * 2
    if isinstance(devices, int):
        # It has a size and axes, which is all that tracing asks of a mesh.
        return cast(Mesh, AbstractMesh(tuple(sizes.values()), AXES, axis_types=auto))
    chosen = (jax.devices() if devices is None else devices)[:used]
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=auto, devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def known(mesh: Mesh) -> AbstractContextManager[Any]:
    """Inside, what is traced knows the mesh by name: `nn.spread.over_devices` asks for it."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def check_batch_size(mesh: Mesh, batch_size: int, what: str = "batch_size") -> None:
    """Raise `ValueError` unless the batch divides over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise Refusal(
            f"{what}={batch_size} does not divide over {mesh.size} devices "
            f"(mesh {describe(mesh)}). Use a multiple of {mesh.size}; it is the global size."
        )


def shard_state(mesh: Mesh, shapes: PyTree, rules: Rules = ()) -> PyTree:
    """Say where each leaf of a state lives.

    Args:
      shapes: a tree of things with a `shape`.
      rules: (regex, "fsdp" | "replicate") pairs, matched against the leaf's path
        (`params/backbone/conv1/kernel`); the first match wins, no match means replicate. "fsdp"
        splits the largest axis that divides by the mesh's fsdp size, unless the leaf is `SMALL`.

    Returns:
      The tree of shardings. Momenta follow their parameters, since their paths end alike.
    """
    for pair in rules:
        if len(pair) != 2 or pair[1] not in ("fsdp", "replicate"):
            raise Refusal(f"sharding rule {pair!r}: write (pattern, 'fsdp') or (.., 'replicate')")
        try:
            re.compile(pair[0])
        except (re.error, TypeError) as error:
            raise Refusal(f"sharding rule {pair!r}: its pattern is no regex, {error}") from error

    def place(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next((rule for pattern, rule in rules if re.search(pattern, name)), "replicate")
        axes = [a for a, n in enumerate(leaf.shape) if n % mesh.shape["fsdp"] == 0]
        if rule == "replicate" or not axes or math.prod(leaf.shape) < SMALL:
            return replicated(mesh)
        axis = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(place, shapes)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Positions of the global batch that this host's devices hold: i64[b], sorted, unique."""
    places = over_batch(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in places.values() if index is not None]
    return np.unique(np.concatenate(rows))


def to_global(mesh: Mesh, batch: Batch, batch_size: int) -> PyTree:
    """Make sharded `jax.Array`s of a host batch that holds the rows `local_rows(mesh, ...)`."""
    sharding, rows = over_batch(mesh), local_rows(mesh, batch_size)

    def put(local: np.ndarray) -> jax.Array:
        local = np.asarray(local)
        shape = (batch_size, *local.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # only devices that hold no part are given None
            wanted = np.arange(batch_size)[index[0]]
            first = int(np.searchsorted(rows, wanted[0]))
            return local[first : first + len(wanted)]  # a device's rows are contiguous

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put, dict(batch))


def describe(mesh: Mesh) -> str:
    """`data 2 x fsdp 4 on 8 cpu device(s)`."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    if isinstance(mesh, AbstractMesh):
        return f"{axes} on {mesh.size} device(s)"
    device = mesh.devices.flat[0]
    kind = device.device_kind if device.platform != "cpu" else "cpu"
    return f"{axes} on {mesh.size} {kind} device(s)"


def placed_shapes(mesh: Mesh, shapes: Batch) -> PyTree:
    """Shapes and dtypes of a global batch, with the shardings that `to_global` gives it."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=over_batch(mesh)), dict(shapes)
    )


def start_distributed() -> None:
    """Join the other processes of a cluster, where there is one; alone, do nothing.

    Clusters that are detected: Slurm, Cloud TPU, Open MPI, Kubernetes. By hand: set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      ValueError: JAX finds no device, the environment says half of what it must, or, by hand or by
        Slurm, some processes do not come within `PATIENCE` seconds.
    """
    env = os.environ
    # On a TPU VM libtpu is installed; initialising is right for one host and for a pod.
    tpu = importlib.util.find_spec("libtpu") and "tpu" in (env.get("JAX_PLATFORMS") or "tpu")
    if cluster := _by_hand() or _by_slurm():
        address, count, mine = cluster
        roll_call.hold(address, count, mine, PATIENCE)
        with peers.on_abort(_ALONE, f"process {mine} of {count} {_WAITED}"):
            jax.distributed.initialize(address, count, mine, initialization_timeout=PATIENCE)
    elif (
        (_number("OMPI_COMM_WORLD_SIZE") or 1) > 1
        or tpu
        or ("KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env)
    ):
        with peers.on_abort(_ALONE, f"this process {_WAITED}"):
            jax.distributed.initialize(initialization_timeout=PATIENCE)
    _device_count()


def _by_hand() -> tuple[str, int, int] | None:
    """Address of process 0, number of processes, and which of them this is."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return None
    count, mine = (_number(v) for v in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if count is None or mine is None or not 0 <= mine < count:
        raise Refusal(
            f"JAX_COORDINATOR_ADDRESS={address} with JAX_NUM_PROCESSES={count} and "
            f"JAX_PROCESS_ID={mine}: set all three, the last one from 0 to the number of "
            "processes less 1; or none, for one process"
        )
    return address, count, mine


def _by_slurm() -> tuple[str, int, int] | None:
    """The same, as srun says it; the address is the one that JAX makes of it."""
    env = os.environ
    count = _number("SLURM_NTASKS") or 1
    if count == 1 or "OMPI_COMM_WORLD_SIZE" in env:  # by mpirun one starts within an allocation too
        return None
    lacking = [v for v in _OF_SLURM if v not in env]
    if lacking:
        raise Refusal(
            f"SLURM_NTASKS={count}, but there is no {', '.join(lacking)}: start the command by "
            "srun, or unset SLURM_NTASKS for one process"
        )
    mine, job = _number("SLURM_PROCID") or 0, _number("SLURM_JOB_ID") or 0
    # The first of node[001-015,020],other[1,2] is node001.
    first = re.match(r"([^,[]*)(?:\[([^],-]*))?", env["SLURM_STEP_NODELIST"])
    host = "".join(part or "" for part in first.groups()) if first else ""
    port = _number("JAX_COORDINATOR_PORT") or _PORTS + job % (2**16 - _PORTS)
    return f"{host}:{port}", count, mine


def _number(variable: str) -> int | None:
    """A number of the environment; None if it is not set."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise Refusal(f"{variable}={text!r} in the environment: it must be a number, or unset")
    return int(text)
