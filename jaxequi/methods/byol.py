"""BYOL: the prediction of one view should be the target network's embedding of the other.

Grill et al., NeurIPS 2020; megvii-research/revisitAIRL, `exp/byol.py`.

Logged: `momentum`, and what shows a collapse (`_siamese.signs`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi import types
from jaxequi.methods import _siamese
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.objectives.regression import cosine_similarity
from jaxequi.types import Array, Batch, Features, Method, Output, Progress, PyTree


def make(
    *,
    backbone: nn.Module,
    projector: str = "4096-256",
    predictor: str = "4096-256",
    momentum: float = 0.99,
    momentum_schedule: str = "cosine",
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make BYOL.

    `extra["own"]["target"]` is the target network: backbone and projector.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      projector, predictor: widths.
      momentum, momentum_schedule: tau of the target network; "constant", or a "cosine" from it
        to 1.
      norm: of projector and predictor.
      dtype: of their computations.

    Raises:
      ValueError: widths that cannot be read or that end differently, an impossible momentum; and
        when it meets a batch, one without two views.
    """
    _siamese.check_momentum(momentum, momentum_schedule)
    options = {"norm": norm, "dtype": dtype, "last_bias": True}
    g, q = (_siamese.projector(text, **options) for text in (projector, predictor))
    _siamese.check_widths(g, q)
    online, target = _siamese.Siamese(backbone, g, q), _siamese.Siamese(backbone, g)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        theta, extra = _siamese.start(online, key, batch)
        return theta, {**extra, "own": {"target": _siamese.copy(target, theta, extra)}}

    def loss(
        theta: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        own, collections = _siamese.split(extra)
        views = _siamese.two_views(batch)
        x = [views[:, 0], views[:, 1]]
        key, target_key = jax.random.split(key)
        seen, collections = online.see(theta, collections, x, key)
        (z_1, z_2), xi = _siamese.see_target(target, own["target"], x, target_key)
        first = 2 - 2 * cosine_similarity(seen[0].prediction, z_2.embedding)
        second = 2 - 2 * cosine_similarity(seen[1].prediction, z_1.embedding)
        metrics = {"momentum": 1 - share(progress), **_siamese.signs(seen)}
        extra = {**collections, "own": {"target": xi}}
        return first + second, Output(extra, metrics, _siamese.stack(seen))

    def share(progress: Progress) -> Array:
        return _siamese.share(momentum, momentum_schedule, progress.fraction)

    def update(theta: PyTree, extra: PyTree, progress: Progress) -> PyTree:
        xi = _siamese.average(extra["own"]["target"], theta, share(progress))
        return {**extra, "own": {"target": xi}}

    def encode(theta: PyTree, extra: PyTree, views: Array) -> Features:
        return online.evaluate(theta, types.collections(extra), views)

    return Method(init=init, loss=loss, encode=encode, update=update)
