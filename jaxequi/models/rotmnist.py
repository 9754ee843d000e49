"""The seven-layer networks of the RotMNIST experiments, over C4 or plain.

Edixhoven, Lengyel and van Gemert (2023); `experiments/rotmnist/models_groupy.py` SepCNN has two
pools, and the network of the published logs, printed in `training_output/*.out`, has one pool and
dropout. After Cohen and Welling (2016), table 1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.models.gresnet import pooled
from jaxequi.nn.gconv import GroupConv, LiftingConv
from jaxequi.nn.norm import BatchNorm
from jaxequi.nn.pool import MaxPool
from jaxequi.types import Array

POOLED_AFTER = {1: (2,), 2: (2, 3)}
"""Layers that a 2x2 maximum follows, by their number: the published logs have one, the code two.

One pool fits even sizes, two fit multiples of four."""

DROPPED_AFTER = (1, 3, 4, 5)
"""Layers that dropout follows in the printed tables of the published logs."""


class RotMnistNet(nn.Module):
    """Images f32[B, H, W, I] to a representation f32[B, planes]: mean over pixels, max over slices.

    Six layers 3x3 that pad 1 and one 4x4 that pads 0, each followed by its norm and ReLU.

    Attributes:
      group: C4, or C1 for the plain network.
      planes: fields of every layer.
      pools: 1 or 2 (`POOLED_AFTER`).
      dropout: rate after `DROPPED_AFTER`, element by element; its key is the stream `dropout`.
      norm: makes the norms, such as `nn.norm.BatchNorm`.
      dtype: of the computation.

    Raises:
      ValueError: an image too small for the last kernel.
    """

    group: Group
    planes: int = 10
    pools: int = 1
    dropout: float = 0.0
    norm: Any = BatchNorm
    dtype: Any = jnp.float32

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return self.planes

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Compute the representation; the reference's output is a linear layer and log-softmax."""
        for i in range(1, 8):
            size, padding = (3, 1) if i < 7 else (4, 0)
            layer = LiftingConv if i == 1 else GroupConv
            x = layer(
                self.planes,
                self.group,
                size,
                padding=padding,
                use_bias=True,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            norm = self.norm(not train, field_size=self.group.order, name=f"bn{i}")
            x = nn.relu(norm(x))
            if self.dropout and i in DROPPED_AFTER:
                x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(x)
            if i in POOLED_AFTER[self.pools]:
                x = MaxPool(2, name=f"pool{i}")(x)
        return pooled(x, self.group, "coset_last")


def make(
    group: str = "c4",
    planes: int = 10,
    pools: int = 1,
    dropout: float = 0.0,
    norm: Any = BatchNorm,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> RotMnistNet:
    """Make the network of the published logs (`pools=1`) or of the repository (`pools=2`).

    The arguments are the attributes of `RotMnistNet`; `group` is the name of a group, and the
    reference takes c4 with 10 planes and c1 with 20.

    Raises:
      ValueError: an unknown group, mirrors (the last kernel is even), another number of pools, or
        `remat` (seven layers leave nothing to save).
    """
    if pools not in POOLED_AFTER:
        raise Refusal(f"pools={pools}: the networks have {' or '.join(map(str, POOLED_AFTER))}")
    if remat:
        raise Refusal("remat: a network of seven layers has no blocks to recompute; leave it off")
    return RotMnistNet(planar.named(group), planes, pools, dropout, norm, dtype)
