"""MoCo: each view names its key, that of the other view, among the keys of a queue.

v1: He et al., CVPR 2020. v2: Chen et al., arXiv 2003.04297; facebookresearch/moco,
`moco/builder.py`. v2+ and S-MoCo v2+: Huang et al., ECCV 2022; megvii-research/revisitAIRL,
`exp/mocov2_plus.py` and `exp/moco_based/mcv2p_symmlp.py`.

    v1         projector="128", temperature=0.07
    v2         projector="2048-128"
    v2+        projector="4096-256", predictor="4096-256", batch_norm=True, symmetric=True,
               shuffle=False, momentum=0.99, momentum_schedule="cosine"
    S-MoCo v2+ as v2+, with last_bias=False, predict_keys=True

The reference moves the key encoder before it encodes keys, here it moves after the optimizer: the
same sequence of encoders, because at the start both are equal.

Logged: `momentum`, `keys/top1` and `keys/top5` (share of view 1's rows whose key is the nearest of
all, or among the five nearest), and what shows a collapse (`_siamese.signs`).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi import types
from jaxequi.errors import Refusal
from jaxequi.methods import _siamese
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.objectives.contrastive import infonce, l2_normalize
from jaxequi.types import Array, Batch, Features, Method, Output, Progress, PyTree


def make(
    *,
    backbone: nn.Module,
    projector: str = "2048-128",
    predictor: str = "",
    batch_norm: bool = False,
    last_bias: bool = True,
    predict_keys: bool = False,
    symmetric: bool = False,
    shuffle: bool = True,
    queue: int = 65536,
    whole_batches: bool = False,
    temperature: float = 0.2,
    momentum: float = 0.999,
    momentum_schedule: str = "constant",
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make MoCo v2, or by its arguments one of its relatives.

    `extra["own"]` has the `target` (the key encoder), the `queue` f32[K, D] and the `pointer` i32[]
    to the row that the next key replaces.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      projector, predictor: widths; the latter is behind the former, and "" is none.
      batch_norm: normalise between their layers.
      last_bias: their last layers have biases.
      predict_keys: the key encoder has a predictor too.
      symmetric: view 2 names its key among the queue as well, and the keys of a view that is drawn
        go into the queue; else those of view 2.
      shuffle: encode the keys in an order drawn anew, so that their statistics groups
        (`nn.norm`) are not those of the queries. It has an effect with more groups than one.
      queue: K, the number of its keys; at least B.
      whole_batches: refuse a batch that does not divide the queue, as MoCo's authors do; else the
        queue turns around in the midst of a batch.
      temperature: tau.
      momentum, momentum_schedule: m of the key encoder; "constant", or a "cosine" from m to 1.
      norm: of projector and predictor.
      dtype: of their computations.

    Raises:
      ValueError: widths that cannot be read or that end differently; keys that are predicted by
        nothing; a temperature or queue that is not above 0, an impossible momentum; and when it
        meets a batch, one without two views, or that the queue cannot take.
    """
    if temperature <= 0 or queue < 1:
        raise Refusal(
            f"temperature={temperature}, queue={queue}: the former divides the similarities, the "
            "latter holds keys; both are above 0"
        )
    _siamese.check_momentum(momentum, momentum_schedule)
    options = {
        "norm": norm if batch_norm else None,
        "dtype": dtype,
        "last_bias": last_bias,
    }
    project = _siamese.projector(projector, **options)
    predict = _siamese.projector(predictor, **options) if predictor else None
    if predict_keys and predict is None:
        raise Refusal("predict_keys=True asks for a predictor; give its widths")
    if predict is not None:
        _siamese.check_widths(project, predict)
    f_q = _siamese.Siamese(backbone, project, predict)
    f_k = _siamese.Siamese(backbone, project, predict if predict_keys else None)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        key, queue_key = jax.random.split(key)
        params, extra = _siamese.start(f_q, key, batch)
        keys = jax.random.normal(queue_key, (queue, project.widths[-1]))
        own = {
            "target": _siamese.copy(f_k, params, extra),
            "queue": l2_normalize(keys),
            "pointer": jnp.zeros((), jnp.int32),
        }
        return params, {**extra, "own": own}

    def encode_keys(
        target: PyTree, views: list[Array], key: Array, drop_key: Array
    ) -> tuple[list[Array], PyTree]:
        together: AbstractContextManager[Any] = contextlib.nullcontext()
        if shuffle:
            # The place of each key in the order drawn decides with whom it is normalised.
            order = jax.random.permutation(key, len(views[0]))
            together = norms.regrouped(jnp.argsort(order))
        with together:
            seen, target = _siamese.see_target(f_k, target, views, drop_key)
        return [encoded.prediction for encoded in seen], target

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        views = _siamese.two_views(batch)
        if len(views) > queue:
            raise Refusal(f"a batch of {len(views)} keys does not fit a queue of {queue}")
        if whole_batches and queue % len(views):
            raise Refusal(
                f"a batch of {len(views)} keys does not divide the queue of {queue}, as MoCo's "
                "authors ask; take another of the two, or method.whole_batches=False"
            )
        own, collections = _siamese.split(extra)
        order_key, choice_key = jax.random.split(key)  # what networks drop is drawn beside these
        drop_key, target_key = (jax.random.fold_in(key, i) for i in (2, 3))
        x = [views[:, 0], views[:, 1]]

        of_queries = x if symmetric else x[:1]
        seen, collections = f_q.see(params, collections, of_queries, drop_key)
        q = [encoded.prediction for encoded in seen]
        of_keys = x if symmetric else x[1:]
        k, target = encode_keys(own["target"], of_keys, order_key, target_key)
        total, nearer = infonce(q[0], k[-1], own["queue"], temperature)
        if symmetric:
            total += infonce(q[1], k[0], own["queue"], temperature)[0]
        first = jax.random.uniform(choice_key) < 0.5
        new = l2_normalize(jnp.where(first, k[0], k[-1]))

        rows = (own["pointer"] + jnp.arange(len(new))) % queue
        own = {
            "target": target,
            "queue": own["queue"].at[rows].set(new, unique_indices=True),
            "pointer": (own["pointer"] + len(new)) % queue,
        }
        metrics = {
            "keys/top1": jnp.mean(nearer < 1),
            "keys/top5": jnp.mean(nearer < 5),
            "momentum": 1 - share(progress),
            **_siamese.signs(seen),
        }
        return total, Output({**collections, "own": own}, metrics, _siamese.stack(seen))

    def share(progress: Progress) -> Array:
        return _siamese.share(momentum, momentum_schedule, progress.fraction)

    def update(params: PyTree, extra: PyTree, progress: Progress) -> PyTree:
        own = extra["own"]
        target = _siamese.average(own["target"], params, share(progress))
        return {**extra, "own": {**own, "target": target}}

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        return f_q.evaluate(params, types.collections(extra), views)

    return Method(init=init, loss=loss, encode=encode, update=update)
