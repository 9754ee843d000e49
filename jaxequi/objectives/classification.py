"""Naming a class: the loss and the score.

Scores are the same function in a training step and over a whole held-out set: JAX arrays are
answered in kind, numpy arrays in float64.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray | jax.Array


def _kind(logits: Array) -> tuple[Any, Array]:
    if isinstance(logits, jax.Array):
        return jnp, logits
    return np, np.asarray(logits, np.float64)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean of -log softmax(logits)[label].

    Args:
      logits: f32[..., C].
      labels: i32[...].
    """
    xp, logits = _kind(logits)
    own = xp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    if xp is jnp:
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - own)
    largest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0]
    return np.mean(total - own)


def soft_cross_entropy(logits: Array, target: Array) -> Array:
    """Mean over rows of -sum of target * log softmax(logits), for classes that share a row.

    Args:
      logits, target: f32[..., C].
    """
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def top_k(logits: Array, labels: Array, k: int) -> Array:
    """Share of rows whose label is among the k largest logits.

    Of equal logits the lower index counts as larger, so that a constant guess scores k / C; and
    everything counts as larger than NaN or than a label beside NaN, so that no ruin scores 1.

    >>> float(top_k(np.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]), np.array([1, 1]), 1))
    0.5

    Args:
      logits: f32[..., C].
      labels: i32[...].
    """
    xp, logits = _kind(logits)
    own = xp.take_along_axis(logits, labels[..., None], axis=-1)
    earlier = xp.arange(logits.shape[-1]) < labels[..., None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return xp.mean(xp.sum(ahead, axis=-1) < k)
