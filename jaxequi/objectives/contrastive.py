"""Contrastive objectives: each row must recognise its partner among the rows of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.types import Array


def l2_normalize(x: Array) -> Array:
    """Divide the rows of f32[..., D] by their length, or by 1e-12 if that is more.

    As torch's `normalize`, its gradient at a row of zeros included, which is finite.
    """
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _similarities(a: Array, b: Array, temperature: float) -> tuple[Array, Array]:
    """Cosines over temperature of the 2N rows [a; b], and of each row with its partner.

    Returns:
      f32[2N, 2N] with -inf on the diagonal, f32[2N].
    """
    if a.shape != b.shape:
        raise Refusal(f"both sides need one shape, not {a.shape} and {b.shape}")
    rows = l2_normalize(jnp.concatenate([a, b]))
    similarity = jnp.matmul(rows, rows.T, precision="highest") / temperature
    positive = jnp.sum(rows * jnp.roll(rows, len(a), axis=0), axis=-1) / temperature
    return jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, similarity), positive


def ntxent(a: Array, b: Array, temperature: float = 0.1) -> Array:
    """Mean cross-entropy of each of 2N rows naming its partner among the 2N - 1 others.

    NT-Xent of SimCLR (Chen et al. 2020, eq. 1), both directions; facebookresearch/SIE,
    `src/models.py`, `SimCLR.info_nce_loss`.

    Args:
      a, b: f32[N, D]; row i of `a` and row i of `b` are partners.
      temperature: divides the cosines.

    Returns:
      f32[].
    """
    similarity, positive = _similarities(a, b, temperature)
    return jnp.mean(jax.nn.logsumexp(similarity, axis=-1) - positive)


def ntxent_logits(a: Array, b: Array, temperature: float = 0.1) -> Array:
    """The logits behind `ntxent`, the partner's first: the label of every row is 0.

    Args:
      a, b: f32[N, D].

    Returns:
      f32[2N, 2N - 1]: the partner, then the other rows of [a; b] in their order.
    """
    similarity, positive = _similarities(a, b, temperature)
    n = len(similarity)
    partner = (np.arange(n) + n // 2) % n
    others = [np.delete(np.arange(n), (row, partner[row])) for row in range(n)]
    negatives = jnp.take_along_axis(similarity, np.stack(others), axis=-1)
    return jnp.concatenate([positive[:, None], negatives], axis=-1)
