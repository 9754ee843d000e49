"""What methods with a predictor or a slow target network have in common: MoCo, BYOL, SimSiam.

A network is a backbone, a projector and, on the online side, a predictor. Views pass it one after
the other: each has batch statistics of its own, and running statistics are updated once a view, in
order.

The target network stands in `extra["own"]["target"]`, a tree like that of the online network
without what only the latter has. Its parameters are a moving average of the online ones. Its batch
statistics are its own, from the views that it sees, and are never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi import types
from jaxequi.errors import Refusal
from jaxequi.nn import heads
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives import collapse
from jaxequi.types import Array, Batch, Features, Metrics, PyTree


class Encoded(NamedTuple):
    """One view in a network."""

    representation: Array  # f32[B, R]
    embedding: Array  # f32[B, D]
    prediction: Array  # f32[B, D]; the embedding itself in a network without a predictor


class Siamese(nn.Module):
    """Images f32[B, H, W, 3] to `Encoded`."""

    backbone: nn.Module
    projector: heads.Projector
    predictor: heads.Projector | None = None

    def __call__(self, images: Array, train: bool) -> Encoded:
        representation = self.backbone(images, train)
        embedding = at_least_f32(self.projector(representation, train))
        if self.predictor is None:
            return Encoded(representation, embedding, embedding)
        prediction = at_least_f32(self.predictor(embedding, train))
        return Encoded(representation, embedding, prediction)

    @nn.nowrap
    def see(
        self, params: PyTree, collections: PyTree, views: Sequence[Array], key: Array
    ) -> tuple[list[Encoded], PyTree]:
        """Encode views in training mode, one after the other; `key` draws what a network drops."""
        seen = []
        for images, dropped in zip(views, jax.random.split(key, len(views)), strict=True):
            encoded, collections = self.apply(
                {"params": params, **collections},
                images,
                True,
                mutable=list(collections),
                rngs={"dropout": dropped},
            )
            seen.append(encoded)
        return seen, dict(collections)

    @nn.nowrap
    def evaluate(self, params: PyTree, collections: PyTree, views: Array) -> Features:
        """Encode views f32[B, V, H, W, 3] in evaluation mode, as `Method.encode` does."""
        images = views.reshape(-1, *views.shape[2:])
        encoded: Any = self.apply({"params": params, **collections}, images, False)
        features = {"representation": encoded.representation, "embedding": encoded.embedding}
        return {name: v.reshape(*views.shape[:2], -1) for name, v in features.items()}


def projector(text: str, **options: Any) -> heads.Projector:
    """Make a projector or predictor of widths such as "2048-128"; options of `heads.Projector`.

    Raises:
      ValueError: malformed widths, or none.
    """
    widths = heads.widths(text)
    if not widths:
        raise Refusal("a projector of no width; give at least one, such as '128'")
    return heads.Projector(widths, **options)


def check_widths(projector: heads.Projector, predictor: heads.Projector) -> None:
    """Refuse a prediction that has not the width of what it is compared with."""
    if projector.widths[-1] != predictor.widths[-1]:
        raise Refusal(
            f"a projector of widths {projector.widths} and a predictor of {predictor.widths} end "
            "differently; a prediction is compared with an embedding"
        )


def two_views(batch: Batch) -> Array:
    """Give batch["views"], f32[B, 2, H, W, 3].

    Raises:
      ValueError: another number of views.
    """
    views = batch["views"]
    if views.ndim < 3 or views.shape[1] != 2:
        raise Refusal(
            f"this method compares two views of each example, batch['views'] [B, 2, ...], not "
            f"{views.shape}; give the data set two pipes of `views`"
        )
    return views


def split(extra: PyTree) -> tuple[PyTree, PyTree]:
    """Split a method's state into what is its own, and the collections of its network."""
    return extra[types.OWN], types.collections(extra)


def start(network: Siamese, key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
    """Draw parameters and collections of the online network."""
    collections = dict(network.init(key, two_views(batch)[:, 0], train=True))
    return collections.pop("params"), collections


def copy(network: Siamese, params: PyTree, collections: PyTree) -> PyTree:
    """Make a target network: the online network without its predictor, unless it has one too."""
    modules = ("backbone", "projector") + (("predictor",) if network.predictor else ())
    tree = {"params": params, **collections}
    return {
        name: {module: jax.tree.map(jnp.copy, part[module]) for module in modules if module in part}
        for name, part in tree.items()
    }


def see_target(
    network: Siamese, target: PyTree, views: Sequence[Array], key: Array
) -> tuple[list[Encoded], PyTree]:
    """Encode views in the target network, in training mode; returns it with its new statistics.

    Nothing of this pass is kept for a backward pass: no gradient goes in.
    """
    target, views = jax.lax.stop_gradient((target, views))
    params, collections = target["params"], {k: v for k, v in target.items() if k != "params"}
    seen, collections = network.see(params, collections, views, key)
    return seen, {"params": params, **collections}


SCHEDULES = ("constant", "cosine")


def check_momentum(momentum: float, schedule: str) -> None:
    """Refuse a momentum outside [0, 1] and an unknown schedule."""
    if not 0 <= momentum <= 1 or schedule not in SCHEDULES:
        raise Refusal(
            f"momentum={momentum}, momentum_schedule={schedule!r}: the former lies in [0, 1], the "
            f"latter is one of {', '.join(SCHEDULES)}"
        )


def share(momentum: float, schedule: str, fraction: Any) -> Any:
    """1 - m, the share of the online network in a moving average.

    With "cosine" m rises from `momentum` to 1 over the run (BYOL, appendix J.1): 1 - m is
    (1 - momentum) (1 + cos(pi fraction)) / 2, written as a square because it is a small number
    that would be lost in m.
    """
    if schedule == "constant":
        return 1 - momentum
    return (1 - momentum) * jnp.square(jnp.cos(math.pi / 2 * fraction))


def average(target: PyTree, params: PyTree, way: Any) -> PyTree:
    """Move the target's parameters by a `share`, the `way`, to the online ones."""
    moved = {
        module: jax.tree.map(lambda t, p: t + way * (p - t), part, params[module])
        for module, part in target["params"].items()
    }
    return {**target, "params": moved}


def signs(seen: Sequence[Encoded]) -> Metrics:
    """Measure the collapse of each feature in each view (`objectives.collapse`)."""
    metrics = {}
    for feature in ("representation", "embedding"):
        for view, encoded in enumerate(seen, start=1):
            v = getattr(encoded, feature)
            metrics[f"correlation/{feature}-view{view}"] = collapse.correlation(v)
            metrics[f"spread/{feature}-view{view}"] = collapse.spread(v)
    return metrics


def stack(seen: Sequence[Encoded]) -> Features:
    """Features of an `Output`: f32[B, V, ...] of the views that the online network saw."""
    return {
        name: jnp.stack([getattr(encoded, name) for encoded in seen], axis=1)
        for name in Encoded._fields
    }
