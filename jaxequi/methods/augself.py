"""AugSelf: an invariance objective, and the relation regressed from both representations.

Lee, Lee, Lee, Lee, Shin, NeurIPS 2021; facebookresearch/SIE, `src/models.py`: `SimCLRAugSelf`,
`SimCLRAugSelfRotColor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.groups import relation as relations
from jaxequi.methods import _pair, _specs
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives.regression import mean_squared_error
from jaxequi.types import Array, Method, Metrics, Relation


class Network(_pair.Plain):
    """`_pair.Plain`, whose `predictor` reads both representations, f32[B, 2R], to tell z."""

    predictor: nn.Module

    def relate(self, x: _pair.Encoded, y: _pair.Encoded, z: Any) -> Array:
        both = jnp.concatenate([x.representation, y.representation], axis=-1)
        return at_least_f32(self.predictor(both))


def make(
    *,
    backbone: nn.Module,
    objective: Mapping[str, Any],
    weight: float = 1.0,
    projector: str = "2048-2048-2048",
    relation: str | Relation = "rotation",
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make AugSelf.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      objective: dict(name="ntxent", ...) or dict(name="vicreg", ...), see `_specs`.
      weight: of the regression of z, which trains the backbone too.
      projector: widths.
      relation: "rotation" or "rotation+color", see `groups.relation`.
      norm: of the projector.
      dtype: of the computations of projector and predictor.

    Raises:
      ValueError: widths that cannot be read, an unknown objective or relation.
    """
    goal, target = _specs.objective(objective), relations.relation(relation)
    wide = 2 * backbone.features
    network = Network(
        backbone=backbone,
        projector=_pair.projector(projector, norm, dtype),
        free=0,
        predictor=heads.MLP((wide, wide, len(target.columns)), dtype),
    )

    def both(pair: _pair.Pair) -> tuple[Array, Metrics]:
        x, y = pair.x.embedding, pair.y.embedding
        loss, terms = goal(x, x, y)
        regression = mean_squared_error(pair.prediction, pair.z)
        named = {"invariance": terms.pop("similarity"), "equivariance": regression}
        return loss + weight * regression, named | terms

    return _pair.make(network, both, target)
