"""A mask over the features of a network, one number each.

Wangt-CN/EqInv, `utils.py`, `activation_map` and the `mask_layer` of `ResNet_ft_eqinv`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.names import unknown
from jaxequi.types import Array

ACTIVATIONS = ("sigmoid", "ident", "gumbel")


def check_activation(name: str) -> None:
    """Raise `ValueError` unless there is such an activation."""
    if name not in ACTIVATIONS:
        raise unknown("activation of the mask", name, ACTIVATIONS)


def activate(values: Array, name: str, noise: Array | None = None, soft: bool = False) -> Array:
    """Make of a mask's parameters what features are multiplied with, f32[D].

    Args:
      values: f32[D]; of "gumbel" f32[D, 2], the scores of leaving a feature out and of keeping it.
      name: "sigmoid", "ident" (the numbers themselves) or "gumbel": keep or leave out, with the
        gradient of the softmax (straight through).
      noise: f32[D, 2] of a Gumbel distribution; None decides by the scores alone.
      soft: the softmax itself.
    """
    if name == "sigmoid":
        return jax.nn.sigmoid(values)
    if name == "ident":
        return values
    scores = values if noise is None else values + noise
    share = jax.nn.softmax(scores, axis=-1)[:, 1]
    if soft:
        return share
    kept = (jnp.argmax(scores, axis=-1) == 1).astype(share.dtype)
    return kept + share - jax.lax.stop_gradient(share)


class Mask(nn.Module):
    """A mask f32[D] of D parameters, drawn from U(0, 1).

    Attributes:
      features: D.
      activation: of `ACTIVATIONS`. "gumbel" has 2 D parameters, draws noise in training from the
        generator "mask", and decides by the scores alone in evaluation. The reference gives it D
        parameters, and stops.
    """

    features: int
    activation: str = "sigmoid"

    @nn.compact
    def __call__(self, train: bool) -> Array:
        gumbel = self.activation == "gumbel"
        shape = (self.features, 2) if gumbel else (self.features,)
        values = self.param("values", nn.initializers.uniform(1.0), shape, jnp.float32)
        noise = None
        if gumbel and train:
            noise = jax.random.gumbel(self.make_rng("mask"), shape, values.dtype)
        return activate(values, self.activation, noise)
