"""Statistics that show a collapse: dimensions that repeat each other, rows that coincide.

facebookresearch/SIE, `src/models.py`, `cor_metrics` and `std_losses`. They are for the log, cost
O(N D), and pass no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array


def correlation(v: Array) -> Array:
    """Mean correlation, with its sign, of pairs of different dimensions of f32[N, D]."""
    v = jax.lax.stop_gradient(v)
    n, width = v.shape
    c = (v - jnp.mean(v, axis=0)) / (jnp.std(v, axis=0, ddof=1) + 1e-5)
    # All entries of c^T c sum to the squared row sums of c; no [D, D] matrix is needed.
    everything, diagonal = jnp.sum(jnp.square(jnp.sum(c, axis=1))), jnp.sum(jnp.square(c))
    # A float: of batch 1024 and width 2048 it is no 32-bit integer.
    return (everything - diagonal) / float((n - 1) * max(width * (width - 1), 1))


def spread(v: Array) -> Array:
    """Mean over dimensions of the standard deviation of the rows, scaled to length 1.

    Args:
      v: f32[N, D].

    Returns:
      f32[]: 0 if all rows point one way, 1 / sqrt(D) if they point everywhere alike.
    """
    return jnp.mean(jnp.std(l2_normalize(jax.lax.stop_gradient(v)), axis=0, ddof=1))
