"""Where an array lies, for the few layers that XLA cannot tell."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from jaxequi.types import Array, PyTree


def over_devices(batch: Array) -> Array:
    """Keep the examples of a batch split over all devices, as the batch that a step is given.

    XLA sees to it by itself but where rows are picked by number: what it picks it holds as a whole
    on every device, and so all that is computed of it. Where such rows are mixed with rows that are
    split, the result is split as well. Without a mesh nothing is done.

    Args:
      batch: [B, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(mesh.axis_names))


def by_rows(
    function: Callable[[PyTree, PyTree], Array], x: PyTree, weights: PyTree, axis: int = 0
) -> Array:
    """Let each device pass its own examples through a layer, as XLA does not split it well.

    A layer that makes its filters of few weights: XLA adds the gradient of a filter up over the
    devices where it arises, and goes back to the weights afterwards. Filters of a group hold each
    weight up to |G| times, so that is up to |G| times as much communication. Here each device goes
    back to the weights by itself, and these are added up. And what XLA does not split at all: a
    kernel of our own (`fused`), and a loop over the examples, as a CPU augments them. Without a
    mesh, or for a batch that does not divide over it, nothing is different.

    Args:
      function: of examples and the weights, example by example.
      axis: of the examples, in what goes in and what comes out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not (_automatic(mesh) and splits(x, axis)):
        return function(x, weights)
    rows, whole = PartitionSpec(*[None] * axis, mesh.axis_names), PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=(rows, whole), out_specs=rows, check_vma=False
    )(x, weights)


def splits(x: PyTree, axis: int) -> bool:
    """Whether no device sees more of `x` than its own examples inside `by_rows`."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = [leaf.shape[axis] for leaf in jax.tree.leaves(x)]
    return not _automatic(mesh) or not any(size % mesh.size for size in sizes)


def _automatic(mesh: jax.sharding.AbstractMesh) -> bool:
    """Whether XLA splits what is traced over several devices."""
    return not mesh.empty and mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto}
