"""EquiMod: an invariance objective, and a predictor of what the transformation does beside it.

Devillers and Lefort, ICLR 2023; with SIE's predictor, facebookresearch/SIE, `src/models.py`:
`VICRegEquiMod`, `SimCLREquiMod`, `SimCLREquiModRotColor`.
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
    equivariance_factor: float = 1.0,
    projector: str = "2048-2048-2048",
    predictor: Mapping[str, Any] = _specs.HYPERNETWORK,
    relation: str | Relation = "rotation",
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make EquiMod.

    Two projectors read the whole representation. The objective is put once to the invariant
    embeddings, x and y, and once to the predicted equivariant embedding of view 2 and the true
    one; of the latter, with all its terms, `equivariance_factor` counts.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      objective: dict(name="ntxent", ...) or dict(name="vicreg", ...), see `_specs`.
      projector: widths of both projectors.
      predictor: dict(name="hypernetwork", ...) or dict(name="mlp", ...), see `_specs`.
      relation: "rotation" or "rotation+color", see `groups.relation`.
      norm: of the projectors.
      dtype: of the computations of projectors and predictor.

    Raises:
      ValueError: widths that cannot be read, an unknown objective, predictor or relation.
    """
    goal = _specs.objective(objective)
    network = _pair.Parts(
        backbone=backbone,
        projector_inv=_pair.projector(projector, norm, dtype),
        projector_equi=_pair.projector(projector, norm, dtype),
        predictor=_specs.predictor(predictor, dtype),
        inv=backbone.features,
        equi=backbone.features,
    )

    def both(pair: _pair.Pair) -> tuple[Array, Metrics]:
        x, y, _, prediction = pair
        invariant, terms = goal(x.inv, x.inv, y.inv)
        equivariant, more = goal(prediction, x.equi, y.equi)
        loss = invariant + equivariance_factor * equivariant
        named = {"invariance": terms.pop("similarity"), "equivariance": more.pop("similarity")}
        return loss, named | {name: term + more[name] for name, term in terms.items()}

    return _pair.make(network, both, relations.relation(relation))
