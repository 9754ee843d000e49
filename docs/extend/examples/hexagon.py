"""Fields of one's own: D6, the symmetry of a hexagon, with irreps beside regular fields."""

from __future__ import annotations

import flax.linen as nn

from jaxequi.groups import planar, representations
from jaxequi.groups.representations import FieldType
from jaxequi.nn.steerable import SteerableConv
from jaxequi.types import Array

GROUP = planar.named("d6")
GREY = FieldType(((representations.trivial(GROUP), 1),))
# Functions on the three axes of the hexagon, which a half turn leaves alone, and plane vectors.
AXES = representations.quotient(GROUP, planar.named("d2"))
VECTOR = representations.irrep(GROUP, 1, 1)
HIDDEN = FieldType(((representations.regular(GROUP), 2), (AXES, 1)))
OUT = FieldType(((VECTOR, 1),))


class Hexagon(nn.Module):
    """Grey images f32[B, H, W, 1] to a field of vectors f32[B, H, W, 2]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = SteerableConv(GREY, HIDDEN, kernel_size=5, padding=2)(x)
        x = nn.relu(x)  # every element permutes the channels of HIDDEN, so it acts on each alone
        return SteerableConv(HIDDEN, OUT, kernel_size=5, padding=2)(x)
