"""Pairs of views that differ by a quarter turn or a flip, and by photometry, in nothing else."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxequi.augment.op import Array
from jaxequi.errors import Refusal
from jaxequi.groups.planar import dihedral
from jaxequi.groups.rotation import act_each
from jaxequi.types import Batch


def turned_pairs(
    augment: Callable[[Array, Batch], dict], pairs: int
) -> Callable[[Array, Batch], dict]:
    """Move the views of the last pairs of a batch before their photometry is drawn.

    Their second view becomes the first one's pixels, and both are moved by elements of D4 that
    differ. `aug["turn"]` f32[B, 2, 1] are the elements, 0 in all other rows; what the host drew of
    the first view counts for both.

    Lee et al., ICLR 2026, arXiv 2603.06693, section "batch partitioning".

    Args:
      augment: of the training set.
      pairs: how many of them.

    Raises:
      ValueError: while tracing, another number of views than two, images that are not square, or
        more pairs than a batch has.
    """
    group = dihedral(4)

    def apply(key: Array, batch: Batch) -> dict:
        key, first_key, second_key = jax.random.split(key, 3)
        views = batch["views"]
        if views.ndim != 5 or views.shape[1] != 2 or views.shape[2] != views.shape[3]:
            raise Refusal(
                f"soft_equivariance moves two square views of each example, and these are "
                f"{views.shape}; give two pipes of `views` that crop squares"
            )
        if not 1 <= pairs <= len(views):
            raise Refusal(
                f"soft_equivariance.pairs={pairs} of a batch of {len(views)}: at least 1, and no "
                "more than there are"
            )
        first = jax.random.randint(first_key, (pairs,), 0, group.order)
        second = (first + jax.random.randint(second_key, (pairs,), 1, group.order)) % group.order
        elements = jnp.stack([first, second], axis=1)
        same = views[-pairs:, 0]
        moved = act_each(group, elements.ravel(), jnp.repeat(same, 2, axis=0))
        moved = moved.reshape(pairs, 2, *same.shape[1:])
        drawn = {
            name: jnp.asarray(one).at[-pairs:, 1].set(one[-pairs:, 0])
            for name, one in batch.get("aug", {}).items()
        }
        views = jnp.concatenate([views[:-pairs], moved])
        out = augment(key, {**batch, "views": views, "aug": drawn})
        turn = jnp.zeros((len(views), 2, 1)).at[-pairs:, :, 0].set(elements)
        return {**out, "aug": {**out.get("aug", {}), "turn": turn}}

    return apply
