"""Supervised classification: cross-entropy of a linear layer on a backbone.

Edixhoven, Lengyel and van Gemert (2023); `experiments/{classification, imagenet, rotmnist}`, which
differ in network, data and optimizer only. Images upright and turned are told apart in evaluation.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic
from jaxequi.groups.rotation import rotate
from jaxequi.nn.heads import Linear
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives import classification
from jaxequi.types import Array, Batch, Features, Method, Output, Progress, PyTree


class Classifier(nn.Module):
    """Images f32[B, H, W, I] to a representation f32[B, R] and logits f32[B, K].

    Attributes:
      backbone: `(images, train) -> representation`.
      num_classes: K.
      dtype: of the linear layer; logits are f32.
      head_std: of the linear layer's first weights, drawn from a normal distribution beside a bias
        of 0; None starts it as torch's Linear.
    """

    backbone: nn.Module
    num_classes: int
    dtype: Any = jnp.float32
    head_std: float | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Compute representation and logits."""
        representation = self.backbone(images, train)
        head = Linear(self.num_classes, dtype=self.dtype, std=self.head_std, name="classifier")
        logits = head(representation)
        return representation, at_least_f32(logits)


def make(
    backbone: nn.Module,
    num_classes: int,
    turns: int = 4,
    dtype: Any = jnp.float32,
    head_std: float | None = None,
) -> Method:
    """Make the method.

    A batch has one view. `encode` gives `representation` f32[B, 1, R], `logits` f32[B, 1, K] and
    `turned_logits` f32[B, turns, K] of the images turned by 0, 1, ... times 360 / turns degrees:
    quarter turns move pixels, all others interpolate with 0 outside (`groups.rotation`). A metric
    is the `accuracy` on the training batch. Where a batch has shares of the classes (`target`
    f32[B, K] of mixup, cutmix or smoothed labels) they take the labels' place in the loss.

    Args:
      backbone: a module with `(images f32[B, H, W, 3], train) -> f32[B, R]`.
      num_classes: K.
      turns: at how many angles `encode` classifies; 4 for unseen accuracy, 36 for a circle.
      dtype: of the computation.
      head_std: of the classifier's first weights; MAE fine-tunes from 2e-5. None starts it as
        torch's Linear.

    Raises:
      ValueError: fewer than one turn.
    """
    if turns < 1:
        raise Refusal(f"turns={turns}: the upright image is one; take 1, 4 or 36")
    network = Classifier(backbone, num_classes, dtype, head_std)

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
        if "target" in batch:  # mixed examples belong to several classes
            error = classification.soft_cross_entropy(logits, batch["target"])
        else:
            error = classification.cross_entropy(logits, labels)
        return error, Output(dict(extra), metrics, features)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        images = _images({"views": views})

        def classify(turn: int) -> tuple[Array, Array]:
            quarters, part = divmod(4 * turn, turns)
            if part:
                turned = rotate(images, 360 * turn / turns)
            else:
                turned = planar.act(cyclic(4), quarters, images)
            return network.apply({"params": params, **extra}, turned, False)  # type: ignore[return-value]

        representation, logits = classify(0)
        turned_logits = [logits, *(classify(turn)[1] for turn in range(1, turns))]
        return {
            "representation": representation[:, None],
            "logits": logits[:, None],
            "turned_logits": jnp.stack(turned_logits, 1),
        }

    return Method(init=init, loss=loss, encode=encode)


def _images(batch: Batch) -> Array:
    views = batch["views"]
    if views.ndim != 5 or views.shape[1] != 1:
        raise Refusal(
            f"classification takes one view of each example, batch['views'] [B, 1, H, W, 3], not "
            f"{views.shape}; give the data set one pipe of `views`"
        )
    return views[:, 0]
