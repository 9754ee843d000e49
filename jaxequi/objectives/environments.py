"""Environments of each class, and the penalty on what a class owes to them.

Wang et al., "Equivariance and invariance inductive bias for learning from insufficient data"
(EqInv, ECCV 2022). The environments of a class k split all examples of *other* classes in two
halves: those that look like class k, and those that do not. How well the rows of class k are told
from the others should not depend on which half the others come from.

A table of environments is int8[C, N]: of class k and example i the environment 0 or 1, `OWN_CLASS`
where i is of class k itself. Wangt-CN/EqInv keeps a dict of index tensors (`utils_cluster.py`).
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import Array

ENVIRONMENTS = 2
OWN_CLASS = -1
BLOCK = 1024  # examples compared with all classes at once


def scores(
    features: np.ndarray, labels: np.ndarray, classes: int, debias: bool = True
) -> np.ndarray:
    """Mean cosine of every example with the examples of each class.

    `utils_cluster.py`, `cal_cosine_distance`, which compares all pairs: the mean over a class of
    cosines is the product with the mean of its directions, so that N x N x D becomes N x C x D.

    Memory: the result, and f64 of `BLOCK` examples and of the C means; 1000 classes of 50 examples
    at D = 2048 take 200 MB, 16 MB and 16 MB beside the features' 400 MB.

    Args:
      features: f32[N, D], of any length.
      labels: i[N].
      classes: C.
      debias: take off each score the mean score of the examples of the same class.

    Returns:
      f32[C, N]. Sums are taken in f64 and rounded once, so that equal scores are equal.
    """
    means = np.zeros((classes, features.shape[-1]))
    order = np.argsort(labels, kind="stable")
    for start in range(0, len(features), BLOCK):
        block = order[start : start + BLOCK]
        here, first = np.unique(labels[block], return_index=True)
        means[here] += np.add.reduceat(_directions(features[block]), first)
    counts = np.bincount(labels, minlength=classes)
    means /= np.maximum(counts, 1)[:, None]
    found = np.empty((classes, len(features)), np.float32)
    for start in range(0, len(features), BLOCK):
        rows = _directions(features[start:][:BLOCK])
        if debias:
            rows -= means[labels[start : start + BLOCK]]
        found[:, start : start + BLOCK] = means @ rows.T
    return found


def _directions(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def assign(
    features: np.ndarray, labels: np.ndarray, classes: int, debias: bool = True
) -> np.ndarray:
    """Make the table of environments of a training set.

    Of the n examples of other classes the ceil(n / 2) with the highest `scores` are environment 0,
    of equal ones those that come first.

    Args:
      features, labels, classes, debias: see `scores`.

    Returns:
      int8[C, N].
    """
    table = np.full((classes, len(features)), OWN_CLASS, np.int8)
    for k, score in enumerate(scores(features, labels, classes, debias)):
        others = np.flatnonzero(labels != k)
        score, half = score[others], -(-len(others) // ENVIRONMENTS)
        if not half:
            continue
        bound = np.partition(score, len(others) - half)[len(others) - half]
        near = score > bound
        near[np.flatnonzero(score == bound)[: half - near.sum()]] = True
        table[k, others] = np.where(near, 0, 1)
    return table


def check(table: np.ndarray, labels: np.ndarray) -> None:
    """Raise `ValueError` unless each class has examples, and others in both environments."""
    classes = len(table)
    counts = np.bincount(labels, minlength=classes)
    lacking = [k for k in range(classes) if not counts[k] or set(range(ENVIRONMENTS)) - {*table[k]}]
    if lacking:
        raise Refusal(
            f"{len(lacking)} of {classes} classes, such as {lacking[0]}, have no example of their "
            "own or none of other classes in each environment: nothing can differ between "
            "environments. Take data in which every class has examples, and there are two of others"
        )


class Saved(NamedTuple):
    """A table in a file, and what it was made of.

    Attributes:
      table: int8[C, N].
      start: digest of the network whose features made it; "" where no network did.
      data: digest of the training set.
    """

    table: np.ndarray
    start: str
    data: str


def save(file: str | pathlib.Path, saved: Saved) -> None:
    """Write a table into an npz file."""
    np.savez(file, table=saved.table, start=saved.start, data=saved.data)


def read(file: str | pathlib.Path) -> Saved:
    """Read what `save` wrote.

    Raises:
      ValueError: no such file, or another one.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            saved = Saved(stored["table"], str(stored["start"]), str(stored["data"]))
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(
            f"{file} is no table of environments ({error}); write one with "
            "python -m jaxequi.prepare.environments RUN OUT.npz"
        ) from error
    if saved.table.dtype != np.int8 or saved.table.ndim != 2:
        raise Refusal(
            f"{file}: a table of environments is int8[C, N], not "
            f"{saved.table.dtype}{list(saved.table.shape)}"
        )
    return saved


def look_up(table: Array, labels: Array, index: Array) -> Array:
    """Environment of example j for the class of example i: i32[B, B].

    Args:
      table: int8[C, N].
      labels: i32[B].
      index: i32[B], rows of the training set. An example that is in no environment of a class
        counts as of environment 0, as in the reference.
    """
    return jnp.maximum(table[labels[:, None], index], 0).astype(jnp.int32)


class Risks(NamedTuple):
    """The contrastive loss of the class of each row, in each environment.

    Attributes:
      loss: f32[B, 2].
      slope: f32[B, 2], derivative of the loss by a factor of all similarities, at 1.
      share: f32[B], weights of the rows with which a sum over them is the mean over the classes
        that are there; 0 of a class without two rows.
    """

    loss: Array
    slope: Array
    share: Array


def risks(
    rows: Array,
    labels: Array,
    environment: Array,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
) -> Risks:
    """Compute `objectives.contrastive.supcon` of each class against each environment's others.

    The rows of a class name each other among themselves and those rows of other classes that are
    in the environment: `vipriors_eqinv.py`, `train_env`, which loops over classes and environments.
    Here all of them read one matrix of similarities. Memory: a few f32[B, B].

    Args:
      rows: f32[B, D], of any length; their directions are compared.
      labels: i32[B].
      environment: i32[B, B], see `look_up`; not read where the labels are equal.
      temperature, base_temperature: as of `supcon`.
    """
    rows = l2_normalize(rows)
    similarity = jnp.matmul(rows, rows.T, precision="highest") / temperature
    same, itself = labels[:, None] == labels, jnp.eye(len(rows), dtype=bool)
    positive = same & ~itself
    partners, members = jnp.sum(positive, axis=-1), jnp.sum(same, axis=-1)
    alone = partners == 0
    named = jnp.sum(jnp.where(positive, similarity, 0), axis=-1) / jnp.maximum(partners, 1)
    losses, slopes = [], []
    for e in range(ENVIRONMENTS):
        # A row that is alone sees itself, so that what is not counted is a number.
        seen = positive | (~same & (environment == e)) | (itself & alone[:, None])
        among = jnp.where(seen, similarity, -jnp.inf)
        total = jax.nn.logsumexp(among, axis=-1)
        expected = jnp.sum(jax.nn.softmax(among, axis=-1) * similarity, axis=-1)
        losses.append(total - named)
        slopes.append(expected - named)
    mean = same / members[:, None]  # over the rows of a class
    factor = temperature / base_temperature
    loss, slope = (
        factor * jnp.matmul(mean, jnp.stack(each, axis=-1), precision="highest")
        for each in (losses, slopes)
    )
    share = jnp.where(alone, 0, 1 / members)
    return Risks(loss, slope, share / jnp.maximum(jnp.sum(share), 1))


def rex(found: Risks) -> Array:
    """Mean over the classes of the unbiased variance of the loss over environments: f32[].

    Krueger et al., ICML 2021 (V-REx); the published penalty of EqInv.
    """
    return jnp.sum(found.share * jnp.var(found.loss, axis=-1, ddof=1))


def irm(found: Risks) -> Array:
    """Mean over classes and environments of the squared derivative by a scale: f32[].

    Arjovsky et al., arXiv 1907.02893 (IRMv1): the classifier that is optimal in every environment
    at once is a fixed factor of 1 on all similarities. The reference's `--inv irm` stops with an
    error, so that there is nothing to compare it with.
    """
    return jnp.sum(found.share * jnp.mean(jnp.square(found.slope), axis=-1))


PENALTIES = {"rex": rex, "irm": irm}


def check_penalty(name: str) -> None:
    """Raise `ValueError` unless there is such a penalty."""
    if name not in PENALTIES:
        raise unknown("inv", name, PENALTIES)
