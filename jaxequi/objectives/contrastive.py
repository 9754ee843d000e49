"""Contrastive objectives: each row must recognise its partner among other rows.

The others are the rows of a batch (`ntxent`), or of a queue (`infonce`); in `supcon` every row of
the same class is a partner.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.types import Array


def l2_normalize(x: Array, epsilon: float = 1e-12) -> Array:
    """Divide the rows of f32[..., D] by their length, or by `epsilon` if that is more.

    >>> np.asarray(l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))).round(4)
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)

    As torch's `normalize`, its gradient at a row of zeros included, which is finite.
    """
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


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

    >>> pairs = jnp.eye(4)  # four pairs, each like itself and unlike all others
    >>> print(f"{ntxent(pairs, pairs, temperature=1.0):.4f}")  # log(1 + 6 exp(-1))
    1.1654

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


def supcon(
    features: Array,
    labels: Array,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    chosen: Array | None = None,
) -> Array:
    """Mean cross-entropy of each row naming every other row of its class among all other rows.

    Khosla et al., NeurIPS 2020, eq. 2; Wangt-CN/EqInv, `vipriors_eqinv.py`,
    `info_nce_loss_supervised`, whose values carry the factor temperature / base_temperature.

    Args:
      features: f32[B, V, D], as they are: the caller normalises them.
      labels: i32[B].
      temperature: divides the dot products.
      base_temperature: divides the whole.
      chosen: bool[B], the examples whose rows are summed, over their number; all rows by default.

    Returns:
      f32[]; NaN where a row that counts has no other row of its class.
    """
    count, views, _ = features.shape
    rows = jnp.swapaxes(features, 0, 1).reshape(views * count, -1)
    labels = jnp.tile(labels, views)
    similarity = jnp.matmul(rows, rows.T, precision="highest") / temperature
    others = ~jnp.eye(len(rows), dtype=bool)
    positive = others & (labels[:, None] == labels)
    total = jax.nn.logsumexp(jnp.where(others, similarity, -jnp.inf), axis=-1)
    partners = jnp.sum(positive, axis=-1)
    counts = jnp.ones(len(rows), bool) if chosen is None else jnp.tile(chosen, views)
    # A row that does not count has no NaN to give to the gradient either.
    partners = jnp.where(counts, partners, 1)
    named = jnp.sum(jnp.where(positive, similarity, 0), axis=-1) / partners
    loss = temperature / base_temperature * (total - named)
    number = len(rows) if chosen is None else jnp.sum(chosen)
    return jnp.sum(jnp.where(counts, loss, 0)) / number


def debiased_ntxent(a: Array, b: Array, temperature: float = 0.5, prior: float = 0.1) -> Array:
    """`ntxent` less what examples of one's own class are expected to add to the negatives.

    Chuang et al., "Debiased contrastive learning", NeurIPS 2020, eq. 8; Wangt-CN/IP-IRM, `main.py`:
    `train` with `--debiased`.

    Args:
      a, b: f32[N, D]; row i of `a` and row i of `b` are partners.
      temperature: divides the cosines.
      prior: probability that a negative is of the row's own class, from 0 (`ntxent`) to below 1.

    Returns:
      f32[].
    """
    similarity, positive = _similarities(a, b, temperature)
    n = len(similarity)
    partner = jnp.roll(jnp.eye(n, dtype=bool), n // 2, axis=1)
    # All exponentials are times exp(-1 / temperature), the largest possible: none overflows.
    own = jnp.exp(positive - 1 / temperature)
    others = jnp.where(partner, -jnp.inf, similarity)
    negative = jnp.sum(jnp.exp(others - 1 / temperature), axis=-1)
    floor = (n - 2) * np.exp(-2 / temperature)  # none is farther than its opposite
    negative = jnp.maximum((negative - prior * (n - 2) * own) / (1 - prior), floor)
    return jnp.mean(jnp.log(own + negative) - (positive - 1 / temperature))


_QUEUE_ROWS = 4096  # of the queue that meet the batch at once


def infonce(q: Array, k: Array, queue: Array, temperature: float = 0.07) -> tuple[Array, Array]:
    """Mean cross-entropy of each row naming its key among that and the keys of a queue.

    He et al., CVPR 2020, eq. 1; facebookresearch/moco, `moco/builder.py`, `MoCo.forward`. No
    gradient goes to the keys.

    The N x K similarities never stand in memory: the queue passes in parts, whose similarities are
    computed anew in the backward pass. Of 4096 rows and a queue of 65536 all of them are 1 GiB in
    f32, several times over in a program that keeps them; a part is 64 MiB.

    Args:
      q: f32[N, D], of any length.
      k: f32[N, D], of any length; row i is the key of row i of q.
      queue: f32[K, D], of length 1.
      temperature: divides the cosines.

    Returns:
      f32[], and for each row how many keys of the queue are nearer than its own: i32[N]. A
      similarity that is no number counts as nearer.
    """
    q, (k, queue) = l2_normalize(q), jax.lax.stop_gradient((l2_normalize(k), queue))
    positive = jnp.sum(q * k, axis=-1) / temperature

    @jax.checkpoint
    def meet(carry: tuple[Array, Array], rows: Array) -> tuple[tuple[Array, Array], None]:
        total, ahead = carry  # the log of the sum of exponentials so far
        similarity = jnp.matmul(q, rows.T, precision="highest") / temperature
        total = jnp.logaddexp(total, jax.nn.logsumexp(similarity, axis=-1))
        here = jnp.sum(~(similarity <= positive[:, None]), axis=-1, dtype=jnp.int32)
        return (total, ahead + here), None

    carry = positive, jnp.zeros(len(q), jnp.int32)
    whole = len(queue) // _QUEUE_ROWS * _QUEUE_ROWS
    if whole:
        carry, _ = jax.lax.scan(meet, carry, queue[:whole].reshape(-1, _QUEUE_ROWS, q.shape[-1]))
    if whole < len(queue):
        carry, _ = meet(carry, queue[whole:])
    total, ahead = carry
    return jnp.mean(total - positive), ahead
