"""Supervised classification: cross-entropy of a linear layer on a backbone.

Edixhoven, Lengyel and van Gemert (2023); `experiments/{classification, imagenet, rotmnist}`, which
differ in network, data and optimizer only. Images upright and turned are told apart in evaluation.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic
from jaxequi.nn.heads import Linear
from jaxequi.objectives import classification
from jaxequi.types import Array, Batch, Features, Method, Output, Progress, PyTree


class Classifier(nn.Module):
    """Images f32[B, H, W, I] to a representation f32[B, R] and logits f32[B, K].

    Attributes:
      backbone: `(images, train) -> representation`.
      num_classes: K.
      dtype: of the linear layer; logits are f32.
    """

    backbone: nn.Module
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Compute representation and logits."""
        representation = self.backbone(images, train)
        logits = Linear(self.num_classes, dtype=self.dtype, name="classifier")(representation)
        return representation, logits.astype(jnp.float32)


def make(backbone: nn.Module, num_classes: int, dtype: Any = jnp.float32) -> Method:
    """Make the method.

    A batch has one view. `encode` gives `representation` f32[B, 1, R], `logits` f32[B, 1, K] and
    `turned_logits` f32[B, 4, K] of the images turned by 0, 90, 180 and 270 degrees. Metrics are the
    `accuracy` and the `loss` of the training batch.

    Args:
      backbone: a module with `(images f32[B, H, W, 3], train) -> f32[B, R]`.
      num_classes: K.
      dtype: of the computation.
    """
    network = Classifier(backbone, num_classes, dtype)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        extra = dict(network.init(key, _images(batch), False))
        return extra.pop("params"), extra

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        del progress
        labels = batch["label"]
        (representation, logits), extra = network.apply(
            {"params": params, **extra},
            _images(batch),
            True,
            mutable=list(extra),
            rngs={"dropout": key},
        )
        metrics = {"accuracy": classification.top_k(logits, labels, 1)}
        features = {"representation": representation[:, None], "logits": logits[:, None]}
        return classification.cross_entropy(logits, labels), Output(dict(extra), metrics, features)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        images = _images({"views": views})

        def classify(turns: int) -> tuple[Array, Array]:
            turned = planar.act(cyclic(4), turns, images)
            return network.apply({"params": params, **extra}, turned, False)  # type: ignore[return-value]

        representation, logits = classify(0)
        turned_logits = [logits, *(classify(turns)[1] for turns in (1, 2, 3))]
        return {
            "representation": representation[:, None],
            "logits": logits[:, None],
            "turned_logits": jnp.stack(turned_logits, 1),
        }

    return Method(init=init, loss=loss, encode=encode)


def _images(batch: Batch) -> Array:
    views = batch["views"]
    if views.ndim != 5 or views.shape[1] != 1:
        raise ValueError(
            f"classification takes one view of each example, batch['views'] [B, 1, H, W, 3], not "
            f"{views.shape}; give the data set one pipe of `views`"
        )
    return views[:, 0]
