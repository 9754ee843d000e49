"""One strided lifting convolution and nothing else: the network that unlearns its symmetry.

Edixhoven, Lengyel and van Gemert (2023); `experiments/learning_unequivariance/`, CustomNet.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.models.gresnet import pooled
from jaxequi.nn.gconv import LiftingConv
from jaxequi.types import Array


class OneGConv(nn.Module):
    """Images f32[B, H, W, I] to f32[B, O]: one strided layer, mean of pixels, max of slices.

    It sees the mean of the colours. There is no activation: on a size that the stride fits (odd),
    an image and its rotation have the same representation whatever the weights.

    Attributes:
      group: the group G.
      features: O, output fields.
      kernel_size, strides, padding: of the layer.
      dtype: of the computation.
    """

    group: Group
    features: int = 1
    kernel_size: int = 3
    strides: int = 2
    padding: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        del train
        x = jnp.mean(x, -1, keepdims=True)  # the reference's images have one channel
        conv = LiftingConv(
            self.features,
            self.group,
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            use_bias=True,
            dtype=self.dtype,
            name="conv",
        )
        return pooled(conv(x), self.group, "coset_last")


def make(
    group: str = "c4", features: int = 1, remat: bool = False, dtype: Any = jnp.float32
) -> OneGConv:
    """Make the network over a group given by its name.

    Raises:
      ValueError: an unknown group, or `remat` (one layer leaves nothing to save).
    """
    if remat:
        raise Refusal("remat: a network of one layer has no blocks to recompute; leave it off")
    return OneGConv(planar.named(group), features, dtype=dtype)
