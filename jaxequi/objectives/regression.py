"""How far a prediction is from its target, and how much of the target it explains.

The same functions in a training step and over a whole held-out set: JAX arrays are answered in
kind, numpy arrays in float64.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.objectives.contrastive import l2_normalize

Array = Any  # np.ndarray | jax.Array

# The `r2` of a constant guess of 3DIEBench's relative quaternions, whose w has a large mean.
POOLED_R2_FLOOR = 0.229


def _kind(*arrays: Array) -> tuple[Any, ...]:
    if any(isinstance(a, jax.Array) for a in arrays):
        return jnp, *arrays
    return np, *(np.asarray(a, np.float64) for a in arrays)


def mean_squared_error(prediction: Array, target: Array) -> Array:
    """Mean squared difference over all elements of f32[N, K] and f32[N, K].

    >>> float(mean_squared_error(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])))
    2.0
    """
    xp, prediction, target = _kind(prediction, target)
    return xp.mean(xp.square(prediction - target))


def cosine_similarity(a: Array, b: Array, epsilon: float = 1e-12) -> Array:
    """Mean cosine of f32[N, D] and f32[N, D], row by row; lengths below `epsilon` count as that."""
    return jnp.mean(jnp.sum(l2_normalize(a, epsilon) * l2_normalize(b, epsilon), axis=-1))


def _explained(prediction: Array, target: Array, axis: int | None) -> Array:
    """1 - residual / total; 0 where the target is constant and leaves nothing to explain."""
    xp, prediction, target = _kind(prediction, target)
    residual = xp.sum(xp.square(prediction - target), axis=axis)
    total = xp.sum(xp.square(target - xp.mean(target, axis=axis)), axis=axis)
    constant = total == 0
    return xp.where(constant, 0, 1 - residual / xp.where(constant, 1, total))


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
    return _explained(prediction, target, None)


def r2_per_column(prediction: Array, target: Array) -> Array:
    """Coefficient of determination of each column against its own mean: f32[K] of f32[N, K].

    A guess of the means scores 0 in each column, and by `r2` more than that:

    >>> target = np.array([[0.0, 10.0], [2.0, 12.0]])
    >>> guess = np.array([[1.0, 11.0], [1.0, 11.0]])
    >>> r2_per_column(guess, target)
    array([0., 0.])
    >>> print(f"{r2(guess, target):.3f}")
    0.962
    """
    return _explained(prediction, target, 0)
