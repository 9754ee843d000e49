"""InfoNCE inside environments, and the penalty that makes one scale of its columns right in all.

Wang et al., "Self-supervised learning disentangled group representation as feature" (IP-IRM),
NeurIPS 2021, eq. 3; Wangt-CN/IP-IRM, `utils.py`: `info_nce_loss`, `penalty`; `main.py`:
`train_env`; `main_mixup.py`: `train_env_mixup_full_retaingp`.

Environments are parts of a batch; each is compared inside itself, in batch order. The penalty's
dummy is a scale of the *columns* of the logits, as `contrastive.ntxent_logits` lays them out: a
column holds another negative in each row, so that the penalty depends on the order of the examples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array


def column_penalty(logits: Array) -> Array:
    """Squared gradient of the cross-entropy, of label 0, by a scale of each column: f32[].

    Args:
      logits: f32[N, C].
    """
    pull = jax.nn.softmax(logits) - (jnp.arange(logits.shape[-1]) == 0)
    return jnp.sum(jnp.square(jnp.mean(pull * logits, axis=0)))


def by_environment(
    a: Array,
    b: Array,
    environment: Array,
    environments: int,
    temperature: float,
    penalty_temperature: float,
) -> tuple[Array, Array, Array]:
    """InfoNCE of two views and its column penalty, inside each environment.

    One matrix of similarities serves them all, and no logits are laid out: see `columns`.

    Args:
      a, b: f32[N, D]; row i of `a` and row i of `b` are partners.
      environment: i32[N], of each example, 0 to K - 1.
      environments: K.
      temperature, penalty_temperature: divide the cosines in the loss and in the penalty.

    Returns:
      The loss and the penalty f32[K], 0 for an environment without examples, and how many examples
      each has, f32[K].
    """
    n = len(a)
    rows = l2_normalize(jnp.concatenate([a, b]))
    cosine = jnp.matmul(rows, rows.T, precision="highest")
    both = jnp.tile(environment, 2)
    known = (both[:, None] == both) & ~jnp.eye(2 * n, dtype=bool)
    members, count = _members(environment, environments, cosine.dtype)
    share = jnp.tile(members / jnp.maximum(2 * count[:, None], 1), 2)  # of a row in its mean

    def naming(temperature: float) -> tuple[Array, Array, Array]:
        z = cosine / temperature
        own = jnp.tile(jnp.diagonal(z, n), 2)
        return z, own, jax.nn.logsumexp(jnp.where(known, z, -jnp.inf), axis=-1)

    _, own, total = naming(temperature)
    loss = jnp.sum(share * (total - own), axis=1)
    z, own, total = naming(penalty_temperature)
    pull = jnp.where(known, jnp.exp(z - total[:, None]) * z, 0) * share.sum(axis=0)[:, None]
    positive = jnp.sum(share * (jnp.exp(own - total) - 1) * own, axis=1)
    order = jnp.argsort(environment, stable=True)
    kind = environment[order]
    later, earlier = (part[:, order] for part in columns(pull))
    follows = jnp.append(kind[1:] == kind[:-1], False)
    negative = later + jnp.where(follows, jnp.roll(earlier, -1, axis=1), 0)
    negative = jnp.sum(members[:, order] * jnp.sum(jnp.square(negative), axis=0), axis=1)
    return loss, jnp.square(positive) + negative, count


def columns(pull: Array) -> tuple[Array, Array]:
    """Sum what stands in the negative columns of logits that are not laid out.

    In the row of example b the logit of example k of view v stands v + (k > b) places before the
    k-th of that view: a column is the sum under one member over the rows of later members, and
    under the next member over the rows of earlier ones. Partners, on the diagonals, are in none.

    Args:
      pull: f32[2N, 2N], of rows and columns [view 1; view 2].

    Returns:
      Over the rows of later examples and of earlier ones: f32[2, N] each, views first.
    """
    n = len(pull) // 2
    blocks = pull.reshape(2, n, 2, n).sum(axis=0)
    blocks = jnp.moveaxis(blocks, 1, 0)  # views, rows, columns
    return jnp.tril(blocks, -1).sum(axis=1), jnp.triu(blocks, 1).sum(axis=1)


def mixed_by_environment(
    a: Array,
    b: Array,
    share: Array,
    partner: Array,
    environment: Array,
    environments: int,
    temperature: float,
    per_example: bool = False,
) -> tuple[Array, Array, Array]:
    """Name view 2 of both examples of a mixture, inside each environment; and the column penalty.

    Args:
      a: f32[N, D], of mixtures: `share` of example i, the rest of example partner[i].
      b: f32[N, D], of view 2.
      share: f32[N].
      partner: i32[N], of the same environment.
      environment, environments: as in `by_environment`.
      temperature: divides the cosines, in the penalty too.
      per_example: weigh the errors of each example by its own share; theirs are averaged first, so
        that only the mean share of an environment counts.

    Returns:
      As `by_environment`.
    """
    n = len(a)
    z = jnp.matmul(l2_normalize(a), l2_normalize(b).T, precision="highest") / temperature
    members, count = _members(environment, environments, z.dtype)
    of_each = members / jnp.maximum(count[:, None], 1)
    if not per_example:
        share = jnp.sum(of_each * share, axis=1)[environment]
    known = environment[:, None] == environment
    total = jax.nn.logsumexp(jnp.where(known, z, -jnp.inf), axis=-1)
    named = share[:, None] * jnp.eye(n, dtype=bool)
    named += (1 - share[:, None]) * (partner[:, None] == jnp.arange(n))
    loss = jnp.sum(of_each * (total - jnp.sum(named * z, axis=1)), axis=1)
    pull = jnp.where(known, jnp.exp(z - total[:, None]), 0) - named
    slope = jnp.sum(pull * z * of_each.sum(axis=0)[:, None], axis=0)
    return loss, jnp.sum(members * jnp.square(slope), axis=1), count


def _members(environment: Array, environments: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Who is in which environment f[K, N], and how many are in each f[K]."""
    members = (environment == jnp.arange(environments)[:, None]).astype(dtype)
    return members, members.sum(axis=1)
