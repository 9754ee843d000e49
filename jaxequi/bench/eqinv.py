"""EqInv's environments: the penalty of a step, and the table of a training set.

The reference loops over the classes of a batch and over all pairs of a training set. The loops here
do the same arithmetic, class by class, in numpy; no gradient is taken in them.

Processor's time on two CPU cores that others used too, 2026-11-27, at D = 2048. Penalty and its
gradient, 128 examples in two views: 10.7 ms with 1000 classes, 10.4 ms with 100, in 11 MB; the loop
without gradient 9.5 s (the reference's, in PyTorch with gradient, was measured at 1.42 s). Table
of 1000 classes of 50 examples: 9.6 s, the loop over pairs 516 s (scaled up from its first class),
in 200 MB of scores and 50 MB of table beside 410 MB of features; the same environments.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.bench import _program
from jaxequi.objectives import environments
from jaxequi.types import Array


def run(
    classes: int = 1000,
    shots: int = 10,
    batch_size: int = 128,
    width: int = 2048,
    table_shots: int = 50,
    looped_classes: int = 20,
    repeats: int = 5,
) -> dict[str, Any]:
    """Time both, and their loops.

    Args:
      classes, width: of the data and of the features.
      shots: examples of a class, of the penalty.
      batch_size: examples of a step, each in two views.
      table_shots: examples of a class, of the table.
      looped_classes: how many classes the table's loop does; its time is scaled up.
      repeats: of which the least counts.
    """
    return {
        "penalty": {
            f"{count} classes": _penalty(count, shots, batch_size, width, repeats)
            for count in (classes, max(2, classes // 10))
        },
        "table": _table(classes, table_shots, width, looped_classes),
    }


class Watch:
    """Seconds spent inside `with`, by the clock and by the processor, of all times together."""

    def __init__(self) -> None:
        self.clock = self.processor = 0.0

    def __enter__(self) -> Watch:
        self.clock -= time.perf_counter()
        self.processor -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.clock += time.perf_counter()
        self.processor += time.process_time()


def _penalty(classes: int, shots: int, batch_size: int, width: int, repeats: int) -> dict[str, Any]:
    """The penalty with its gradient for the mask."""
    random = np.random.default_rng(0)
    examples = classes * shots
    table = random.integers(0, 2, (classes, examples)).astype(np.int8)
    index = np.tile(random.choice(examples, batch_size, replace=examples < batch_size), 2)
    labels = index // shots
    features = random.normal(size=(2 * batch_size, width)).astype(np.float32)
    given = [jnp.asarray(a) for a in (features, table, labels, index)]

    def penalty(mask: Array, features: Array, table: Array, labels: Array, index: Array) -> Array:
        rows = jax.nn.sigmoid(mask) * features
        seen = environments.look_up(table, labels, index)
        return environments.rex(environments.risks(rows, labels, seen))

    mask = jnp.linspace(0, 1, width)
    program = jax.jit(jax.value_and_grad(penalty)).lower(mask, *given).compile()
    timed = _program.seconds(lambda: program(mask, *given), repeats)
    value, _ = program(mask, *given)
    rows = features * np.asarray(jax.nn.sigmoid(mask))
    with Watch() as loop:
        looped = _looped_penalty(rows, table, labels, index)
    memory: Any = program.memory_analysis()
    np.testing.assert_allclose(value, looped, rtol=1e-3)
    return {
        **timed,
        "loop_seconds_without_gradient": loop.clock,
        "loop_processor_seconds": loop.processor,
        "bytes": memory.temp_size_in_bytes,
        "table_bytes": table.nbytes,
    }


def _looped_penalty(
    rows: np.ndarray, table: np.ndarray, labels: np.ndarray, index: np.ndarray
) -> float:
    """The definition, class by class and environment by environment."""
    variances = []
    for k in range(len(table)):
        if not (labels == k).any():
            continue
        losses = []
        for e in range(environments.ENVIRONMENTS):
            chosen = (labels == k) | (table[k, index] == e)
            unit = rows[chosen] / np.linalg.norm(rows[chosen], axis=1, keepdims=True)
            similarity, own = unit @ unit.T / 0.1, labels[chosen] == k
            np.fill_diagonal(similarity, -np.inf)
            total = np.log(np.exp(similarity[own]).sum(axis=1))
            partners = own & ~np.eye(len(own), dtype=bool)[own]
            named = np.where(partners, similarity[own], 0).sum(axis=1) / partners.sum(axis=1)
            losses.append(0.1 / 0.07 * np.mean(total - named))
        variances.append(np.var(losses, ddof=1))
    return float(np.mean(variances))


def _table(classes: int, shots: int, width: int, looped_classes: int) -> dict[str, Any]:
    """The table of all classes, and the loop over pairs of the first few of them."""
    labels = np.repeat(np.arange(classes), shots)
    features = np.random.default_rng(0).normal(size=(len(labels), width)).astype(np.float32)
    with Watch() as ours:
        table = environments.assign(features, labels, classes)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    looped_classes, loop, agreed = min(looped_classes, classes), Watch(), 0.0
    for k in range(looped_classes):
        with loop:
            others = np.flatnonzero(labels != k)
            score = np.concatenate(
                [
                    (unit[rows] @ unit[labels == k].T).mean(axis=1)
                    for rows in np.array_split(others, -(-len(others) // 1024))
                ]
            )
            of_class = labels[others]
            for other in range(classes):
                if other != k:
                    score[of_class == other] -= score[of_class == other].mean()
            half = -(-len(others) // 2)
            near = others[np.argsort(-score, kind="stable")[:half]]
        agreed += np.sum(table[k, near] == 0) / half
    return {
        "seconds": ours.clock,
        "processor_seconds": ours.processor,
        "loop_seconds": loop.clock / looped_classes * classes,
        "loop_processor_seconds": loop.processor / looped_classes * classes,
        "agreement": agreed / looped_classes,  # scores that differ by rounding may change places
        "feature_bytes": features.nbytes,
        "score_bytes": 4 * table.size,
        "table_bytes": table.nbytes,
    }
