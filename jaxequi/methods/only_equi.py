"""Equivariance alone: the whole representation follows the transformation, no part is invariant.

facebookresearch/SIE, `src/models.py`: `SIEOnlyEqui` (objective vicreg with `vary_prediction`),
`SimCLROnlyEqui`, `SimCLROnlyEquiRotColor` (objective ntxent).
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
from jaxequi.types import Array, Method, Metrics, Relation


def make(
    *,
    backbone: nn.Module,
    objective: Mapping[str, Any],
    projector: str = "2048-2048-2048",
    predictor: Mapping[str, Any] = _specs.HYPERNETWORK,
    relation: str | Relation = "rotation",
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make the method that predicts view 2's embedding from view 1's, and nothing else.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      objective: dict(name="ntxent", ...) or dict(name="vicreg", ...), see `_specs`.
      projector: widths.
      predictor: dict(name="hypernetwork", ...) or dict(name="mlp", ...), see `_specs`.
      relation: "rotation" or "rotation+color", see `groups.relation`.
      norm: of the projector.
      dtype: of the computations of projector and predictor.

    Raises:
      ValueError: widths that cannot be read, an unknown objective, predictor or relation.
    """
    goal = _specs.objective(objective)
    network = _pair.Parts(
        backbone=backbone,
        projector_inv=None,
        projector_equi=_pair.projector(projector, norm, dtype),
        predictor=_specs.predictor(predictor, dtype),
        inv=0,
        equi=backbone.features,
    )

    def equivariance(pair: _pair.Pair) -> tuple[Array, Metrics]:
        loss, terms = goal(pair.prediction, pair.x.equi, pair.y.equi)
        return loss, {"equivariance": terms.pop("similarity"), **terms}

    return _pair.make(network, equivariance, relations.relation(relation))
