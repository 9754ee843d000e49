"""SIE: one part of the representation is invariant, the other follows the transformation.

Garrido, Najman, LeCun, "Self-supervised learning of split invariant equivariant representations",
ICML 2023, arXiv 2302.10283; facebookresearch/SIE, `src/models.py`: `SIE`, `SIENoVar`,
`SIERotColor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import relation as relations
from jaxequi.methods import _pair, _specs
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.objectives import vicreg
from jaxequi.types import Array, Method, Metrics, Relation


def make(
    *,
    backbone: nn.Module,
    equi: int = 256,
    projector: str = "2048-2048-2048",
    predictor: Mapping[str, Any] = _specs.HYPERNETWORK,
    relation: str | Relation = "rotation",
    similarity_weight: float = 10.0,
    equivariance_factor: float = 0.45,
    variance_weight: float = 10.0,
    covariance_weight: float = 1.0,
    vary_prediction: bool = True,
    batch_size: int | None = None,
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make SIE.

    The first R - `equi` dimensions of the representation are its invariant part, the last `equi`
    its equivariant one. Each has a projector, with its share of the widths. The predictor carries
    the equivariant part of view 1's embedding to view 2's, given the relation z.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      projector: widths for a whole representation, "2048-2048-2048".
      predictor: dict(name="hypernetwork", ...) or dict(name="mlp", ...), see `_specs`.
      relation: "rotation" or "rotation+color", see `groups.relation`.
      similarity_weight: of invariance; of equivariance it is `equivariance_factor` times that.
      variance_weight, covariance_weight: of VICReg's regularisers, over both parts at once.
      vary_prediction: ask for variance of the prediction too (`SIENoVar` does not).
      batch_size: covariances are divided by it less one; by default it is the rows of the batch.
      norm: of the projectors.
      dtype: of the computations of projectors and predictor.

    Raises:
      ValueError: `equi` leaves a part without dimensions, widths that cannot be read, an unknown
        predictor or relation.
    """
    features = backbone.features
    inv = features - equi
    if not 0 < equi < features:
        raise Refusal(
            f"equi={equi} leaves a part of the {features} dimensions of the representation empty; "
            f"use 1 to {features - 1}"
        )
    network = _pair.Parts(
        backbone=backbone,
        projector_inv=_pair.projector(projector, norm, dtype, inv, features),
        projector_equi=_pair.projector(projector, norm, dtype, equi, features),
        predictor=_specs.predictor(predictor, dtype),
        inv=inv,
        equi=equi,
    )

    def objective(pair: _pair.Pair) -> tuple[Array, Metrics]:
        x, y, _, prediction = pair
        loss, terms = vicreg.regularization(
            x.embedding, y.embedding, variance_weight, covariance_weight, batch_size
        )
        terms["invariance"] = vicreg.invariance(x.inv, y.inv)
        terms["equivariance"] = vicreg.invariance(prediction, y.equi)
        loss += similarity_weight * terms["invariance"]
        loss += similarity_weight * equivariance_factor * terms["equivariance"]
        if vary_prediction:
            terms["prediction_variance"] = vicreg.variance(prediction)
            loss += variance_weight * terms["prediction_variance"]
        return loss, terms

    return _pair.make(network, objective, relations.relation(relation))
