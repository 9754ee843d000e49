"""The class of an example, voted for by its nearest neighbours in the training set.

Wu, Xiong, Yu, Lin, "Unsupervised feature learning via non-parametric instance discrimination"
(CVPR 2018), section 3.4: cosine similarity s, the k nearest, each with the weight exp(s / T) for
its class. k and T decide the number, so they stand in the config and, as `k` and `temperature`,
among the results.

Every stored view of an example is a neighbour of its own, and every held-out view asks.

Memory on the devices: the features of `BLOCK` neighbours and `QUERIES` queries, and their
similarities.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.objectives import classification
from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array

SETS = ("train", "val")
QUERIES = 1024  # that ask at once
BLOCK = 2**14  # neighbours compared at once


def reads(feature: str = "representation", **options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return feature, "label"


def check(examples: Sequence[int], k: int = 20, temperature: float = 0.07, **options: Any) -> None:
    """Raise `ValueError` unless the options suit sets of so many examples."""
    del options
    if not 1 <= k <= examples[0]:
        raise Refusal(
            f"evals.knn.k={k}: between 1 and the {examples[0]} examples among which neighbours are "
            "looked for"
        )
    if temperature <= 0:
        raise Refusal(f"evals.knn.temperature={temperature}: it divides similarities; use 0.07")


def evaluate(
    sets: Mapping[str, Mapping[str, np.ndarray]],
    k: int = 20,
    temperature: float = 0.07,
    feature: str = "representation",
) -> dict[str, float]:
    """Score the votes of the neighbours.

    Args:
      sets: "train", among which neighbours are looked for, and "val", whose classes are told; each
        with `feature` f32[n, V, D] and `label` i32[n].
      k: neighbours that vote.
      temperature: of their weights.
      feature: in which they are near.

    Returns:
      `top1`, `top5`, `k`, `temperature`.
    """
    (neighbours, labels), (queries, truth) = (_views(sets[name], feature) for name in SETS)
    scores = votes(
        neighbours, labels, queries, int(max(labels.max(), truth.max())) + 1, k, temperature
    )
    found = {f"top{n}": float(classification.top_k(scores, truth, n)) for n in (1, 5)}
    return {**found, "k": k, "temperature": temperature}


def votes(
    neighbours: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    classes: int,
    k: int,
    temperature: float,
) -> np.ndarray:
    """The weight of each class for each query: f32[m, C] of f32[n, D], i32[n] and f32[m, D].

    Of equally near neighbours the first counts as nearer.
    """
    found = []
    for first in range(0, len(queries), QUERIES):
        asked = _padded(queries[first : first + QUERIES], min(QUERIES, len(queries)))
        best = jnp.full((len(asked), k), -jnp.inf)
        where = jnp.zeros((len(asked), k), jnp.int32)
        for start in range(0, len(neighbours), BLOCK):
            block = _padded(neighbours[start : start + BLOCK], min(BLOCK, len(neighbours)))
            there = min(BLOCK, len(neighbours) - start)
            best, where = _nearer(asked, block, start, there, best, where, k)
        found.append(_weigh(best, labels[np.asarray(where)], classes, temperature))
    return np.concatenate([np.asarray(f) for f in found])[: len(queries)]


@functools.partial(jax.jit, static_argnames="k")
def _nearer(
    asked: Array, block: Array, start: Array, there: Array, best: Array, where: Array, k: int
) -> tuple[Array, Array]:
    """The k best of those so far and of a block, of which the first `there` are neighbours."""
    product = jnp.matmul(l2_normalize(asked), l2_normalize(block).T, precision="highest")
    product = jnp.where(jnp.arange(len(block)) < there, product, -jnp.inf)
    numbers = jnp.broadcast_to(start + jnp.arange(len(block)), product.shape)
    every = jnp.concatenate([best, product], axis=1)
    top, at = jax.lax.top_k(every, k)
    return top, jnp.take_along_axis(jnp.concatenate([where, numbers], axis=1), at, axis=1)


@functools.partial(jax.jit, static_argnames="classes")
def _weigh(similarity: Array, labels: Array, classes: int, temperature: Array) -> Array:
    weights = jnp.exp(similarity / temperature)
    rows = jnp.arange(len(weights))[:, None]
    return jnp.zeros((len(weights), classes)).at[rows, labels].add(weights)


def _views(given: Mapping[str, np.ndarray], feature: str) -> tuple[np.ndarray, np.ndarray]:
    """Every view as a row, with its label: f32[n V, D], i32[n V]."""
    values, labels = np.asarray(given[feature]), np.asarray(given["label"])
    return values.reshape(-1, values.shape[-1]), np.repeat(labels, values.shape[1])


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last row until there are `count`, so that every chunk has one shape."""
    missing = count - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
