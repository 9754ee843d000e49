"""How far a prediction is from its target, and how much of the target it explains."""

from __future__ import annotations

import jax.numpy as jnp

from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array

# The `r2` of a constant guess of 3DIEBench's relative quaternions, whose w has a large mean.
POOLED_R2_FLOOR = 0.229


def mean_squared_error(prediction: Array, target: Array) -> Array:
    """Mean squared difference over all elements of f32[N, K] and f32[N, K]."""
    return jnp.mean(jnp.square(prediction - target))


def cosine_similarity(a: Array, b: Array, epsilon: float = 1e-12) -> Array:
    """Mean cosine of f32[N, D] and f32[N, D], row by row; lengths below `epsilon` count as that."""
    return jnp.mean(jnp.sum(l2_normalize(a, epsilon) * l2_normalize(b, epsilon), axis=-1))


def _explained(residual: Array, total: Array) -> Array:
    """1 - residual / total; 0 where the target is constant and leaves nothing to explain."""
    constant = total == 0
    return jnp.where(constant, 0, 1 - residual / jnp.where(constant, 1, total))


def r2(prediction: Array, target: Array) -> Array:
    """Coefficient of determination with one mean over all elements of the target.

    facebookresearch/SIE, `src/models.py`, `r2_score`. The columns of a target need not have the
    mean that they share here, so a constant guess of each column's own mean scores above 0, as
    `POOLED_R2_FLOOR`. `r2_per_column` has its floor at 0.

    Args:
      prediction, target: f32[N, K].

    Returns:
      f32[].
    """
    residual = jnp.sum(jnp.square(prediction - target))
    return _explained(residual, jnp.sum(jnp.square(target - jnp.mean(target))))


def r2_per_column(prediction: Array, target: Array) -> Array:
    """Coefficient of determination of each column against its own mean: f32[K] of f32[N, K]."""
    residual = jnp.sum(jnp.square(prediction - target), axis=0)
    return _explained(residual, jnp.sum(jnp.square(target - jnp.mean(target, axis=0)), axis=0))
