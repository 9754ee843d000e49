"""How far is the view that a predictor finds from the view that it was asked for, in rotation?

PRE, the prediction retrieval error of SIE (Garrido et al., ICML 2023); facebookresearch/SIE,
`eval_prediction_errors.py`. The queries are those of `retrieval`; the candidates are all views of
all objects. Between the orientations p, q of the view asked for and the view found the error is
1 - (p . q)^2: 0 at best, 0.627 for two random views of 3DIEBench, whatever the quaternions' signs.

The similarities are N x M dot products of E numbers and are never stored. Memory, over all devices:
`SLAB * E` predictions, `BLOCK * E` candidates, `TILE * BLOCK` similarities, all f32; each slab
reads the candidates once.

The largest of the published comparisons, 527,600 held-out queries among 2.6 million views with
E = 1024, is 2 N M E = 2.9e15 operations, in 2.3 GiB: by arithmetic a minute on an accelerator that
does 5e13 f32 operations a second, two with half its speed. 5,000 among 50,000 took 12 s on two
(busy) CPU cores, 2026-11-21: 4e10 a second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxequi.evals import _queries
from jaxequi.evals._queries import Predict, Views
from jaxequi.groups import quaternions
from jaxequi.names import unknown
from jaxequi.types import Array

SLAB = 2**19  # predictions compared with all candidates in one go
TILE = 2**13  # predictions compared at once
BLOCK = 2**13  # candidates on the device at a time

MODES = {  # queries, candidates
    "train-train": ("train", ("train",)),
    "val-val": ("val", ("val",)),
    "val-all": ("val", ("train", "val")),
}


@functools.partial(jax.jit, static_argnames="normalise")
def _asked(predict: Predict, source: Array, relation: Array, normalise: bool) -> Array:
    """Predictions of a slab, tile by tile: f32[t, c, E], f32[t, c, V, K] -> f32[t, c * V, E]."""

    def tile(arrays: tuple[Array, Array]) -> Array:
        asked = _queries.predicted(predict, *arrays)
        asked = asked.reshape(-1, asked.shape[-1])
        return _queries.unit(asked, 1e-30) if normalise else asked

    return jax.lax.map(tile, (source, relation))


@functools.partial(jax.jit, static_argnames="normalise", donate_argnames=("best", "where"))
def _closer(
    asked: Array,
    candidates: Array,
    first: Array,
    count: Array,
    best: Array,
    where: Array,
    normalise: bool,
) -> tuple[Array, Array]:
    """Update each prediction's best candidate by a block of them; of equal ones the first stays.

    Args:
      asked: f32[t, T, E].
      candidates: f32[C, E], of which the first `count` are there, numbered from `first`.
      best, where: similarity f32[t, T] and number i32[t, T] of the best so far.
    """
    if normalise:
        candidates = _queries.unit(candidates, 1e-8)
    there = jnp.arange(len(candidates)) < count

    def tile(arrays: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        asked, best, where = arrays
        similarity = jnp.matmul(asked, candidates.T, precision="highest")
        similarity = jnp.where(there, similarity, -jnp.inf)
        at = jnp.argmax(similarity, axis=1)
        value = jnp.take_along_axis(similarity, at[:, None], axis=1)[:, 0]
        closer = value > best
        return jnp.where(closer, value, best), jnp.where(closer, first + at, where)

    return jax.lax.map(tile, (asked, best, where))


def _blocks(candidates: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(number of the first, how many, f32[C, E]) of all candidates in order, in equal shapes."""
    size, first = min(BLOCK, max(map(len, candidates))), 0
    for array in candidates:
        for start in range(0, len(array), size):
            block = np.asarray(array[start : start + size], np.float32)
            if not np.isfinite(block).all():
                raise ValueError("an embedding is not finite; nothing is nearest to it")
            yield first + start, len(block), _queries.padded(block, size)
        first += len(array)


def nearest(
    predict: Predict,
    views: Views,
    candidates: Sequence[np.ndarray],
    *,
    normalise: bool = True,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Find the candidate most similar to each prediction; of equal ones the first.

    Args:
      predict: the predictor.
      views: all views of the objects that are asked for.
      candidates: embeddings f32[M_i, E], numbered through; may be memory-mapped.
      normalise: compare directions (cosine); otherwise raw dot products.
      mesh: devices over which the predictions are split; all by default.

    Returns:
      i64[n, V], numbers of candidates.

    Raises:
      ValueError: arrays missing or of unequal shapes, or an embedding that is not finite.
    """
    _queries.check(views, "given")
    mesh = mesh or _queries.row_of_devices()
    predict = jax.tree_util.Partial(predict)
    source, relation = views["embedding"][:, 0], views["relation"]
    objects, count, _ = relation.shape
    chunk = _queries.objects_at_once(mesh, objects, count, TILE)
    tiles = min(math.ceil(objects / chunk), max(1, SLAB // (chunk * count)))
    found = []
    for first in range(0, objects, tiles * chunk):
        slab = slice(first, first + tiles * chunk)
        asked = _asked(
            predict,
            *(
                _queries.split(mesh, tiled.reshape(tiles, chunk, *tiled.shape[1:]), 1)
                for tiled in (_queries.padded(a[slab], tiles * chunk) for a in (source, relation))
            ),
            normalise,
        )
        best, where = (
            _queries.split(mesh, np.full((tiles, chunk * count), value, dtype), 1)
            for value, dtype in ((-np.inf, np.float32), (0, np.int32))
        )
        for number, there, block in _blocks(candidates):
            block = jax.device_put(block, _queries.whole(mesh))
            best, where = _closer(asked, block, number, there, best, where, normalise)
        where = jax.device_get(jax.device_put(where, _queries.whole(mesh)))
        found.append(where.reshape(-1, count))
    return np.concatenate(found)[:objects].astype(np.int64)


def agreement(asked: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Dot products of the orientations of two lists of latents: f64[N] of f[N, L >= 3] each."""
    p, q = (
        quaternions.from_euler_xyz(np.asarray(latent, np.float64)[:, :3])
        for latent in (asked, found)
    )
    return np.sum(p * q, axis=-1)


def evaluate(
    sets: Mapping[str, Views],
    predict: Predict,
    *,
    modes: Sequence[str] = tuple(MODES),
    normalise: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """PRE of each mode, as `val-all/pre`.

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
                raise ValueError(f"the mode {mode!r} needs the set {name!r}; there is {list(sets)}")
            _queries.check(sets[name], name)
        flat = [
            {key: sets[name][key].reshape(-1, sets[name][key].shape[-1]) for key in sets[name]}
            for name in targets
        ]
        found = nearest(
            predict, sets[query], [f["embedding"] for f in flat], normalise=normalise, mesh=mesh
        )
        latent = np.concatenate([f["latent"] for f in flat])
        asked = sets[query]["latent"]
        dots = agreement(asked.reshape(-1, asked.shape[-1]), latent[found.reshape(-1)])
        metrics[f"{mode}/pre"] = float(np.mean(1 - np.square(dots)))
    return metrics
