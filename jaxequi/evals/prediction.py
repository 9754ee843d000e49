"""How far is the view that a predictor finds from the view that it was asked for, in rotation?

PRE, the prediction retrieval error of SIE (Garrido et al., ICML 2023); facebookresearch/SIE,
`eval_prediction_errors.py`. The queries are those of `retrieval`; the candidates are all views of
all objects. Between the orientations p, q of the view asked for and the view found the error is
1 - (p . q)^2: 0 at best, 0.627 for two random views of 3DIEBench, whatever the quaternions' signs.
Where several candidates are equally near, the error is the mean of theirs. The first of them, which
the reference takes, would be view 0 wherever all views of an object have one embedding: a good
guess if that view happens to stand upright, and always right for the query whose source it is.

The similarities are N x M dot products of E numbers and are never stored. Memory, over all devices:
`SLAB * E` predictions, `BLOCK * E` candidates, `TILE * BLOCK` similarities and as many errors, all
f32; each slab reads the candidates once.

The largest of the published comparisons, 527,600 held-out queries among 2.6 million views with
E = 1024, is 2 N M E = 2.9e15 operations, in 2.3 GiB: by arithmetic a minute on an accelerator that
does 5e13 f32 operations a second, two with half its speed. 5,000 among 50,000 took 12 s on two
(busy) CPU cores, 2026-11-21: 4e10 a second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxequi.errors import Refusal
from jaxequi.evals import _queries
from jaxequi.evals._queries import Predict, Views
from jaxequi.groups import quaternions
from jaxequi.names import unknown
from jaxequi.types import Array, Predictor

SLAB = 2**19  # predictions compared with all candidates in one go
TILE = 2**13  # predictions compared at once
BLOCK = 2**13  # candidates on the device at a time

SETS = ("train", "val")
MODES = {  # queries, candidates
    "train-train": ("train", ("train",)),
    "val-val": ("val", ("val",)),
    "val-all": ("val", ("train", "val")),
}


class _Best(NamedTuple):
    """What is known of each prediction's nearest candidates: arrays [t, T].

    Attributes:
      similarity: f32, of the nearest so far.
      first: i32, number of the first candidate that is so near.
      ties: f32, how many are.
      error: f32, the sum of their errors.
    """

    similarity: Array
    first: Array
    ties: Array
    error: Array


@jax.jit
def _asked(predict: Predict, source: Array, relation: Array) -> Array:
    """Predictions of a slab, tile by tile: f32[t, c, E], f32[t, c, V, K] -> f32[t, c * V, E]."""

    def tile(arrays: tuple[Array, Array]) -> Array:
        asked = _queries.predicted(predict, *arrays)
        # The length of a prediction changes no order, but an overflow of its products would.
        return _queries.unit(asked.reshape(-1, asked.shape[-1]), 1e-30)

    return jax.lax.map(tile, (source, relation))


@functools.partial(jax.jit, static_argnames="normalise", donate_argnames="best")
def _closer(
    asked: Array,
    pose: Array,
    candidates: Array,
    poses: Array,
    first: Array,
    count: Array,
    best: _Best,
    normalise: bool,
) -> _Best:
    """Update each prediction's nearest candidates by a block of them.

    Args:
      asked, pose: predictions f32[t, T, E] and the orientations that they are asked for [t, T, 4].
      candidates, poses: f32[C, E] and f32[C, 4], of which the first `count` are there, numbered
        from `first`.
    """
    if normalise:
        candidates = _queries.unit(candidates, 1e-8)
    there = jnp.arange(len(candidates)) < count

    def tile(arrays: tuple[Array, Array, _Best]) -> _Best:
        asked, pose, best = arrays
        similarity = jnp.matmul(asked, candidates.T, precision="highest")
        similarity = jnp.where(there, similarity, -jnp.inf)
        at = jnp.argmax(similarity, axis=1)
        value = jnp.take_along_axis(similarity, at[:, None], axis=1)[:, 0]
        nearest = there & (similarity == value[:, None])
        error = 1 - jnp.square(jnp.matmul(pose, poses.T, precision="highest"))
        ties, error = jnp.sum(nearest, axis=1, dtype=jnp.float32), jnp.sum(error, 1, where=nearest)
        closer, equal = value > best.similarity, value == best.similarity
        return _Best(
            similarity=jnp.where(closer, value, best.similarity),
            first=jnp.where(closer, first + at, best.first),
            ties=jnp.where(closer, ties, best.ties + jnp.where(equal, ties, 0)),
            error=jnp.where(closer, error, best.error + jnp.where(equal, error, 0)),
        )

    return jax.lax.map(tile, (asked, pose, best))


def _blocks(
    candidates: Sequence[Views],
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """(number of the first, how many, f32[C, E], poses f32[C, 4]), in order and equal shapes."""
    flat = [
        [views[key].reshape(-1, views[key].shape[-1]) for key in ("embedding", "latent")]
        for views in candidates
    ]
    size, number = min(BLOCK, max(len(embedding) for embedding, _ in flat)), 0
    for embedding, latent in flat:
        for start in range(0, len(embedding), size):
            block = np.asarray(embedding[start : start + size], np.float32)
            if not np.isfinite(block).all():
                raise Refusal("an embedding is not finite; nothing is nearest to it")
            poses = _poses(latent[start : start + size])
            yield (
                number + start,
                len(block),
                _queries.padded(block, size),
                _queries.padded(poses, size),
            )
        number += len(embedding)


def _poses(latent: np.ndarray) -> np.ndarray:
    pose = quaternions.from_euler_xyz(np.asarray(latent, np.float64)[..., :3])
    return pose.astype(np.float32)


def nearest(
    predict: Predict,
    views: Views,
    candidates: Sequence[Views],
    *,
    normalise: bool = True,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the candidates most similar to each prediction, and how wrong their orientation is.

    Args:
      predict: the predictor.
      views: all views of the objects that are asked for.
      candidates: sets of views, all looked through; numbered set by set, object by object.
      normalise: compare directions (cosine); otherwise raw dot products.
      mesh: devices over which the predictions are split; all by default.

    Returns:
      i64[n, V], the number of the nearest candidate, the first if several are equally near; and
      f32[n, V], the mean error 1 - (p . q)^2 of all that are.

    Raises:
      ValueError: arrays missing or of unequal shapes, or an embedding or prediction that is not
        finite.
    """
    _queries.check(views, "given")
    mesh = mesh or _queries.row_of_devices()
    predict = jax.tree_util.Partial(predict)
    source, relation = views["embedding"][:, 0], views["relation"]
    objects, count, _ = relation.shape
    chunk = _queries.objects_at_once(mesh, objects, count, TILE)
    tiles = min(math.ceil(objects / chunk), max(1, SLAB // (chunk * count)))
    found, errors = [], []
    for start in range(0, objects, tiles * chunk):
        slab = slice(start, start + tiles * chunk)
        source_, relation_, pose = (
            _queries.split(mesh, tiled.reshape(tiles, chunk, *tiled.shape[1:]), 1)
            for tiled in (
                _queries.padded(a, tiles * chunk)
                for a in (source[slab], relation[slab], _poses(views["latent"][slab]))
            )
        )
        asked = _asked(predict, source_, relation_)
        pose = pose.reshape(tiles, chunk * count, 4)
        best = _Best(
            *(
                _queries.split(mesh, np.full((tiles, chunk * count), value, dtype), 1)
                for value, dtype in zip((-np.inf, 0, 0, 0), ("f4", "i4", "f4", "f4"))
            )
        )
        for number, there, *block in _blocks(candidates):
            placed = [_queries.on_each(mesh, a) for a in block]
            best = _closer(asked, pose, *placed, number, there, best, normalise)
        best = jax.device_get(jax.device_put(best, _queries.whole(mesh)))
        if not best.ties.all():
            raise Refusal("a prediction is not finite; nothing is nearest to it")
        found.append(best.first.reshape(-1, count))
        errors.append((best.error / best.ties).reshape(-1, count))
    return (
        np.concatenate(found)[:objects].astype(np.int64),
        np.concatenate(errors)[:objects],
    )


def errors(
    sets: Mapping[str, Views],
    predict: Predict,
    *,
    modes: Sequence[str] = tuple(MODES),
    normalise: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """PRE of each mode, by its name.

    Args:
      sets: "train" and "val", as far as the modes need them.
      predict: the predictor.
      modes: "train-train", "val-val" or "val-all": the set asked for, and where it is looked for.
      normalise: compare directions (cosine); otherwise raw dot products.
      mesh: devices over which the predictions are split; all by default.

    Raises:
      ValueError: unknown mode, or a set that is missing or does not fit.
    """
    metrics = {}
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        query, targets = MODES[mode]
        for name in {query, *targets}:
            if name not in sets:
                raise Refusal(f"the mode {mode!r} needs the set {name!r}; there is {list(sets)}")
            _queries.check(sets[name], name)
        _, distance = nearest(
            predict, sets[query], [sets[name] for name in targets], normalise=normalise, mesh=mesh
        )
        metrics[mode] = float(np.mean(distance, dtype=np.float64))
    return metrics


def reads(**options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return "predictable", "latent"


def check(examples: Sequence[int], modes: Sequence[str] = tuple(MODES), **options: Any) -> None:
    """Raise `ValueError` unless the options suit the evaluation."""
    del examples, options
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)


def evaluate(
    sets: Mapping[str, Mapping[str, np.ndarray]],
    predictor: Predictor,
    modes: Sequence[str] = tuple(MODES),
    normalise: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """PRE of each mode; see `errors`.

    Args:
      sets: "train" and "val": "predictable" f32[n, V, E] and "latent" f32[n, V, L], of all stored
        views.
      predictor: of those embeddings.

    Returns:
      `pre/<mode>`.
    """
    views = {name: _queries.views(given, predictor.relation) for name, given in sets.items()}
    found = errors(views, predictor.predict, modes=modes, normalise=normalise, mesh=mesh)
    return {f"pre/{mode}": value for mode, value in found.items()}
