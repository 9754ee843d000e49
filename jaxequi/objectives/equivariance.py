"""How far two feature maps of one image are apart that should be the same, place by place.

Lee et al., "Soft equivariance regularization for invariant self-supervised learning", ICLR 2026,
arXiv 2603.06693, which asks it of maps in the midst of a network. Both take maps f32[N, L, D] of N
images and L places; features count by their direction alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array


def squared_distance(a: Array, b: Array) -> Array:
    """Mean over the places of |a - b|^2, a and b of length 1: f32[], between 0 and 4."""
    return jnp.mean(jnp.sum(jnp.square(l2_normalize(a) - l2_normalize(b)), axis=-1))


def ntxent_of_places(a: Array, b: Array, temperature: float = 0.3) -> Array:
    """Mean cross-entropy of each place naming itself in the other map among all other images'.

    The paper's term: the other L - 1 places of the same image, which may look alike, are left
    out on both sides. Of the N L x 2 N L similarities those of one image stand in memory at once.

    Args:
      temperature: divides the cosines.

    Returns:
      f32[], over the places of `a` as of `b`.
    """
    a, b = l2_normalize(a), l2_normalize(b)
    n, length, width = a.shape

    def one_side(a: Array, b: Array) -> Array:
        every = jnp.concatenate([a, b]).reshape(-1, width)
        owner = jnp.repeat(jnp.tile(jnp.arange(n), 2), length)

        @jax.checkpoint
        def of_image(given: tuple[Array, Array, Array]) -> Array:
            here, there, own = given
            positive = jnp.sum(here * there, axis=-1) / temperature
            similarity = jnp.matmul(here, every.T, precision="highest") / temperature
            others = jnp.where(owner == own, -jnp.inf, similarity)
            return jnp.mean(jnp.logaddexp(positive, jax.nn.logsumexp(others, axis=-1)) - positive)

        return jnp.mean(jax.lax.map(of_image, (a, b, jnp.arange(n))))

    return (one_side(a, b) + one_side(b, a)) / 2
