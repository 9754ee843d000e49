"""How much a soft partition of the examples breaks the invariance: what IP-IRM's search maximises.

Wangt-CN/IP-IRM, `utils.py`: `auto_split_offline`, `soft_contrastive_loss`; `utils_mixup.py`. Each
example is in environment e with a share, and weighs so much as a row and as a negative of e.

Shares weigh columns of similarities that do not depend on them: InfoNCE in all environments, and
its gradient by the shares, are products of three matrices [2N, 2N] with thin ones [2N, K].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array

MODES = ("irm", "variance")
CONSTRAINTS = ("none", "entropy", "relaxed")
TINY = 1e-30  # below all sums of shares that are not lost
RELAXED = 0.6365  # nats: of two environments of which one has twice as many examples


class Risk(NamedTuple):
    """`-(contrastive + weight * variation) + constraint`, which a search minimises; all f32[]."""

    risk: Array
    contrastive: Array
    variation: Array
    constraint: Array


Losses = Callable[[Array], tuple[Array, Array]]
"""Shares f32[N, K] -> the loss and the penalty of each environment f32[K], f32[K]."""


def risk(
    losses: Losses,
    split: Array,
    *,
    weight: float,
    mode: str = "irm",
    constraint: str = "none",
    normalize: bool = True,
) -> Risk:
    """Judge a soft partition.

    Args:
      losses: `infonce`, `mixed_infonce` or `named_infonce` of a batch.
      split: f32[N, K], logits of the shares.
      weight: of the variation.
      mode: what varies: "irm", the mean penalty (v1); "variance", unbiased, of the losses (v2).
      constraint: "none"; "entropy", the negative entropy of the mean shares; "relaxed", what that
        entropy lacks to `RELAXED`. Without `normalize` both are a fifth of the negative entropy of
        the mean plus the mean of the entropies.
      normalize: whether `losses` are divided by the shares of an environment.
    """
    shares, logs = jax.nn.softmax(split), jax.nn.log_softmax(split)
    contrastive, penalty = losses(shares)
    varies = jnp.var(contrastive, ddof=1) if mode == "variance" else jnp.mean(penalty)
    mean = jnp.mean(shares, axis=0)
    entropy = -jnp.sum(mean * jnp.log(mean))
    if constraint == "none":
        kept = jnp.zeros_like(entropy)
    elif not normalize:
        kept = 0.2 * (-entropy - jnp.mean(jnp.sum(shares * logs, axis=1)))
    else:
        kept = jax.nn.relu(RELAXED - entropy) if constraint == "relaxed" else -entropy
    contrast = jnp.mean(contrastive)
    return Risk(-(contrast + weight * varies) + kept, contrast, varies, kept)


def infonce(
    a: Array,
    b: Array,
    *,
    temperature: float,
    penalty_temperature: float,
    normalize: bool = True,
) -> Losses:
    """InfoNCE of two views f32[N, D], row i of each a pair, with its column penalty.

    Args:
      temperature, penalty_temperature: divide the cosines in the loss and in the penalty.
      normalize: divide by the shares of an environment; else by the number of rows.
    """
    n = len(a)
    rows = l2_normalize(jnp.concatenate([a, b]))
    cosine = jnp.matmul(rows, rows.T, precision="highest")
    own = jnp.tile(jnp.diagonal(cosine, n), 2)[:, None]
    example = jnp.tile(jnp.arange(n), 2)
    negative, later = example[:, None] != example, example[:, None] > example

    def of(shares: Array) -> tuple[Array, Array]:
        both = jnp.tile(shares, (2, 1))
        others = 2 * _without_own(shares)
        row = both / jnp.maximum(jnp.sum(both, axis=0), TINY) if normalize else both / (2 * n)
        gain = jnp.tile((2 * n - 2) / others, (2, 1)) if n > 1 else jnp.zeros_like(both)

        def naming(temperature: float) -> tuple[Array, Array, Array, Array]:
            # exponentials are times exp(-1 / temperature), the largest possible
            weights = jnp.where(negative, jnp.exp((cosine - 1) / temperature), 0)
            first = (own - 1) / temperature
            total = jnp.exp(first) + gain * _product(weights, both)
            return weights, first, total, jnp.log(total) - first

        weights, first, total, error = naming(temperature)
        loss = jnp.sum(row * error, axis=0)
        weights, first, total, _ = naming(penalty_temperature)
        z = own / penalty_temperature
        positive = jnp.sum(row * (jnp.exp(first) / total - 1) * z, axis=0)
        pull = row * gain / total
        turned = weights * cosine / penalty_temperature  # and symmetric: rows for columns
        after, before = (
            (both * _product(jnp.where(side, turned, 0), pull)).reshape(2, n, -1)
            for side in (later.T, later)
        )
        columns = after[:, :-1] + before[:, 1:]  # as `irm.columns` says
        return loss, jnp.square(positive) + jnp.sum(jnp.square(columns), axis=(0, 1))

    return of


def _product(matrix: Array, thin: Array) -> Array:
    return jnp.matmul(matrix, thin, precision="highest")


def _without_own(shares: Array) -> Array:
    """The sum over all other rows, f32[N, K]; nothing is subtracted, which would leave no digit."""
    zero = jnp.zeros_like(shares[:1])
    before = jnp.concatenate([zero, jnp.cumsum(shares[:-1], axis=0)])
    after = jnp.concatenate([jnp.cumsum(shares[:0:-1], axis=0)[::-1], zero])
    return jnp.maximum(before + after, TINY)


def scaled_infonce(a: Array, b: Array, shares: Array, temperature: float) -> Array:
    """The loss of one environment if shares multiply the logits themselves: f32[].

    `soft_contrastive_loss` of mode v1, which no search uses.

    Args:
      a, b: f32[N, D].
      shares: f32[N].
    """
    rows = l2_normalize(jnp.concatenate([a, b]))
    both = jnp.tile(shares, 2)
    z = jnp.matmul(rows, rows.T, precision="highest") / temperature * both
    own = jnp.tile(jnp.diagonal(z, len(a)), 2)
    z = jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, z)
    return jnp.mean(jax.nn.logsumexp(z, axis=-1) - own)


def mixed_infonce(
    logits: Array, share: Array, partner: Array | None, *, normalize: bool = True
) -> Losses:
    """The loss of mixtures that name view 2 of their examples, with its column penalty.

    Args:
      logits: f32[N, N], of mixture i and view 2 of example j.
      share: f32[N], of example i in mixture i.
      partner: i32[N], the rest of mixture i; None, as the offline search has it, leaves its error
        out and weighs the errors of an environment by their shares in it. With partners they are
        averaged over all mixtures first, and the shares of the rows do not count.
      normalize: as in `infonce`.
    """
    n = len(logits)
    itself = jnp.eye(n, dtype=bool)
    largest = jnp.max(logits, axis=1, keepdims=True)
    weights = jnp.exp(logits - largest)

    def of(shares: Array) -> tuple[Array, Array]:
        def one(column: Array, others: Array) -> tuple[Array, Array]:
            gain = (n - 1) / others if n > 1 else jnp.ones_like(others)
            weight = jnp.where(itself, 1, gain[:, None] * column)  # [rows, columns]
            total = jnp.sum(weight * weights, axis=1, keepdims=True)
            named = share[:, None] * itself
            if partner is None:
                row = column / (jnp.maximum(jnp.sum(column), TINY) if normalize else n)
            else:
                named += (1 - share[:, None]) * (partner[:, None] == jnp.arange(n))
                row = jnp.full(n, 1 / n) * (1.0 if normalize else jnp.sum(column) / n)
            logs = jnp.log(jnp.maximum(weight, TINY)) + logits - largest - jnp.log(total)
            of_row = jnp.sum(named, axis=1, keepdims=True)
            pull = (of_row * weight * weights / total - named) * logits * row[:, None]
            loss = -jnp.sum(row[:, None] * jnp.where(named > 0, named * logs, 0))
            return loss, jnp.sum(jnp.square(jnp.sum(pull, axis=0)))

        return jax.vmap(one, in_axes=1)(shares, _without_own(shares))

    return of
