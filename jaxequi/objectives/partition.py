"""How much a soft partition of the examples breaks the invariance: what IP-IRM's search maximises.

Wangt-CN/IP-IRM, `utils.py`: `auto_split_offline`, `soft_contrastive_loss`; `utils_mixup.py`. Each
example is in environment e with a share, and weighs so much as a row and as a negative of e.

Shares weigh columns of similarities that do not depend on them: InfoNCE in all environments, and
its gradient by the shares, are products of three matrices [2N, 2N] with thin ones [2N, K].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array

MODES = ("irm", "variance")
CONSTRAINTS = ("none", "entropy", "relaxed")
TILE = 512  # examples at most
TINY = 1e-17  # smaller sums of shares count as this: f32 has the number N over its square
SMALLEST = 1e-37  # of which f32 has the reciprocal
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
      losses: `infonce` or `mixed_infonce` of a batch.
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
    entropy = -jnp.sum(mean * jnp.log(jnp.maximum(mean, SMALLEST)))
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
    a, b = l2_normalize(a), l2_normalize(b)
    own = jnp.sum(a * b, axis=1, keepdims=True)
    cosines = _Tiles.of(a, b)
    tiles = {t: cosines.weights(t) for t in {temperature, penalty_temperature}}

    def of(shares: Array) -> tuple[Array, Array]:
        others = 2 * _without_own(shares)
        # of a row of one of the two views in the mean of all
        row = shares / (2 * jnp.maximum(jnp.sum(shares, axis=0), TINY) if normalize else 2 * n)
        gain = (2 * n - 2) / others if n > 1 else jnp.zeros_like(shares)
        both = jnp.stack([shares, shares])

        def naming(temperature: float) -> tuple[Array, Array, Array]:
            first = jnp.exp((own - 1) / temperature)
            total = first + gain * tiles[temperature].sums(both)
            return first, total, jnp.log(total) - (own - 1) / temperature

        _, _, error = naming(temperature)
        loss = jnp.sum(row * error, axis=(0, 1))
        first, total, _ = naming(penalty_temperature)
        z = own / penalty_temperature
        positive = jnp.sum(row * (first / total - 1) * z, axis=(0, 1))
        pull = row * gain / total
        turned = cosines.weights(penalty_temperature, times_logits=True)
        later, earlier = (shares * part for part in turned.columns(pull))
        columns = later[:, :-1] + earlier[:, 1:]  # as `irm.columns` says
        return loss, jnp.square(positive) + jnp.sum(jnp.square(columns), axis=(0, 1))

    return of


class _Tiles:
    """A symmetric matrix over both views of all examples, its upper half in tiles.

    Half of it is never computed, a tile stays in the cache, and above the diagonal no example is
    both earlier and later than another: nothing is masked there. Vectors are f32[2, N, K].

    Attributes:
      starts: where the blocks of examples begin, and N.
      tiles: of blocks i and j, i <= j: f32[2 n_i, 2 n_j].
    """

    def __init__(self, starts: Sequence[int], tiles: Mapping[tuple[int, int], Array]):
        self.starts, self.tiles = starts, tiles

    @classmethod
    def of(cls, a: Array, b: Array) -> _Tiles:
        """The cosines of the rows of length 1, f32[N, D] each."""
        count = -(-len(a) // TILE)
        starts = [len(a) * i // count for i in range(count + 1)]
        rows = [jnp.concatenate([a[i:j], b[i:j]]) for i, j in itertools.pairwise(starts)]
        pairs = itertools.combinations_with_replacement(range(count), 2)
        return cls(starts, {(i, j): _product(rows[i], rows[j].T) for i, j in pairs})

    def weights(self, temperature: float, times_logits: bool = False) -> _Tiles:
        """exp of each cosine over temperature, but for a row's own example; times the logit.

        All are times exp(-1 / temperature), the largest possible: none overflows.
        """

        def one(place: tuple[int, int], cosine: Array) -> Array:
            weight = jnp.exp((cosine - 1) / temperature)
            weight = weight * cosine / temperature if times_logits else weight
            row, column = self._examples(place)
            return jnp.where(row != column, weight, 0) if place[0] == place[1] else weight

        return _Tiles(self.starts, {place: one(place, c) for place, c in self.tiles.items()})

    def sums(self, vector: Array) -> Array:
        """The matrix times a vector."""
        parts = self._split(vector)
        sums = [jnp.zeros_like(part) for part in parts]
        for (i, j), tile in self.tiles.items():
            if i == j:
                sums[i] += _product(tile, parts[i])
            else:
                right, below = _both(tile, parts[j], parts[i])
                sums[i], sums[j] = sums[i] + right, sums[j] + below
        return self._joined(sums)

    def columns(self, vector: Array) -> tuple[Array, Array]:
        """Sums over the rows of later and of earlier examples, each times its vector's entry."""
        parts = self._split(vector)
        later = [jnp.zeros_like(part) for part in parts]
        earlier = list(later)
        for (i, j), tile in self.tiles.items():
            if i == j:
                row, column = self._examples((i, i))
                later[i] += _product(jnp.where(column > row, tile, 0), parts[i])
                earlier[i] += _product(jnp.where(column < row, tile, 0), parts[i])
            else:
                right, below = _both(tile, parts[j], parts[i])
                later[i], earlier[j] = later[i] + right, earlier[j] + below
        return self._joined(later), self._joined(earlier)

    def _examples(self, place: tuple[int, int]) -> tuple[Array, Array]:
        blocks = (jnp.arange(self.starts[i], self.starts[i + 1]) for i in place)
        row, column = (jnp.tile(block, 2) for block in blocks)
        return row[:, None], column

    def _split(self, vector: Array) -> list[Array]:
        parts = jnp.split(vector, self.starts[1:-1], axis=1)
        return [part.reshape(-1, part.shape[-1]) for part in parts]

    def _joined(self, parts: Sequence[Array]) -> Array:
        return jnp.concatenate([p.reshape(2, -1, p.shape[-1]) for p in parts], axis=1)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


@jax.custom_vjp
def _both(matrix: Array, right: Array, left: Array) -> tuple[Array, Array]:
    """matrix @ right, and matrix^T @ left; the gradient by the vectors is the same again."""
    return _product(matrix, right), _product(left.T, matrix).T


def _both_forward(matrix: Array, right: Array, left: Array) -> tuple[Any, Any]:
    return _both(matrix, right, left), (matrix, right, left)


def _both_backward(residuals: Any, slopes: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    matrix, right, left = residuals
    of_left, of_right = _both(matrix, slopes[1], slopes[0])
    of_matrix = _product(slopes[0], right.T) + _product(left, slopes[1].T)
    return of_matrix, of_right, of_left


_both.defvjp(_both_forward, _both_backward)


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
            logs = jnp.log(jnp.maximum(weight, SMALLEST)) + logits - largest - jnp.log(total)
            of_row = jnp.sum(named, axis=1, keepdims=True)
            pull = (of_row * weight * weights / total - named) * logits * row[:, None]
            loss = -jnp.sum(row[:, None] * jnp.where(named > 0, named * logs, 0))
            return loss, jnp.sum(jnp.square(jnp.sum(pull, axis=0)))

        return jax.vmap(one, in_axes=1)(shares, _without_own(shares))

    return of
