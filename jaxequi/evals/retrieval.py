"""Does a predictor find the view that it was asked for, among the views of the object?

MRR and H@k of SIE (Garrido et al., ICML 2023); facebookresearch/SIE, `eval_MRR_Hk.py`. View 0 of
an object is the source. For each of its V views the predictor turns the source's embedding by the
relation of the two, and the V views are sorted by their similarity with the prediction. The rank
of the right one is 1 + the number of views strictly more similar + half the number of others that
are equally similar: the mean of the ranks that a tie leaves open (the reference's sort draws one
of them, as it happens). MRR is the mean of 1 / rank, and H@k the share of ranks up to k; so the
views of a tie, whose rank may be 2.5, count towards H@k all or none.

Guessing among 50 views scores MRR 0.090, H@1 0.02, H@5 0.10. An embedding that is the same for all
views of an object has the rank of a guess, 25.5, everywhere: MRR 0.039, H@k 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxequi.evals import _queries
from jaxequi.evals._queries import Predict, Views
from jaxequi.types import Array, Predictor

SETS = ("val",)
AT_ONCE = 8192  # predictions in memory at a time


@functools.partial(jax.jit, static_argnames=("normalise", "source"))
def _ranks(
    predict: Predict, embedding: Array, relation: Array, normalise: bool, source: bool
) -> Array:
    # The prediction's length changes no rank, but an overflow of its products would.
    asked = _queries.unit(_queries.predicted(predict, embedding[:, 0], relation), 1e-30)
    embedding = embedding.astype(jnp.float32)
    if normalise:
        embedding = _queries.unit(embedding, 1e-8)
    # The right view's similarity is read off the same product as the others': computed apart it
    # would differ in its last bit and cost a rank.
    similarity = jnp.einsum("nve,nwe->nvw", asked, embedding, precision="highest")
    own = jnp.diagonal(similarity, axis1=1, axis2=2)[:, :, None]
    ahead = jnp.where(similarity == own, 0.5, 1.0)
    ahead = jnp.where(similarity < own, 0.0, ahead)  # in this order: beside NaN all is ahead
    others = ~jnp.eye(embedding.shape[1], dtype=bool)
    if not source:
        others = others.at[:, 0].set(False)
    return 1 + jnp.sum(ahead, axis=2, where=others)


def ranks(
    predict: Predict,
    views: Views,
    *,
    normalise: bool = True,
    source: bool = True,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Rank the view asked for among the views of its object, 1 the best; of a tie, the mean rank.

    Args:
      predict: the predictor.
      views: all views of the objects.
      normalise: compare directions (cosine); otherwise raw dot products.
      source: as in the reference the source is a candidate too, and is asked for once, by the
        identity; False leaves both out.
      mesh: devices over which the objects are split; all by default.

    Returns:
      f32[n, V], or f32[n, V - 1] without the source.

    Raises:
      ValueError: arrays missing, of unequal shapes, or latents without three angles.
    """
    _queries.check(views, "given")
    mesh = mesh or _queries.row_of_devices()
    predict = jax.tree_util.Partial(predict)
    embedding, relation = views["embedding"], views["relation"]
    objects, count, _ = embedding.shape
    chunk = _queries.objects_at_once(mesh, objects, count, AT_ONCE)
    found = []
    for first in range(0, objects, chunk):
        arrays = (
            _queries.split(mesh, _queries.padded(a[first : first + chunk], chunk), 0)
            for a in (embedding, relation)
        )
        found.append(_ranks(predict, *arrays, normalise, source))
    every = np.concatenate(jax.device_get(jax.device_put(found, _queries.whole(mesh))))
    return every[:objects, 0 if source else 1 :]


def scores(ranks: np.ndarray, at: Sequence[int] = (1, 2, 5, 10)) -> dict[str, float]:
    """Mean reciprocal rank, and the share of ranks up to each k of `at`.

    >>> scores(np.array([1, 2, 4, 4]), at=(1, 2))
    {'mrr': 0.5, 'hit@1': 0.25, 'hit@2': 0.5}
    """
    return {
        "mrr": float(np.mean(1 / ranks)),
        **{f"hit@{k}": float(np.mean(ranks <= k)) for k in at},
    }


def reads(**options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return "predictable", "latent"


def evaluate(
    sets: Mapping[str, Mapping[str, np.ndarray]],
    predictor: Predictor,
    normalise: bool = True,
    source: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """MRR and H@1, 2, 5, 10 among the views of each object; see `ranks`.

    Args:
      sets: "val": "predictable" f32[n, V, E] and "latent" f32[n, V, L], of all stored views.
      predictor: of those embeddings.

    Returns:
      `mrr`, `hit@1`, `hit@2`, `hit@5`, `hit@10`.
    """
    views = _queries.views(sets["val"], predictor.relation)
    found = ranks(predictor.predict, views, normalise=normalise, source=source, mesh=mesh)
    return scores(found)
