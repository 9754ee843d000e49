"""The terms of VICReg: pairs alike, every dimension varied, no two dimensions alike.

Bardes, Ponce, LeCun, ICLR 2022, section 4.1, in the form of facebookresearch/SIE, `src/models.py`.
All are over the rows of the global batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.objectives.regression import mean_squared_error
from jaxequi.types import Array, Metrics


def _centered(a: Array) -> Array:
    if len(a) < 2:
        raise Refusal(f"variance and covariance need two rows or more, not {a.shape}")
    return a - jnp.mean(a, axis=0)


def invariance(a: Array, b: Array) -> Array:
    """Mean squared difference of two views f32[N, D]."""
    return mean_squared_error(a, b)


def variance(a: Array) -> Array:
    """Half the mean over dimensions of max(0, 1 - standard deviation), of one view f32[N, D].

    Half, because the authors average over two views what others sum. The deviation is
    sqrt(unbiased variance + 1e-4).
    """
    var = jnp.sum(jnp.square(_centered(a)), axis=0) / (len(a) - 1)
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(var + 1e-4))) / 2


def covariance(a: Array, divisor: int | None = None) -> Array:
    """Sum of the squared covariances of different dimensions, over D, of one view f32[N, D].

    Args:
      divisor: what the sums of products are divided by; N - 1 by default. SIE divides by its
        configured batch size less one, also in the last, smaller batch of an epoch.
    """
    n, width = a.shape
    a = _centered(a) / jnp.sqrt(n - 1 if divisor is None else divisor)
    if 2 * n > width:
        return _off_diagonal(a)
    # a^T a [D, D] and a a^T [N, N] have one Frobenius norm, and the small one is less work. The
    # diagonal of the large one must then be subtracted: at most half of the whole if the
    # dimensions vary alike (Cauchy and Schwarz), but nearly all of it if one of them varies far
    # more than the rest, and then f32 has no digits to spare.
    gram = jnp.matmul(a, a.T, precision="highest")
    whole, diagonal = jnp.sum(jnp.square(gram)), jnp.sum(jnp.square(jnp.sum(a * a, axis=0)))
    difference = whole - diagonal
    # Checkpointed, lest the branch not taken leaves zeros [D, D] behind for the gradient.
    directly = jax.checkpoint(_off_diagonal)
    return jax.lax.cond(16 * difference >= whole, lambda a: difference / width, directly, a)


def _off_diagonal(a: Array) -> Array:
    """Sum of the squared entries of a^T a off its diagonal, over D, for f32[N, D]."""
    width = a.shape[1]
    products = jnp.matmul(a.T, a, precision="highest")
    return jnp.sum(jnp.square(jnp.where(jnp.eye(width, dtype=bool), 0, products))) / width


def regularization(
    x: Array,
    y: Array,
    variance_weight: float,
    covariance_weight: float,
    batch_size: int | None = None,
) -> tuple[Array, Metrics]:
    """Weigh and sum variance and covariance of both views f32[N, D].

    Args:
      batch_size: if covariances are to be divided by it less one (see `covariance`).

    Returns:
      The weighted sum, and `variance` and `covariance` without their weights.
    """
    divisor = None if batch_size is None else batch_size - 1
    terms = {
        "variance": variance(x) + variance(y),
        "covariance": covariance(x, divisor) + covariance(y, divisor),
    }
    return variance_weight * terms["variance"] + covariance_weight * terms["covariance"], terms
