"""Naming a class: the loss and the score."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxequi.types import Array


def _of_label(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean of -log softmax(logits)[label].

    Args:
      logits: f32[..., C].
      labels: i32[...].
    """
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - _of_label(logits, labels)[..., 0])


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

    Args:
      logits: f32[..., C].
      labels: i32[...].
    """
    own = _of_label(logits, labels)
    earlier = jnp.arange(logits.shape[-1]) < labels[..., None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return jnp.mean(jnp.sum(ahead, axis=-1) < k)
