"""Where an array lies, for the few layers that XLA cannot tell."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

from jaxequi.types import Array


def over_devices(batch: Array) -> Array:
    """Keep the examples of a batch split over all devices, as the batch that a step is given.

    XLA sees to it by itself but where rows are picked by number, or passed one by one as a CPU
    augments them: what it picks it holds as a whole on every device, and so all that is computed of
    it. Where such rows are mixed with rows that are split, the result is split as well. Without a
    mesh nothing is done.

    Args:
      batch: [B, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(mesh.axis_names))
