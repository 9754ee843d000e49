"""Mixing of examples: mixup and cutmix, which turn labels into weights of classes.

They see the whole batch after `normalise`, and write `target` f32[B, C] beside
`label`: the row that cross-entropy takes in place of a class.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxequi.augment.op import Array, check_probability
from jaxequi.errors import Refusal

Mixing = Callable[..., tuple[Array, Array, Array]]


def targets(label: Array, partner: Array, share: Array, classes: int, smoothing: float) -> Array:
    """Return f32[B, C]: `share` of the label's class, the rest of the partner's, both smoothed.

    A smoothed class weighs 1 - s + s / C, every other s / C.
    """
    hot = share * jax.nn.one_hot(label, classes) + (1 - share) * jax.nn.one_hot(partner, classes)
    return hot * (1 - smoothing) + smoothing / classes


def mix(views: Array, other: Array, share: Array) -> Array:
    """Return share * views + (1 - share) * other."""
    return share * views + (1 - share) * other


def box(share: Array, centre: Array, height: int, width: int) -> tuple[Array, Array]:
    """Return cutmix's box i32[4] (top, bottom, left, right) and the share outside it.

    The sides are int(H r) and int(W r) with r = sqrt(1 - share), around `centre` (row, column),
    clipped; the share is computed anew from what is left of the box.
    """
    part = jnp.sqrt(1 - share)
    tall, wide = jnp.floor(height * part) // 2, jnp.floor(width * part) // 2
    top, bottom = jnp.clip(jnp.stack([centre[0] - tall, centre[0] + tall]), 0, height)
    left, right = jnp.clip(jnp.stack([centre[1] - wide, centre[1] + wide]), 0, width)
    edges = jnp.stack([top, bottom, left, right]).astype(jnp.int32)
    return edges, 1 - (bottom - top) * (right - left) / (height * width)


def paste(views: Array, other: Array, edges: Array) -> Array:
    """Put the box i32[4] of `other` into `views`, f32[..., H, W, C]."""
    y, x = jnp.arange(views.shape[-3])[:, None, None], jnp.arange(views.shape[-2])[None, :, None]
    inside = (y >= edges[0]) & (y < edges[1]) & (x >= edges[2]) & (x < edges[3])
    return jnp.where(inside, other, views)


def mixing(
    classes: int | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    switch: float = 0.5,
    p: float = 1.0,
    smoothing: float = 0.0,
    partner: str = "reversed",
) -> Mixing:
    """Make `(key, views, label, C) -> (views, target, share)`, with one draw for the batch.

    Args:
      classes: number of classes C; None takes that of the data.
      mixup: alpha of the Beta distribution of the share; 0 turns mixup off.
      cutmix: the same for cutmix.
      switch: probability of cutmix where both are on.
      p: probability that a batch is mixed.
      smoothing: of the labels.
      partner: "reversed", the batch turned around (timm), or "permuted", a random permutation
        (EqInv's baseline).
    """
    for chance in (switch, p, smoothing):
        check_probability(chance)
    if (classes is not None and classes < 1) or min(mixup, cutmix) < 0:
        raise Refusal(f"mixing takes classes and alphas, not {classes}, {mixup}, {cutmix}")
    if partner not in ("reversed", "permuted"):
        raise Refusal(f"partner must be 'reversed' or 'permuted', not {partner!r}")

    def apply(
        key: Array, views: Array, label: Array, known: int | None = None
    ) -> tuple[Array, Array, Array]:
        count = known if classes is None else classes
        if count is None or known not in (None, count):
            raise Refusal(
                f"mixing of {count} classes, and the data have {known}; leave the number out of "
                "the text where the data know it"
            )
        chance, which, first, second, place, order = jax.random.split(key, 6)
        size = len(label)
        if partner == "reversed" and size % 2:
            raise Refusal(f"mixing of a batch of {size}: turned around, one is its own partner")
        other = jnp.arange(size)[::-1]
        if partner == "permuted":
            other = jax.random.permutation(order, size)
        height, width = views.shape[-3:-1]
        share, cut = jnp.float32(1), jnp.bool_(False)
        if mixup:
            share = jax.random.beta(first, mixup, mixup, dtype=jnp.float32)
        if cutmix:
            cut = jax.random.bernoulli(which, switch if mixup else 1.0)
            drawn = jax.random.beta(second, cutmix, cutmix, dtype=jnp.float32)
            share = jnp.where(cut, drawn, share)
        share = jnp.where(jax.random.bernoulli(chance, p), share, 1)
        centre = jnp.floor(jax.random.uniform(place, (2,)) * jnp.asarray([height, width]))
        edges, outside = box(share, centre, height, width)
        pasted = paste(views, views[other], edges)
        views = jnp.where(cut, pasted, mix(views, views[other], share))
        share = jnp.where(cut, outside, share)
        return views, targets(label, label[other], share, count, smoothing), share

    return apply
